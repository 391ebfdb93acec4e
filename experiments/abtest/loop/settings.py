"""What a closed loop is: decided once, kept in `loop.json`, and the same after a restart."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from features.artifacts import StrictModel
from features.schema import FeatureConfig
from ranking.run import RunConfig

#: Who decides what an arm shows: its own ranker, the same with some slates at random, or the policy that
#: wrote the world's log, beside which a ranker is trained that nobody sees.
Arm = Literal["greedy", "explored", "logging"]
GREEDY: Arm = "greedy"
EXPLORED: Arm = "explored"
LOGGING: Arm = "logging"
ARMS = (GREEDY, EXPLORED, LOGGING)
WEEK_DAYS = 7
#: Of a week's log the last day but one ends the training, and the last one is the run's test day.
VALIDATION_DAYS = TEST_DAYS = 1


class LoopSettings(StrictModel):
    """Everything that decides the result.

    Attributes:
        ranker: config of every week's training; its `features` are those of the week.
        features: config of every week's features; the loop sets its split.
        explore: share of searches of the arm `explored` whose whole slate is drawn.
        searches_per_day: None is as many as the world's log had on average.
        luck: another number is other weeks of the same world.
    """

    world: Path
    ranker: RunConfig
    features: FeatureConfig
    weeks: Annotated[int, Field(ge=1)] = 4
    explore: Annotated[float, Field(gt=0, le=1)] = 0.05
    searches_per_day: Annotated[int, Field(ge=1)] | None = None
    luck: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _split_is_by_days(self) -> "LoopSettings":
        if self.features.split.method != "global":
            raise ValueError("the loop cuts the log by days: give features with split.method = 'global'")
        return self

    def features_of(self, first_day: int) -> FeatureConfig:
        """Those of a training at the midnight before `first_day`: on the week before it, and nothing else.

        Counters and histories look back over the whole log; days are counted from the log's first one.
        """
        split = self.features.split.model_copy(
            update={
                "burn_in_days": first_day - WEEK_DAYS,
                "validation_days": VALIDATION_DAYS,
                "test_days": TEST_DAYS,
            }
        )
        return self.features.model_copy(update={"split": split})

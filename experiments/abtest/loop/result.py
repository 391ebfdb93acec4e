"""What a closed loop came to: `result.json`."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from experiments.abtest.loop.measures import Exposure, Measured, Value
from experiments.abtest.loop.settings import Arm, LoopSettings
from features.artifacts import ResultFile

RESULT = "result.json"


class Week(BaseModel):
    """One week of one arm.

    Attributes:
        week: from 1.
        training_rows: impressions that the week's ranker was trained on, all of the week before.
        run_auc: of the run, on the last day of its own log: what one would see without a simulation.
        measured: of the ranker at the beginning of the week.
        served: what was to be expected of all that was shown in the week, exploration included.
        exposure: of all that was shown in the week.
        explored: share of impressions that would hardly have been at their position without exploration.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    arm: Arm
    week: int
    training_rows: int
    run_auc: float | None
    measured: Measured
    served: Value
    exposure: Exposure
    explored: float


class LoopResult(ResultFile):
    """All weeks of all arms."""

    simulated: bool = True
    command: str | None
    environment: dict[str, Any]
    settings: LoopSettings
    weeks: list[Week]

    def of(self, arm: str) -> list[Week]:
        """The weeks of an arm, in order."""
        return [week for week in self.weeks if week.arm == arm]

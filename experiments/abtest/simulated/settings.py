"""What a simulated experiment is: decided once, kept in `run.json`, and the same after a restart."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from features.artifacts import StrictModel

CONTROL, TREATMENT, HOLDOUT = "control", "treatment", "holdout"
POLICIES = (CONTROL, TREATMENT)


class RunSettings(StrictModel):
    """Everything that decides the result but the files and servers themselves.

    Attributes:
        control, treatment: a package, or the URL of a model.
        holdout: share of consumers who are served by the control and stay out of the comparison.
        treatment_share: of all other consumers.
        searches_per_day: None is as many as the world's log had on average.
        luck: another number is other ten days of the same world.
        explore: share of searches whose first position is drawn.
    """

    world: Path
    control: str
    treatment: str
    days: Annotated[int, Field(ge=1)] = 10
    searches_per_day: Annotated[int, Field(ge=1)] | None = None
    salt: str = "abtest"
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.02
    treatment_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    luck: Annotated[int, Field(ge=0)] = 0
    explore: Annotated[float, Field(ge=0, le=1)] = 0.0
    format: Literal["json", "arrow"] = "json"

    @property
    def shares(self) -> dict[str, float]:
        """Of each variant, in the order in which routing lays them out."""
        treated = (1 - self.holdout) * self.treatment_share
        shares = {CONTROL: 1 - self.holdout - treated, TREATMENT: treated}
        return shares | ({HOLDOUT: self.holdout} if self.holdout else {})

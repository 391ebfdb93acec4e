"""What was decided before an experiment began: `experiment.json`."""

import json
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator

from experiments.abtest.metrics import METRICS
from features.artifacts import StrictModel
from serving.scoring.routing import check_shares

DESCRIPTION = "experiment.json"


class ExperimentError(ValueError):
    """An experiment that cannot be analysed; the message names the table, the column and what to do."""


class Allowed(StrictModel):
    """How much worse a challenger may be and still be shipped: decided before the experiment, never after.

    `revenue_loss` and `latency_p99` are relative; `error_share` is a difference of shares.
    """

    revenue_loss: float = Field(default=0.02, ge=0)
    latency_p99: float = Field(default=0.10, ge=0)
    error_share: float = Field(default=0.001, ge=0)


class Description(StrictModel):
    """`experiment.json`: what was decided before the first day, and for simulated worlds the truth."""

    simulated: bool
    control: str
    treatment: str
    #: Planned share of each variant, others than those two included.
    shares: dict[str, float]
    #: Of `serving.scoring.routing`; None where units were drawn in another way.
    salt: str | None = None
    #: The metric that decides.
    primary: str = "ctr"
    #: After so many days the plain intervals count; before, and without a plan, the sequential ones.
    planned_days: int | None = Field(default=None, ge=1)
    #: The relative lift that the experiment was sized for.
    planned_lift: float | None = Field(default=None, gt=0)
    allowed: Allowed = Allowed()
    #: True relative lifts by metric, known for simulated worlds only.
    true_lift: dict[str, float] | None = None

    @field_validator("primary")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"must be one of {', '.join(METRICS)}")
        return name

    @model_validator(mode="after")
    def _two_variants(self) -> "Description":
        check_shares(self.shares)
        if self.control == self.treatment:
            raise ValueError("control and treatment must be two variants")
        for name in (self.control, self.treatment):
            if not self.shares.get(name):
                raise ValueError(f"shares has no share for {name!r}")
        if unknown := set(self.true_lift or {}) - set(METRICS):
            raise ValueError(f"true_lift knows {', '.join(METRICS)}, not {', '.join(sorted(unknown))}")
        return self

    @property
    def treatment_share(self) -> float:
        """Of the units of both compared variants, how many were to see the challenger."""
        control, treatment = self.shares[self.control], self.shares[self.treatment]
        return treatment / (control + treatment)

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """That of an experiment.

        Raises:
            ExperimentError: there is none, or it says something impossible.
        """
        path = folder / DESCRIPTION
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ExperimentError(
                f"{folder} is not an experiment: it has no {DESCRIPTION}; docs/abtest.md shows one"
            ) from None
        except ValidationError as invalid:
            first = invalid.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the file"
            raise ExperimentError(f"{path}, {key}: {first['msg'].removeprefix('Value error, ')}") from None
        except ValueError as error:
            raise ExperimentError(f"{path} is not JSON: {error}") from None

"""Small simulated experiments whose true lifts are known."""

from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from experiments.abtest.description import Description
from experiments.abtest.metrics import COUNTED

FIRST_DAY = date(2026, 3, 2)


def described(**changes: Any) -> Description:
    """Half of the units each, without a salt."""
    return Description.model_validate(
        {"simulated": True, "control": "champion", "treatment": "challenger"}
        | {"shares": {"champion": 0.5, "challenger": 0.5}}
        | changes
    )


def simulated_unit_days(
    rng: np.random.Generator,
    *,
    units: int = 400,
    days: int = 10,
    lift: float = 0.0,
    ctr: float = 0.1,
    heterogeneity: float = 0.5,
    before: bool = True,
    visits: float = 0.6,
    treatment_share: float = 0.5,
    unequal_days: float = 1.0,
) -> pa.Table:
    """Users with a CTR of their own who come on some days; the challenger multiplies each CTR by 1 + lift.

    Orders follow a third of the clicks, each click earns between 0.5 and 1.5, grades are 0 to 2.

    Args:
        unequal_days: by what the lift of the last day differs, as a factor, from that of the first.
    """
    treated_U = rng.permutation(units) < round(treatment_share * units)
    own_ctr_U = np.clip(ctr * np.exp(rng.normal(0, heterogeneity, units) - heterogeneity**2 / 2), 0, 0.6)
    activity_U = rng.gamma(2.0, 3.0, units)
    columns: dict[str, list[Any]] = {name: [] for name in ("unit", "variant", "day", *COUNTED)}
    lifts = lift * np.linspace(1.0, unequal_days, days)
    for day in range(days):
        came = np.flatnonzero(rng.random(units) < visits)
        impressions = 1 + rng.poisson(activity_U[came])
        chance = np.where(treated_U[came], own_ctr_U[came] * (1 + lifts[day]), own_ctr_U[came])
        clicks = rng.binomial(impressions, np.minimum(chance, 1.0))
        columns["unit"] += [f"u{unit:06d}" for unit in came]
        columns["variant"] += ["challenger" if treated_U[unit] else "champion" for unit in came]
        columns["day"] += [FIRST_DAY + timedelta(days=day)] * len(came)
        columns["searches"] += list(np.maximum(1, impressions // 4))
        columns["impressions"] += list(impressions)
        columns["clicks"] += list(clicks)
        columns["conversions"] += list(rng.binomial(clicks, 1 / 3))
        columns["revenue"] += list(clicks * rng.uniform(0.5, 1.5, len(came)))
        columns["relevance"] += list(rng.binomial(2 * impressions, 0.6))
        columns["errors"] += [0] * len(came)
    table = pa.table(columns)
    if not before:
        return table
    shown_U = rng.poisson(activity_U * visits * 14)
    clicked_U = rng.binomial(shown_U, own_ctr_U)
    rows = np.array([int(name[1:]) for name in columns["unit"]])
    for name, values_U in {
        "pre_impressions": shown_U,
        "pre_clicks": clicked_U,
        "pre_conversions": rng.binomial(clicked_U, 1 / 3),
        "pre_revenue": clicked_U * rng.uniform(0.5, 1.5, units),
    }.items():
        table = table.append_column(name, pa.array(values_U[rows]))
    return table.append_column(
        "segment_has_purchases", pa.array(["yes" if clicked_U[row] > 8 else "no" for row in rows])
    )

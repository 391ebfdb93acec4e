"""A/A tests: the whole way from users to p-values, where there is nothing to find.

The users of a past window are drawn again and again by the routing that serves (`serving.scoring.routing`),
each time with another salt. There is no difference, so p-values must be uniform: a wrong variance, a routing
that depends on the user, or units that are not independent would show.

Shapes: U users, R re-randomisations.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy import stats

from experiments.abtest.estimates import CONFIDENCE, aggregated, columns_of, estimate
from experiments.abtest.metrics import Metric
from experiments.abtest.past_windows import PastWindow
from features.progress import Progress, silent
from serving.scoring.routing import assign

RERANDOMISATIONS = 1000
#: More users would take longer and show the same.
MOST_USERS = 2000
_BINS = 20


class AaCheck(BaseModel):
    """p-values of tests without a difference: how many are below 5 %, and whether they are uniform."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    rerandomisations: int
    users: int
    below_level: float
    #: Kolmogorov and Smirnov's test of uniformity.
    ks_p: float
    #: Counts in twenty bins from 0 to 1.
    histogram: list[int]


def check_aa(
    metrics: Sequence[Metric],
    window: PastWindow,
    *,
    treatment_share: float = 0.5,
    rerandomisations: int = RERANDOMISATIONS,
    progress: Progress = silent,
) -> dict[str, AaCheck]:
    """Test each metric under every draw of users; a metric without any test is left out."""
    chosen = np.random.default_rng(0).permutation(len(window.users))[:MOST_USERS]
    users = [window.users[place] for place in chosen]
    shares = {"control": 1 - treatment_share, "treatment": treatment_share}
    p_values: dict[str, list[float]] = {metric.name: [] for metric in metrics}
    for draw in range(rerandomisations):
        treated_U = np.array([assign(user, f"aa {draw}", shares) == "treatment" for user in users])
        for metric in metrics:
            adjusted = window.has_past(metric)
            names = columns_of(metric, adjusted=adjusted)
            if not 2 <= treated_U.sum() <= len(users) - 2:
                continue
            control, treatment = (
                aggregated({name: window.sums[name][chosen[arm_U]] for name in names})
                for arm_U in (~treated_U, treated_U)
            )
            found = estimate(metric, control, treatment, adjusted=adjusted)
            if found is not None and found.p is not None:
                p_values[metric.name].append(found.p)
        progress("A/A tests", draw + 1, rerandomisations)
    return {name: _checked(found, len(users)) for name, found in p_values.items() if found}


def _checked(p_values: Sequence[float], users: int) -> AaCheck:
    counts, _ = np.histogram(p_values, bins=_BINS, range=(0, 1))
    return AaCheck(
        rerandomisations=len(p_values),
        users=users,
        below_level=float(np.mean(np.array(p_values) < 1 - CONFIDENCE)),
        ks_p=float(stats.kstest(p_values, "uniform").pvalue),
        histogram=[int(count) for count in counts],
    )

"""How far a second panel of people would agree with the first, where only each panel's mean grade is known.

Each of R raters says 1, 2 or 3; a pair's sum of R grades, from 0 to 2 R, is taken as beta-binomial: a pair
has a propensity drawn from a beta distribution, and its raters follow it independently. The fitted
distribution says what the sum of other raters would be. It is a model, and is called so.

Shapes: N pairs, S = 2 R + 1 sums, C = 3 grades.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from scipy.optimize import minimize
from scipy.stats import betabinom

from embeddings.evaluation.linear_probe import GroupedHits
from experiments.datasets.home_depot import grade_of
from features.inputs.tables import open_table

RATERS = 3
#: How far a mean may lie from a whole sum of grades; means of other numbers of raters are left out.
_CLOSE = 0.02


def panel_ceiling(data: Path) -> dict[str, float] | None:
    """Agreement of Home Depot's panels with panels like them, None for other data.

    A pair's `mean_grade` must be that of three raters; others, less than a hundredth, are left out.
    """
    source = data / "source.json"
    if not source.is_file() or "grade_limits" not in json.loads(source.read_text(encoding="utf-8")):
        return None
    table = open_table(data, "relevance", ["mean_grade", "source"]).to_table(columns=["mean_grade", "source"])
    means = table.filter(pc.equal(table.column("source"), "human")).column("mean_grade")
    return second_panel(means.to_numpy().astype(np.float64), grade_of, raters=RATERS)


def second_panel(
    mean_N: npt.NDArray[np.float64], grade_of: Callable[[float], int], *, raters: int
) -> dict[str, float]:
    """Agreement that the model expects between the given panels and others of the same size.

    Args:
        mean_N: mean grades from 1 to 3.
        grade_of: the grade 0, 1 or 2 that a mean becomes.
    """
    most = 2 * raters
    sum_N = (mean_N - 1) * raters
    whole_N = np.abs(sum_N - sum_N.round()) < _CLOSE * raters
    count_S = np.bincount(sum_N[whole_N].round().astype(np.int64), minlength=most + 1)
    sums_S = np.arange(most + 1)

    def surprise(logs: npt.NDArray[np.float64]) -> float:
        return float(-(count_S * betabinom.logpmf(sums_S, most, *np.exp(logs))).sum())

    first, second = np.exp(minimize(surprise, np.zeros(2), method="Nelder-Mead").x)
    again_SS = np.array([betabinom.pmf(sums_S, most, first + one, second + most - one) for one in sums_S])
    joint_SS = count_S[:, None] / count_S.sum() * again_SS
    grade_S = np.array([grade_of(1 + one / raters) for one in sums_S], np.int64)
    cells = np.arange(joint_SS.size)
    hits = GroupedHits(np.repeat(grade_S, len(sums_S)), np.tile(grade_S, len(sums_S)), cells)
    weights_RG = joint_SS.reshape(1, -1)
    return {
        "pairs": float(count_S.sum()),
        "macro_f1": float(hits.macro_f1(weights_RG)[0]),
        "kappa": float(hits.kappa(weights_RG, quadratic=False)[0]),
        "qwk": float(hits.kappa(weights_RG, quadratic=True)[0]),
        "modelled": 1.0,
        "raters": float(raters),
    }

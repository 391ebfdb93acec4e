"""First positions of a simulated experiment as logged decisions.

What is estimated: the chance of a click on the ad in the first position of a search. A target policy puts its
best ad there, by bid and its own score, among the candidates that could bid in that search. Exploration drew
the first ad of some searches, so every candidate had a known chance. Clicks at other positions do not count.

The reward model is the score of the policy that made the log, put on the scale of clicks by a logistic
regression that was fitted on other consumers.

Shapes: N decisions, C candidates of all decisions.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from experiments.abtest.offline.evaluation import LoggedTargets
from experiments.abtest.simulated.run import DAYS, read_settings
from experiments.abtest.simulated.settings import CONTROL, POLICIES, TREATMENT
from experiments.statistics.off_policy import Decisions, Target

DECISIONS = "decisions.parquet"
UNIFORM = "any candidate"

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def simulated_decisions(out: Path, *, policy: str = CONTROL) -> LoggedTargets:
    """Decisions of the consumers who were served by `policy` in the run `out`.

    Raises:
        ValueError: `out` is no run, explored nothing, or has no finished day.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy {policy!r} is none of {', '.join(POLICIES)}")
    settings = read_settings(out)
    if settings.explore == 0:
        raise ValueError(
            f"{out} explored nothing: its decisions have no chances. Run it again with --explore 0.1"
        )
    paths = sorted((out / DAYS).glob(f"*/{DECISIONS}"))
    if not paths:
        raise ValueError(f"{out} has no finished day yet")
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    treated = pc.equal(table["variant"], TREATMENT)  # the holdout has the control
    return decisions_of(table.filter(treated if policy == TREATMENT else pc.invert(treated)), policy=policy)


def decisions_of(table: pa.Table, *, policy: str) -> LoggedTargets:
    """The decisions in a table of `decisions.parquet`, all made by `policy`."""
    size_N = pc.list_value_length(table["product_ids"]).to_numpy().astype(np.int64)
    start_N = np.cumsum(size_N) - size_N
    row_C = np.repeat(np.arange(len(size_N)), size_N)

    def flat(name: str) -> FloatArray:
        return pc.list_flatten(table[name]).to_numpy().astype(np.float64)

    bid_C, truth_C = flat("bids"), flat("true_probabilities")
    done_N = start_N + table["action"].to_numpy().astype(np.int64)
    unit_N = table["unit"].to_numpy().astype(np.int64)
    reward_N = table["clicked"].to_numpy().astype(np.float64)
    predicted_C = calibrated(flat(f"{policy}_scores"), row_C, done_N, reward_N, unit_N)
    targets, truth = {}, {}
    for name in POLICIES:
        best_N = first_best(bid_C * flat(f"{name}_scores"), row_C, start_N)
        targets[name] = Target((best_N == done_N).astype(np.float64), predicted_C[best_N])
        truth[name] = float(truth_C[best_N].mean())
    targets[UNIFORM] = Target(1 / size_N, np.add.reduceat(predicted_C, start_N) / size_N)
    truth[UNIFORM] = float((np.add.reduceat(truth_C, start_N) / size_N).mean())
    return LoggedTargets(
        title=f"clicks on the first position, from searches served by the {policy}",
        logged=Decisions(
            reward_N=reward_N,
            propensity_N=table["propensity"].to_numpy(),
            group_N=unit_N,
            predicted_N=predicted_C[done_N],
        ),
        targets=targets,
        truth=truth,
        baseline=CONTROL,
        simulated=True,
    )


def first_best(value_C: FloatArray, row_C: IntArray, start_N: IntArray) -> IntArray:
    """Of each decision the candidate of the highest value, the first one of equals."""
    order = np.lexsort((np.arange(len(value_C)), -value_C, row_C))
    return order[start_N]


def calibrated(
    score_C: FloatArray, row_C: IntArray, done_N: IntArray, reward_N: FloatArray, unit_N: IntArray
) -> FloatArray:
    """Scores as click probabilities; those of a consumer never come from the same consumer's clicks."""
    from sklearn.linear_model import LogisticRegression

    clipped_C = np.clip(score_C, 1e-6, 1 - 1e-6)
    logit_C = np.log(clipped_C / (1 - clipped_C))
    half_N = unit_N % 2
    probability_C = np.full(len(score_C), float(reward_N.mean()))
    for half in (0, 1):
        fitted = half_N != half
        if 0 < reward_N[fitted].sum() < fitted.sum():
            model = LogisticRegression(C=np.inf).fit(logit_C[done_N[fitted], None], reward_N[fitted])
            mine = half_N[row_C] == half
            probability_C[mine] = model.predict_proba(logit_C[mine, None])[:, 1]
    return probability_C

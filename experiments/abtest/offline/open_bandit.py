"""Open Bandit as logged decisions: what would products shown at random have earned?

The bandit's log has the chance of every decision; the target shows each product alike, so its chances are
known, too; and the data set holds a log in which this was done, whose click rate is the truth. The reward is
a click on one impression, whatever its position.

The reward model is the click rate of product and position, drawn towards the mean, in the other half of
the log.

Shapes: N impressions, P products, L positions.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from experiments.abtest.offline.evaluation import LoggedTargets
from experiments.statistics.off_policy import Decisions, Target
from features.inputs.tables import InputTables

PROPENSITY = "propensity_score"
RANDOM = "any product"
#: Impressions at the mean that each click rate of the reward model is mixed with.
_PRIOR_IMPRESSIONS = 100.0

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def open_bandit_decisions(data: Path, *, reference: Path | None = None) -> LoggedTargets:
    """The decisions of a log that `dashclip import open-bandit` wrote.

    Args:
        reference: the log of the random policy: its click rate is the truth.

    Raises:
        ValueError: a log has no propensities, or the reference was not drawn at random.
    """
    logged = _impressions(data)
    products = InputTables.open(data).table("products").to_table(["product_id"])["product_id"]
    product_N = pc.index_in(logged["product_id"], products.combine_chunks()).to_numpy().astype(np.int64)
    position_N = np.unique(logged["position"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    reward_N = logged["clicked"].to_numpy().astype(np.float64)
    propensity_N = logged[PROPENSITY].to_numpy().astype(np.float64)
    predicted_N, any_N = click_rates(product_N, position_N, reward_N, products=len(products))
    truth = {}
    if reference is not None:
        shown = _impressions(reference)
        chance_N = shown[PROPENSITY].to_numpy()
        if not np.allclose(chance_N, 1 / len(products), rtol=0.01):
            raise ValueError(
                f"{reference} was not shown at random: its propensities go from {chance_N.min():.4g} to "
                f"{chance_N.max():.4g}, those of {len(products)} products shown alike are "
                f"{1 / len(products):.4g}; import the policy `random`"
            )
        truth[RANDOM] = float(shown["clicked"].cast(pa.float64()).to_numpy().mean())
    return LoggedTargets(
        title=f"clicks on an impression, from {data}",
        logged=Decisions(
            reward_N=reward_N,
            propensity_N=propensity_N,
            group_N=np.arange(len(reward_N)),  # users are anonymous
            predicted_N=predicted_N,
        ),
        targets={RANDOM: Target(np.full(len(reward_N), 1 / len(products)), any_N)},
        truth=truth,
        baseline=None,
        simulated=False,
    )


def click_rates(
    product_N: IntArray, position_N: IntArray, reward_N: FloatArray, *, products: int
) -> tuple[FloatArray, FloatArray]:
    """Expected reward of what was shown, and of any product at that position, from the other half each."""
    positions = int(position_N.max()) + 1
    half_N = np.arange(len(reward_N)) % 2
    predicted_N, any_N = np.zeros(len(reward_N)), np.zeros(len(reward_N))
    cell_N = position_N * products + product_N
    for half in (0, 1):
        fitted, mine = half_N != half, half_N == half
        clicks = np.bincount(cell_N[fitted], weights=reward_N[fitted], minlength=positions * products)
        shown = np.bincount(cell_N[fitted], minlength=positions * products)
        mean = float(reward_N[fitted].mean()) if fitted.any() else 0.0
        rate = (clicks + _PRIOR_IMPRESSIONS * mean) / (shown + _PRIOR_IMPRESSIONS)
        predicted_N[mine] = rate[cell_N[mine]]
        any_N[mine] = rate.reshape(positions, products).mean(axis=1)[position_N[mine]]
    return predicted_N, any_N


def _impressions(data: Path) -> pa.Table:
    tables = InputTables.open(data)
    if PROPENSITY not in tables.columns("impressions"):
        raise ValueError(
            f"{data} has no column {PROPENSITY!r} of chances in its impressions: give what `dashclip import "
            "open-bandit` wrote, or the folder of `dashclip abtest run --explore`"
        )
    return tables.table("impressions").to_table(["product_id", "position", "clicked", PROPENSITY])

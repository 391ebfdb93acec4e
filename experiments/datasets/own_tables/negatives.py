"""Constructed impressions of a log of purchases: each purchase a click, beside it products not bought.

Nobody saw these impressions. What is drawn for a moment depends on purchases before it alone: a candidate is
a product that somebody bought earlier. That holds of clicks, too: a product's first purchase makes no
impression, else a product without past would always be a click.

Shapes: N purchases in time order, P products, M impressions, K negatives beside a click.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from experiments.datasets.own_tables.mapping import ConstructedImpressions

#: How often a draw is repeated that the user bought at that moment, or that was drawn already.
_ROUNDS = 20

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Constructed:
    """Rows by time; `purchase_M` is the purchase whose user and moment an impression has."""

    purchase_M: Ints
    product_M: Ints
    clicked_M: npt.NDArray[np.int8]
    #: Purchases without impression: of a product that nobody had bought before, or the same row again.
    first_of_product: int
    repeated: int
    #: Negatives that are fewer than asked for, as too few products were known.
    missing_negatives: int


def construct_impressions(
    user_N: Ints, product_N: Ints, time_N: Ints, settings: ConstructedImpressions
) -> Constructed:
    """Impressions of purchases in time order; users and products are numbered from 0.

    Equal settings and purchases give equal impressions.
    """
    generator = np.random.default_rng(settings.seed)
    earlier_N = np.searchsorted(time_N, time_N, side="left")  # purchases before that moment
    seen_P, first_P = np.unique(product_N, return_index=True)
    order_P = np.argsort(first_P, kind="stable")
    by_first_P, first_time_P = seen_P[order_P], time_N[first_P[order_P]]
    known_N = np.searchsorted(first_time_P, time_N, side="left")  # products before that moment
    first_time_of = dict(zip(by_first_P.tolist(), first_time_P.tolist(), strict=True))
    new_N = np.array([first_time_of[product] for product in product_N.tolist()]) == time_N

    basket_N = _numbered(user_N, time_N)
    width = int(product_N.max()) + 1 if len(product_N) else 1
    bought_N = basket_N * width + product_N
    _, once = np.unique(bought_N, return_index=True)
    single_N = np.zeros(len(user_N), dtype=bool)
    single_N[once] = True

    click_C = np.flatnonzero(single_N & ~new_N)
    shape = (len(click_C), settings.negatives)
    drawn_CK = np.full(shape, -1, dtype=np.int64)
    taken = np.unique(bought_N)
    for _ in range(_ROUNDS):
        row, column = np.nonzero(drawn_CK < 0)
        if not len(row):
            break
        click = click_C[row]
        if settings.draw == "popular":
            draw = product_N[(generator.random(len(row)) * earlier_N[click]).astype(np.int64)]
        else:
            draw = by_first_P[(generator.random(len(row)) * known_N[click]).astype(np.int64)]
        own = np.isin(basket_N[click] * width + draw, taken)
        drawn_CK[row, column] = np.where(own, -1, draw)
        _forget_repeated(drawn_CK)
    row, column = np.nonzero(drawn_CK >= 0)
    purchase_M = np.concatenate([click_C, click_C[row]])
    product_M = np.concatenate([product_N[click_C], drawn_CK[row, column]])
    clicked_M = np.concatenate([np.ones(len(click_C), np.int8), np.zeros(len(row), np.int8)])
    # The place within a moment tells nothing.
    shuffled = generator.permutation(len(purchase_M))
    order = shuffled[np.argsort(time_N[purchase_M[shuffled]], kind="stable")]
    return Constructed(
        purchase_M[order],
        product_M[order],
        clicked_M[order],
        first_of_product=int((new_N & single_N).sum()),
        repeated=int((~single_N).sum()),
        missing_negatives=int(drawn_CK.size - len(row)),
    )


def _numbered(user_N: Ints, time_N: Ints) -> Ints:
    """One number for each user and moment."""
    if not len(user_N):
        return np.zeros(0, dtype=np.int64)
    _, moment_N = np.unique(time_N, return_inverse=True)
    _, number_N = np.unique(user_N * (int(moment_N.max()) + 1) + moment_N, return_inverse=True)
    return number_N.astype(np.int64)


def _forget_repeated(drawn_CK: Ints) -> None:
    """Keep the first of equal draws beside a click, in place."""
    order_CK = np.argsort(drawn_CK, axis=1, kind="stable")
    sorted_CK = np.take_along_axis(drawn_CK, order_CK, axis=1)
    again_CK = np.zeros_like(sorted_CK, dtype=bool)
    again_CK[:, 1:] = sorted_CK[:, 1:] == sorted_CK[:, :-1]
    np.put_along_axis(drawn_CK, order_CK, np.where(again_CK, -1, sorted_CK), axis=1)

"""Search and purchase logs for measuring feature builds: heavy tails, ties in time and edge instants.

Slates of 1 to 5 ads share one moment, orders of 1 to 4 products share one moment, 40 % of the purchases
repeat one of the user's four favourites, clicks come up to half an hour after their impression. Some
purchases fall exactly on a moment where the history window opens or closes.

Shapes: N impressions, P purchases, U users.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.artifacts import atomic_folder
from features.columns.clock import DAY_US
from features.progress import Progress, silent

Ints = NDArray[np.int64]

TIME = pa.timestamp("us", tz="UTC")
#: 2025-01-01 00:00 UTC.
START_US = 1_735_689_600_000_000
_SECOND_US = 1_000_000

# What features of these logs are built with, by us and by pandas.
WINDOWS_DAYS = (1, 7, 28)
HISTORY_DAYS = 84
VALIDATION_DAYS = 7
TEST_DAYS = 7
PRIOR_IMPRESSIONS = 20.0
#: The module that builds ours.
BUILD = f"{__package__}.build_runner"
#: One purchase in so many is moved to an edge instant of one of its user's impressions.
_EDGE_EVERY = 200


@dataclass(frozen=True)
class LogSize:
    """How large the logs are. Users have 25 impressions on average, whatever the number of impressions."""

    impressions: int
    purchases: int
    products: int = 50_000
    queries: int = 30_000
    days: int = 240
    history_days: int = HISTORY_DAYS

    @property
    def users(self) -> int:
        return max(1, self.impressions // 25)


def write_feature_logs(folder: Path, size: LogSize, *, seed: int, progress: Progress = silent) -> None:
    """Write `products`, `impressions` and `purchases` to `folder`, whole or not at all, in time order."""
    if min(size.impressions, size.purchases) < 1:
        raise ValueError(f"logs need at least one impression and one purchase, but {size} was asked for")
    generator = np.random.default_rng(seed)
    progress("drawing impressions", 0, 4)
    user_weights_U = np.cumsum(generator.lognormal(0.0, 1.5, size.users))
    impressions = _draw_impressions(size, user_weights_U, generator)
    progress("drawing purchases", 1, 4)
    purchases = _draw_purchases(size, user_weights_U, impressions, generator)
    progress("writing impressions", 2, 4)
    queries = pa.array([f"query {number}" for number in range(size.queries)])
    numbers = np.arange(size.products)
    with atomic_folder(folder) as target:
        write_table(
            target / "impressions.parquet",
            {
                "impression_id": np.arange(size.impressions),
                "timestamp": pa.array(impressions["timestamp_us"], TIME),
                "user_id": impressions["user"],
                "query": pa.DictionaryArray.from_arrays(pa.array(impressions["query"], pa.int32()), queries),
                "product_id": impressions["product"],
                "clicked": impressions["clicked"],
                "click_timestamp": pa.array(impressions["click_us"], TIME, mask=impressions["clicked"] == 0),
            },
        )
        progress("writing purchases", 3, 4)
        write_table(
            target / "purchases.parquet",
            {
                "timestamp": pa.array(purchases["timestamp_us"], TIME),
                "user_id": purchases["user"],
                "product_id": purchases["product"],
                "purchase_id": np.arange(size.purchases),
            },
        )
        write_table(
            target / "products.parquet",
            {
                "product_id": numbers,
                "title": [f"product {number}" for number in numbers],
                "aisle": [f"aisle {number % 50}" for number in numbers],
            },
        )
    progress("writing purchases", 4, 4)


def write_table(path: Path, columns: dict[str, Any]) -> None:
    """A Parquet file of a log. Its types are those of Parquet: a dictionary is read as its values."""
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=131_072, store_schema=False)


def _draw_impressions(
    size: LogSize, user_weights_U: NDArray[np.float64], generator: np.random.Generator
) -> dict[str, NDArray[np.generic]]:
    slates = -(-size.impressions // 2)  # more than enough: a slate has three ads on average
    ads_S = generator.integers(1, 6, slates)
    slate_N = np.repeat(np.arange(slates), ads_S)[: size.impressions]
    assert len(slate_N) == size.impressions, "fewer ads than impressions were drawn"
    seconds_S = np.sort(generator.integers(0, size.days * 86_400, slate_N[-1] + 1))
    timestamp_us_N = START_US + seconds_S[slate_N] * _SECOND_US
    clicked_N = (generator.random(size.impressions) < 0.06).astype(np.int8)
    delay_us_N = generator.integers(1, 1_801, size.impressions) * _SECOND_US
    return {
        "timestamp_us": timestamp_us_N,
        "user": draw(user_weights_U, slates, generator)[slate_N],
        "query": draw(zipf(size.queries, 1.0), slates, generator)[slate_N],
        "product": draw(zipf(size.products, 0.9), size.impressions, generator),
        "clicked": clicked_N,
        "click_us": timestamp_us_N + delay_us_N,
    }


def _draw_purchases(
    size: LogSize,
    user_weights_U: NDArray[np.float64],
    impressions: dict[str, NDArray[np.generic]],
    generator: np.random.Generator,
) -> dict[str, Ints]:
    orders = -(-size.purchases * 2 // 3)
    items_O = generator.integers(1, 5, orders)
    order_P = np.resize(np.repeat(np.arange(orders), items_O), size.purchases)
    seconds_O = generator.integers(-size.history_days * 86_400, size.days * 86_400, orders)
    timestamp_us_P = START_US + seconds_O[order_P] * _SECOND_US
    user_P = draw(user_weights_U, orders, generator)[order_P]
    product_P = draw(zipf(size.products, 0.9), size.purchases, generator)
    favourites_UK = draw(zipf(size.products, 0.9), size.users * 4, generator).reshape(size.users, 4)
    repeats_P = generator.random(size.purchases) < 0.4
    product_P[repeats_P] = favourites_UK[user_P, generator.integers(0, 4, size.purchases)][repeats_P]

    edges = max(1, size.purchases // _EDGE_EVERY)
    edge_P = generator.choice(size.purchases, edges, replace=False)
    seen_P = generator.integers(0, size.impressions, edges)
    window_us = size.history_days * DAY_US
    offset_us_P = generator.choice([0, window_us, window_us + _SECOND_US, _SECOND_US], edges)
    user_P[edge_P] = impressions["user"][seen_P]
    timestamp_us_P[edge_P] = impressions["timestamp_us"][seen_P] - offset_us_P
    in_time_P = np.argsort(timestamp_us_P, kind="stable")
    return {
        "timestamp_us": timestamp_us_P[in_time_P],
        "user": user_P[in_time_P],
        "product": product_P[in_time_P],
    }


def zipf(size: int, exponent: float) -> NDArray[np.float64]:
    """Cumulative weights of ranks 1 ... size."""
    cumulative: NDArray[np.float64] = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    return cumulative


def draw(cumulative: NDArray[np.float64], count: int, generator: np.random.Generator) -> Ints:
    """`count` positions with the probabilities whose running total is given."""
    drawn = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right")
    return np.minimum(drawn, len(cumulative) - 1)

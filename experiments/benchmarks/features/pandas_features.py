"""The same history offsets and counters as our feature build, written with pandas and NumPy: the peer.

It is the fastest pandas formulation known to us: `merge_asof` on running totals for the counters (a count in
[t - w, t) is the running total before t less that before t - w), `merge_asof` on positions for the histories,
everything in memory. It runs as a process of its own, `python -m
experiments.benchmarks.features.pandas_features LOGS OUT`.

Shapes: N impressions, E purchase events.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from experiments.benchmarks.features.feature_logs import (
    HISTORY_DAYS,
    PRIOR_IMPRESSIONS,
    TEST_DAYS,
    VALIDATION_DAYS,
    WINDOWS_DAYS,
)
from features.columns.clock import DAY_US

Ints = NDArray[np.int64]

ROW_GROUP = 65_536


def main() -> None:
    """Build features from LOGS into OUT."""
    pandas_features(Path(sys.argv[1]), Path(sys.argv[2]))


def pandas_features(logs: Path, out: Path) -> None:
    """Read `impressions`, `purchases` and `products` and write the feature set's row files and history."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    frame, query_ids = _impressions(logs)
    purchases = pd.read_parquet(logs / "purchases.parquet")
    products = np.sort(pq.read_table(logs / "products.parquet", columns=["product_id"])[0].to_numpy())
    users = np.union1d(frame["user_id"].to_numpy(), purchases["user_id"].to_numpy())
    frame["product_index"] = np.searchsorted(products, frame.pop("product_id")).astype(np.int32)
    frame["user_index"] = np.searchsorted(users, frame.pop("user_id")).astype(np.int32)
    time_us_N = frame["timestamp"].astype("int64").to_numpy()
    click_us_N = frame.pop("click_timestamp").astype("int64").to_numpy()
    split_N, ends_us_N = _splits(time_us_N)

    events = _events(purchases, users, products, out)
    del purchases
    frame["history_end"] = _position_before(events, frame["user_index"].to_numpy(), time_us_N)
    frame["history_start"] = _position_before(
        events, frame["user_index"].to_numpy(), time_us_N - HISTORY_DAYS * DAY_US
    )
    del events

    clicked_N = frame["clicked"].to_numpy() == 1
    train_N = split_N == 0
    # A label leaves out clicks after its split; the logs have none later than half an hour.
    label_N = clicked_N & (click_us_N < ends_us_N)
    frame["clicked"] = label_N.astype(np.int8)
    prior_ctr = label_N[train_N].mean()
    keys = {
        "query": frame["query_index"].to_numpy().astype(np.int64),
        "product": frame["product_index"].to_numpy().astype(np.int64),
        "user": frame["user_index"].to_numpy().astype(np.int64),
        "query_product": frame["query_index"].to_numpy().astype(np.int64) * len(products)
        + frame["product_index"].to_numpy(),
    }
    counters: dict[str, NDArray[np.float32]] = {}
    moments: dict[str, tuple[float, float]] = {}
    for name, key_N in keys.items():
        shown = _WindowCounts(key_N, time_us_N, time_us_N, key_N)
        clicks = _WindowCounts(key_N[clicked_N], click_us_N[clicked_N], time_us_N, key_N)
        for days in WINDOWS_DAYS:
            shown_N, clicks_N = shown.within(days), clicks.within(days)
            ctr_N = (clicks_N + PRIOR_IMPRESSIONS * prior_ctr) / (shown_N + PRIOR_IMPRESSIONS)
            for quantity, value_N in (
                ("impressions", np.log1p(shown_N, dtype=np.float64)),
                ("clicks", np.log1p(clicks_N, dtype=np.float64)),
                ("ctr", ctr_N),
            ):
                column = f"{name}_{quantity}_{days}d"
                counters[column], moments[column] = _standardised(value_N, train_N)
    frame = frame.assign(**counters, **_slices(frame, train_N, len(products), len(query_ids)))
    del counters
    (out / "moments.json").write_text(json.dumps(moments), encoding="utf-8")
    for code, split in enumerate(("train", "validation", "test")):
        folder = out / split
        folder.mkdir(parents=True)
        pq.write_table(
            pa.Table.from_pandas(frame[split_N == code], preserve_index=False),
            folder / "part-00000.parquet",
            row_group_size=ROW_GROUP,
            compression="zstd",
            use_dictionary=False,
        )


class _WindowCounts:
    """How many events of the same key fall in [t - w, t), for each impression."""

    def __init__(self, event_key_E: Ints, event_us_E: Ints, at_us_N: Ints, at_key_N: Ints) -> None:
        order_E = np.argsort(event_us_E, kind="stable")
        events = pd.DataFrame({"time_us": event_us_E[order_E], "key": event_key_E[order_E]})
        events["total"] = (events.groupby("key").cumcount() + 1).astype(np.int32)
        self._events = events
        self._at = pd.DataFrame({"time_us": at_us_N, "key": at_key_N})
        self._before_N = self._total_before(0)

    def within(self, days: int) -> NDArray[np.int32]:
        """Counts of the window that ends at the impression."""
        return self._before_N - self._total_before(days * DAY_US)

    def _total_before(self, back_us: int) -> NDArray[np.int32]:
        at = self._at if back_us == 0 else self._at.assign(time_us=self._at["time_us"] - back_us)
        joined = pd.merge_asof(at, self._events, on="time_us", by="key", allow_exact_matches=False)
        return joined["total"].fillna(0).to_numpy().astype(np.int32)


def _impressions(logs: Path) -> tuple[pd.DataFrame, NDArray[np.object_]]:
    """Impressions in (timestamp, impression_id) order with `query_index` for the query, and the queries."""
    frame = pd.read_parquet(logs / "impressions.parquet")
    frame = frame.sort_values(["timestamp", "impression_id"], ignore_index=True)
    codes, queries = pd.factorize(frame.pop("query"), sort=True)
    frame["query_index"] = codes.astype(np.int32)
    return frame, np.asarray(queries, dtype=object)


def _splits(time_us_N: Ints) -> tuple[NDArray[np.int8], Ints]:
    """0 train, 1 validation, 2 test: whole days from the end of the log; and when the next split starts."""
    end_day = time_us_N[-1] // DAY_US + 1
    test_day = end_day - TEST_DAYS
    starts = np.array([test_day - VALIDATION_DAYS, test_day]) * DAY_US
    split_N = np.searchsorted(starts, time_us_N, side="right").astype(np.int8)
    return split_N, np.append(starts, np.iinfo(np.int64).max)[split_N]


def _events(purchases: pd.DataFrame, users: Ints, products: Ints, out: Path) -> pd.DataFrame:
    """Write the history arrays; return the events in time order with their position in the arrays."""
    purchases = purchases.sort_values(["user_id", "timestamp", "purchase_id"], ignore_index=True)
    user_E = np.searchsorted(users, purchases["user_id"])
    events = pd.DataFrame(
        {
            "user": user_E.astype(np.int32),
            "time_us": purchases["timestamp"].astype("int64"),
            "product": np.searchsorted(products, purchases["product_id"]).astype(np.int32),
        }
    )
    count = len(events)
    position_E = pd.Series(np.arange(count))
    following_E = position_E.groupby([events["user"], events["product"]]).shift(-1, fill_value=count)
    history = out / "history"
    history.mkdir(parents=True)
    starts = np.searchsorted(user_E, np.arange(len(users) + 1))
    np.save(history / "user_start.npy", starts)
    np.save(history / "product_index.npy", events["product"].to_numpy())
    np.save(history / "timestamp_us.npy", events["time_us"].to_numpy())
    np.save(history / "next_same_product.npy", following_E.to_numpy().astype(np.int32))
    events["end"] = np.arange(1, count + 1, dtype=np.int32)
    events.attrs["starts"] = starts
    return events.sort_values("time_us", kind="stable", ignore_index=True)


def _position_before(events: pd.DataFrame, user_N: NDArray[np.int32], time_us_N: Ints) -> NDArray[np.int32]:
    """End of the user's events before each moment; the user's first position where there are none."""
    at = pd.DataFrame({"time_us": time_us_N, "user": user_N})
    joined = pd.merge_asof(
        at, events[["time_us", "user", "end"]], on="time_us", by="user", allow_exact_matches=False
    )
    end_N = joined["end"].to_numpy()
    first_N = events.attrs["starts"][user_N]
    return np.where(np.isnan(end_N), first_N, end_N).astype(np.int32)


def _standardised(
    value_N: NDArray[np.float64], train_N: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """(x - mean) / sd of the training rows, and both; zeros where the training rows are all equal."""
    seen_N = value_N[train_N]
    mean, sd = float(seen_N.mean()), float(seen_N.std())
    if sd == 0:
        return np.zeros(len(value_N), np.float32), (mean, sd)
    return ((value_N - mean) / sd).astype(np.float32), (mean, sd)


def _slices(
    frame: pd.DataFrame, train_N: NDArray[np.bool_], products: int, queries: int
) -> dict[str, NDArray[np.generic]]:
    """Has purchases, product seen in training, query frequency (0 tail, 1 torso, 2 head)."""
    product_N, query_N = frame["product_index"].to_numpy(), frame["query_index"].to_numpy()
    seen_product = np.bincount(product_N[train_N], minlength=products) > 0
    traffic_Q = np.bincount(query_N[train_N], minlength=queries)
    order_Q = np.argsort(-traffic_Q, kind="stable")
    before_Q = np.cumsum(traffic_Q[order_Q]) - traffic_Q[order_Q]
    frequency_Q = np.zeros(queries, np.int8)
    frequency_Q[order_Q] = np.where(before_Q < 0.5 * traffic_Q.sum(), 2, before_Q < 0.9 * traffic_Q.sum())
    frequency_Q[traffic_Q == 0] = 0
    return {
        "slice_has_purchases": (frame["history_end"] > frame["history_start"]).to_numpy(),
        "slice_seen_product": seen_product[product_N],
        "slice_query_frequency": frequency_Q[query_N],
    }


if __name__ == "__main__":
    main()

"""Logged impressions as the requests that would have shown them: parity of served and offline scores.

A feature set stores what the network reads; here the counters go back to whole numbers, ids and live columns
come from the log, and the purchases are those that the impression saw. A server that gets all this must give
the offline score, whatever its snapshot says.

Shapes: M impressions, N candidates of a request.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.columns.counters import counter_names, smoothed_ctr
from features.columns.transforms import Transform
from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.online.plan import SHARED_KEYS, impression_columns
from features.online.request import MAX_CANDIDATES, MAX_HISTORY, ScoreRequest
from features.progress import Progress, silent
from features.schema import CounterKey, FeatureConfig


@dataclass(frozen=True)
class LoggedRequest:
    """One request, and where its impressions lie in the split: `rows_N[i]` is candidate i."""

    request: ScoreRequest
    rows_N: npt.NDArray[np.int64]


class LoggedImpressions:
    """One split of a feature set beside its log."""

    def __init__(
        self,
        feature_set: FeatureSet,
        tables: InputTables,
        *,
        context: Sequence[str],
        split: str = "test",
        prior_ctr: float | None = None,
        progress: Progress = silent,
    ) -> None:
        """
        Args:
            tables: the log that the feature set was built from.
            context: impression columns that a request gives once; impressions that differ in one are
                different requests.
            prior_ctr: towards which click-through rates are smoothed; as the feature set has it if None.

        Raises:
            ValueError: an impression of the split is not in the log.
        """
        self._config = feature_set.manifest.config
        self._context = tuple(context)
        progress("reading the log", 0, 2)
        self.rows = pa.concat_tables(pq.read_table(path) for path in feature_set.split_files(split))
        progress("reading the log", 1, 2)
        self._log = _log_columns(tables, self.rows, impression_columns(self._config))
        progress("reading the log", 2, 2)
        self._users = feature_set.user_ids()
        self._queries = feature_set.queries()
        self._products = feature_set.catalog_ids()
        self._counters = _raw_counters(
            self.rows,
            self._config,
            feature_set.manifest.transforms,
            prior_ctr=feature_set.manifest.counter_prior_ctr if prior_ctr is None else prior_ctr,
        )
        self._events = feature_set.history_product_index() if self._config.history else None

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self) -> list[npt.NDArray[np.int64]]:
        """Rows of each request: impressions of one user, query, moment and context; in the split's order.

        More than a request may hold, as of nobody in a log of whole hours, are several requests.
        """
        time_us_M = self.rows["timestamp"].cast(pa.int64()).to_numpy()
        keys = [_code(self.rows[name].to_numpy()) for name in ("user_index", "query_index")]
        keys += [_code(time_us_M)]
        keys += [_code_arrow(self._log[name]) for name in self._context if name in self._log.column_names]
        _, request_M = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
        order = np.argsort(request_M, kind="stable")
        cuts = np.flatnonzero(np.diff(request_M[order])) + 1
        whole = np.split(order, cuts) if len(order) else []
        groups = [
            rows_N[first : first + MAX_CANDIDATES].astype(np.int64)
            for rows_N in whole
            for first in range(0, len(rows_N), MAX_CANDIDATES)
        ]
        return sorted(groups, key=lambda rows_N: int(rows_N[0]))

    def request(self, rows_N: npt.NDArray[np.int64], *, live: bool = True) -> ScoreRequest:
        """The request of these rows.

        Args:
            live: with the counters and purchases that the impressions saw; without, the server's snapshot
                has to know them.
        """
        first = int(rows_N[0])
        index = {name: int(self.rows[f"{name}_index"][first].as_py()) for name in ("user", "query")}
        context: dict[str, Any] = {}
        columns: dict[str, Any] = {}
        taken = self._log.take(pa.array(rows_N))
        for name in taken.column_names:
            if name in self._context:
                context[name] = taken[name][0].as_py()
            else:
                columns[name] = _candidate_column(taken[name])
        if live:
            for key, counters in self._counters.items():
                for name, value_M in counters.items():
                    if key in SHARED_KEYS:
                        context[name] = value_M[first].item()
                    else:
                        columns[name] = value_M[rows_N]
        product_N = self._products.take(self.rows["product_index"].take(pa.array(rows_N)).combine_chunks())
        return ScoreRequest(
            user_id=self._users[index["user"]].as_py() if index["user"] >= 0 else None,
            query=self._queries[index["query"]].as_py() if index["query"] >= 0 else None,
            candidates=product_N,
            timestamp_us=int(self.rows["timestamp"][first].cast(pa.int64()).as_py()),
            context=context,
            candidate_columns=columns,
            history=self._history(first) if live else None,
        )

    def requests(self, *, live: bool = True, limit: int | None = None) -> Iterator[LoggedRequest]:
        """All requests in time order, or `limit` of them spread evenly over the split."""
        for rows_N in spread(self.groups(), limit):
            yield LoggedRequest(self.request(rows_N, live=live), rows_N)

    def offline_probabilities(self, run_folder: Path) -> npt.NDArray[np.float64]:
        """What a run predicted for each impression of the split [M].

        Raises:
            ValueError: the run has no predictions, or predicted other impressions.
        """
        path = run_folder / "predictions" / "test.parquet"
        if not path.is_file():
            raise ValueError(f"{path} is missing: the run is not finished; train it to the end first")
        predicted = pq.read_table(path, columns=["impression_id", "logit"])
        if not predicted["impression_id"].equals(self.rows["impression_id"]):
            raise ValueError(
                f"{path} is not of the test split of the feature set; give the run that was made with it"
            )
        logit_M = predicted["logit"].to_numpy().astype(np.float64)
        return 1 / (1 + np.exp(-logit_M))

    def _history(self, row: int) -> pa.Array | None:
        if self._events is None:
            return None
        start, end = (int(self.rows[f"history_{side}"][row].as_py()) for side in ("start", "end"))
        newest_first = np.asarray(self._events[start:end])[::-1][:MAX_HISTORY]
        return self._products.take(pa.array(newest_first))


def spread(groups: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` of these, evenly spaced from first to last; all if None. Five of ten: 0, 2, 4, 7, 9."""
    if limit is None or limit >= len(groups):
        return list(groups)
    positions = np.linspace(0, len(groups) - 1, limit).round().astype(int)
    return [groups[position] for position in positions]


def raw_counts(transform: Transform, value_M: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The counts whose logged and standardised values these are; exact up to about 100,000."""
    if transform.sd == 0:  # the network reads 0 whatever the count
        return np.full(len(value_M), round(float(np.expm1(transform.mean))), np.int64)
    return np.rint(np.expm1(value_M.astype(np.float64) * transform.sd + transform.mean)).astype(np.int64)


def _raw_counters(
    rows: pa.Table,
    config: FeatureConfig,
    transforms: Mapping[str, Transform],
    *,
    prior_ctr: float | None,
) -> dict[CounterKey, dict[str, npt.NDArray[Any]]]:
    if config.counters is None or prior_ctr is None:
        return {}
    raw_by_key: dict[CounterKey, dict[str, npt.NDArray[Any]]] = {}
    for key in config.counters.keys:
        raw = raw_by_key.setdefault(key, {})
        for window in config.counters.windows_days:
            impressions, clicks, ctr = counter_names(key, window)
            for name in (impressions, clicks):
                raw[name] = raw_counts(transforms[name], rows[name].to_numpy())
            raw[ctr] = smoothed_ctr(
                raw[impressions].astype(np.int32),
                raw[clicks].astype(np.int32),
                prior_impressions=config.counters.prior_impressions,
                prior_ctr=prior_ctr,
            )
    return raw_by_key


def _log_columns(tables: InputTables, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
    """`columns` of the log in the order of `rows`, found by impression id."""
    wanted = [name for name in columns if name in tables.columns("impressions")]
    times = pc.min_max(rows["timestamp"].cast(pa.int64()))
    log = tables.table("impressions").to_table(
        ["impression_id", *wanted],
        between_us=("timestamp", times["min"].as_py(), times["max"].as_py()),
    )
    ids = log["impression_id"].combine_chunks()
    position_M = pc.index_in(rows["impression_id"].cast(ids.type), value_set=ids)
    if position_M.null_count:
        lost = rows["impression_id"].filter(pc.is_null(position_M))[0].as_py()
        raise ValueError(
            f"impression {lost!r} of the feature set is not in {tables.path_glob('impressions')} "
            f"({position_M.null_count:,} are not); give the log that the features were built from"
        )
    return log.select(wanted).take(position_M)


def _candidate_column(values: pa.ChunkedArray) -> npt.NDArray[Any] | list[Any]:
    """Numbers as an array, anything else (text, missing values, NaN for missing) as a list with None."""
    if pa.types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
    if values.null_count == 0 and (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return values.to_numpy()
    return values.to_pylist()


def _code(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _code_arrow(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    encoded = values.combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

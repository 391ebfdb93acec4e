"""Features of a request: what a feature set would say of each candidate, from a snapshot and live values.

What all candidates share (user, query, the time, their counters, the declared context) is made once.

Shapes: N candidates, F dense and S sparse columns, L purchases of the user's history, C raw counts of a key.
"""

import difflib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.clock import DAY_US, iso, timestamp_part_of
from features.columns.counters import CounterBlock
from features.columns.id_map import UNKNOWN, IdMap
from features.online.plan import OWN_FIELDS, CounterPlan, DensePlan, Part, SparsePlan, make_plan
from features.online.request import (
    RequestError,
    ScoreRequest,
    ids,
    numbers,
    one_id,
    one_number,
    only_value,
)
from features.online.snapshot import Snapshot, SnapshotManifest
from features.schema import CounterKey

#: A live count above it is none.
MAX_COUNT = 10**12

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Features of one request, in two parts: what its candidates share, and what each has of its own.

    Attributes:
        request_dense_F, candidate_dense_NF: transformed, each in the feature set's order of its columns.
        request_sparse_S, candidate_sparse_NS: rows of the embedding tables, likewise.
        product_N: position in the snapshot's products, -1 for an unknown one.
        query, user: position in the snapshot, -1 where unknown or none.
        history: positions in the snapshot's products, newest first, at most the schema's cap.
        unknown: how many "users", "queries", "products" and purchases ("history") were given and not known.
        time_us: the moment of the request, the server's clock where it gave none.
        manifest: of the snapshot: says what the columns are.
    """

    request_dense_F: Float32s
    candidate_dense_NF: Float32s
    request_sparse_S: Int32s
    candidate_sparse_NS: Int32s
    product_N: Int64s
    query: int
    user: int
    history: Int64s
    unknown: dict[str, int]
    time_us: int
    manifest: SnapshotManifest
    _parts: tuple[Part, Part]

    def __len__(self) -> int:
        return len(self.product_N)

    @cached_property
    def dense_NF(self) -> Float32s:
        """All dense columns in the order of the feature set's `dense_columns`."""
        shared, own = self._parts
        dense_NF = np.empty((len(self), len(shared.dense_at) + len(own.dense_at)), np.float32)
        dense_NF[:, shared.dense_at] = self.request_dense_F
        dense_NF[:, own.dense_at] = self.candidate_dense_NF
        return dense_NF

    @cached_property
    def sparse_NS(self) -> Int32s:
        """All sparse columns in the order of the feature set's `sparse_columns`."""
        shared, own = self._parts
        sparse_NS = np.empty((len(self), len(shared.sparse_at) + len(own.sparse_at)), np.int32)
        sparse_NS[:, shared.sparse_at] = self.request_sparse_S
        sparse_NS[:, own.sparse_at] = self.candidate_sparse_NS
        return sparse_NS


class OnlineFeatures:
    """Makes the rows of requests. Reads only, so threads may share it."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        context_columns: Iterable[str] = (),
        product_has_vector: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """
        Args:
            context_columns: impression columns that every request gives once for all of its candidates.
            product_has_vector: [P] of the snapshot's products; a history is then reduced to products with a
                vector before it is capped, as it is in training.

        Raises:
            ValueError: a context column that no feature reads from the impressions.
        """
        self.snapshot = snapshot
        self.plan = make_plan(snapshot, context_columns)
        self.has_vector_P = product_has_vector
        if product_has_vector is not None and len(product_has_vector) != len(snapshot.products):
            raise ValueError(
                f"product_has_vector says it of {len(product_has_vector):,} products, "
                f"the snapshot has {len(snapshot.products):,}"
            )

    @property
    def request_columns(self) -> tuple[str, ...]:
        """Names of the columns that all candidates share: dense, then sparse, in the feature set's order."""
        return self.plan.request_columns

    def rows(self, request: ScoreRequest) -> FeatureRows:
        """Features of each candidate.

        Raises:
            RequestError: a name that no feature reads, an id or a value of another kind than its column.
        """
        return _Reading(self, request).rows()


class _Reading:
    """One request being read."""

    def __init__(self, features: OnlineFeatures, request: ScoreRequest) -> None:
        self._features = features
        self._snapshot = snapshot = features.snapshot
        self._request = request
        self._time_us = _time(request.timestamp_us, as_of_us=snapshot.manifest.as_of_us)
        self._products = request.candidates
        self._product_N = _find("candidates", snapshot.products, self._products)
        self._unknown_product = np.flatnonzero(self._product_N == UNKNOWN)
        self._user_id = one_id("user_id", request.user_id, snapshot.users.kind)
        self._user = snapshot.users.find_one(self._user_id)
        self._query = snapshot.queries.find_one(request.query)
        # Of all candidates, or one value each.
        self._given: dict[str, Any] = {}
        self._given_each: dict[str, Any] = {}
        self._take_given()

    def rows(self) -> FeatureRows:
        plan, request = self._features.plan, self._request
        history, unknown_history = self._history()
        count = len(self._products)
        return FeatureRows(
            request_dense_F=self._dense(plan.shared, 1)[0],
            candidate_dense_NF=self._dense(plan.own, count),
            request_sparse_S=self._sparse(plan.shared, 1)[0],
            candidate_sparse_NS=self._sparse(plan.own, count),
            product_N=self._product_N,
            query=self._query,
            user=self._user,
            history=history,
            unknown={
                "users": int(self._user_id is not None and self._user == UNKNOWN),
                "queries": int(request.query is not None and self._query == UNKNOWN),
                "products": len(self._unknown_product),
                "history": unknown_history,
            },
            time_us=self._time_us,
            manifest=self._snapshot.manifest,
            _parts=(plan.shared, plan.own),
        )

    def _take_given(self) -> None:
        """Sort what the request gives into values for all candidates and values for each."""
        inputs = self._features.plan.inputs
        context, each = self._request.context, self._request.candidate_columns
        for name, value in context.items():
            if name not in inputs:
                _refuse_name(f"context.{name}", name, inputs)
            self._given[name] = value
        for name, values in each.items():
            at = f"candidate_columns.{name}"
            if name not in inputs:
                _refuse_name(at, name, inputs)
            if name in context:
                raise RequestError(at, "a column that context gives, too,", "send it in one of the two")
            if inputs[name]:
                self._given[name] = only_value(at, values)
            else:
                self._given_each[name] = values

    def _at(self, name: str) -> str:
        return f"context.{name}" if name in self._request.context else f"candidate_columns.{name}"

    def _dense(self, part: Part, count: int) -> Float32s:
        dense_NF = np.empty((count, len(part.dense_at)), np.float32)
        for plan in part.dense:
            value_N = self._dense_values(plan)
            scaled_N = plan.transform.apply(value_N)
            if plan.input is not None and not np.isfinite(scaled_N).all():
                self._refuse_unlike(plan, value_N, ~np.isfinite(scaled_N))
            if plan.input is not None and (plan.input in self._given or plan.input in self._given_each):
                unlike_N = plan.transform.unlike_training(value_N)
                if unlike_N.any():
                    self._refuse_unlike(plan, value_N, unlike_N)
            dense_NF[:, plan.place] = scaled_N
            if plan.missing_place is not None:
                dense_NF[:, plan.missing_place] = np.isnan(value_N)
        for counter in part.counters:
            dense_NF[:, counter.at] = self._counters(counter)
        return dense_NF

    def _dense_values(self, plan: DensePlan) -> Float64s:
        """Raw values of each candidate, or the one of all; NaN where missing."""
        feature, name = plan.feature, plan.input
        if name is not None and name in self._given:
            return np.array([one_number(self._at(name), self._given[name])])
        if name is not None and name in self._given_each:
            return numbers(self._at(name), self._given_each[name])
        if plan.product_place is not None:
            return self._snapshot.product_dense_PD[self._product_N, plan.product_place]
        if feature.source == "timestamp":
            return np.array([float(timestamp_part_of(feature.column, self._time_us))])
        if feature.column == "user_id" and self._user_id is not None:
            return np.array([float(self._user_id)])
        if feature.column == "product_id":
            return self._products.cast(pa.float64(), safe=False).to_numpy()
        return np.array([math.nan])

    def _refuse_unlike(self, plan: DensePlan, value_N: Float64s, unlike_N: npt.NDArray[np.bool_]) -> NoReturn:
        assert plan.input is not None
        row, bounds = int(np.argmax(unlike_N)), plan.transform.bounds
        place = f" for candidate {row}" if len(value_N) > 1 else ""
        logged = f" (from {bounds[0]:g} to {bounds[1]:g} in training)" if bounds else ""
        raise RequestError(
            self._at(plan.input), f"{value_N[row]:g}{place}", f"send a value as it was logged{logged}"
        )

    def _counters(self, plan: CounterPlan) -> Float32s:
        """Counters of one key: those of the snapshot, unless the request gives some."""
        at_N = self._positions(plan.key)
        given = self._given_counters(plan.block)
        if not given:
            return self._snapshot.counters[plan.key][at_N]
        count_NC = self._snapshot.counts[plan.key][at_N]
        excessive = plan.block.excess_rate(count_NC, given)
        if excessive is not None:
            came = f"a click-through rate of {excessive[1]:g}"
            raise RequestError(self._at(excessive[0]), came, "send rates from 0 to 1")
        excess = plan.block.excess_clicks(count_NC, given)
        if excess is not None:
            impressions, clicks, row, shown, clicked = excess
            raise RequestError(
                self._at(clicks if clicks in given else impressions),
                f"{clicked:g} clicks with {shown:g} impressions"
                + (f" for candidate {row}" if len(count_NC) > 1 else ""),
                f"send {impressions} and {clicks} together, with no more clicks than impressions",
            )
        return plan.block.live_columns(count_NC, given)

    def _positions(self, key: CounterKey) -> Int64s | slice:
        """Rows of a key's tables: one of all candidates, or one for each."""
        if key == "product":
            return self._product_N
        if key == "query_product":
            assert self._snapshot.pairs is not None
            return self._snapshot.pairs.find(self._query, self._product_N)
        position = self._user if key == "user" else self._query
        return slice(position, position + 1 or None)

    def _given_counters(self, block: CounterBlock) -> dict[str, Float64s]:
        given: dict[str, Float64s] = {}
        if not any(name in block.place for name in (*self._given, *self._given_each)):
            return given
        for name in block.names:
            if name in self._given:
                value_N = np.array([one_number(self._at(name), self._given[name])])
            elif name in self._given_each:
                value_N = numbers(self._at(name), self._given_each[name])
            else:
                continue
            if not (value_N >= 0).all():
                raise RequestError(
                    self._at(name), "a negative or missing number", "send counts and rates of 0 or more"
                )
            if not block.place[name][0] and not (value_N <= MAX_COUNT).all():
                raise RequestError(self._at(name), f"{value_N.max():g}", "send counts of at most a trillion")
            given[name] = value_N
        return given

    def _sparse(self, part: Part, count: int) -> Int32s:
        row_NS = np.empty((count, len(part.sparse_at)), np.int32)
        for plan in part.sparse:
            row_NS[:, plan.place] = self._sparse_rows(plan)
        return row_NS

    def _sparse_rows(self, plan: SparsePlan) -> int | Int32s:
        """Row of each candidate, or the one of all."""
        feature, name, vocabulary = plan.feature, plan.input, plan.vocabulary
        kind = vocabulary.ids.kind
        if name is not None and name in self._given:
            return vocabulary.row_of(one_id(self._at(name), self._given[name], kind))
        if name is not None and name in self._given_each:
            return vocabulary.rows_of(ids(self._at(name), self._given_each[name], kind))
        if plan.known is not None:
            return self._known_rows(plan)
        if plan.row_of_part is not None:
            return plan.row_of_part[timestamp_part_of(feature.column, self._time_us)]
        return plan.default_row

    def _known_rows(self, plan: SparsePlan) -> int | Int32s:
        """Row by the id of the user, the query or the products; ids that nobody knows are hashed."""
        assert plan.known is not None
        table_KS = self._snapshot.sparse[plan.known]
        if plan.known == "products":
            row_N = table_KS[self._product_N, plan.known_place]
            if plan.feature.source == "impressions" and len(self._unknown_product):
                unknown = self._products.take(pa.array(self._unknown_product))
                row_N[self._unknown_product] = plan.vocabulary.rows_of(unknown)
            return row_N
        position, id_ = (
            (self._user, self._user_id) if plan.known == "users" else (self._query, self._request.query)
        )
        if position == UNKNOWN:
            return plan.vocabulary.row_of(id_)
        return int(table_KS[position, plan.known_place])

    def _history(self) -> tuple[Int64s, int]:
        """Positions of the products purchased, newest first, and how many purchases are unknown."""
        config, snapshot = self._snapshot.manifest.config.history, self._snapshot
        given = self._request.history
        if config is None or snapshot.purchases is None:
            if given is not None:
                raise RequestError("history", "a list", "this model uses no purchase history; leave it out")
            return np.zeros(0, np.int64), 0
        unknown = 0
        if given is not None:
            history = _find("history", snapshot.products, given)
            known = history != UNKNOWN
            unknown = len(history) - int(np.count_nonzero(known))
            history = history[known]
        else:
            history = self._purchased(config.window_days * DAY_US)
        if self._features.has_vector_P is not None:
            history = history[self._features.has_vector_P[history]]
        if config.deduplicate:
            _, newest = np.unique(history, return_index=True)
            history = history[np.sort(newest)]
        return history[: config.cap], unknown

    def _purchased(self, window_us: int) -> Int64s:
        """Purchases of the user in [time - window, time) that the snapshot holds."""
        purchases = self._snapshot.purchases
        assert purchases is not None
        if self._user == UNKNOWN:
            return np.zeros(0, np.int64)
        start, end = int(purchases.start_U[self._user]), int(purchases.start_U[self._user + 1])
        edges_us = [self._time_us - window_us, self._time_us]
        first, last = purchases.time_us_E[start:end].searchsorted(edges_us)
        return purchases.product_E[start + first : start + last][::-1].astype(np.int64)


def _time(timestamp_us: int | None, *, as_of_us: int) -> int:
    if timestamp_us is None:
        return time.time_ns() // 1000
    if timestamp_us < as_of_us // 100:  # decades before: seconds or milliseconds
        raise RequestError(
            "timestamp_us",
            f"{timestamp_us} ({iso(timestamp_us)})",
            "send microseconds since 1970 UTC, not seconds or milliseconds",
        )
    return timestamp_us


def _find(name: str, known: IdMap, asked: pa.Array) -> Int64s:
    if not len(asked):
        return np.zeros(0, np.int64)
    try:
        return known.find(asked)
    except TypeError:
        wanted = "integers" if known.kind == "integer" else "strings"
        raise RequestError(
            name, f"ids of type {asked.type}", f"the product ids of this catalogue are {wanted}"
        ) from None


def _refuse_name(at: str, name: str, inputs: Mapping[str, bool]) -> NoReturn:
    if name in OWN_FIELDS:
        wanted = "candidates" if name == "product_id" else name
        raise RequestError(at, "a field of the request", f"send it as {wanted}")
    close = difflib.get_close_matches(name, inputs, n=1, cutoff=0.6)
    known = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(inputs)[:8])}, …"
    raise RequestError(at, "a name that no feature reads", f"leave it out; {known}")

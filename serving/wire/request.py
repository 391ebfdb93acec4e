"""What every server speaks: one request, its reply, and what a predictor has to offer.

No torch here: clients import this module, too. `RequestError` comes from `features.online.request`,
below.

Shapes: N candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from features.online.request import RequestError

__all__ = ["MAX_CANDIDATES", "RequestError", "ScoreReply", "ScoreRequest", "Scorer"]

#: Scored in one request at most; more is a matter for retrieval, or for several requests.
MAX_CANDIDATES = 10_000
#: Purchases that a request may bring; the model reads fewer (the cap of its feature schema).
MAX_HISTORY = 1_000
MAX_QUERY_CHARACTERS = 1_000
#: Of a request's body; a server's own limit should lie above it, so that the answer can say what to do.
MAX_BODY_BYTES = 4 << 20
MAX_ID_CHARACTERS = 512
#: Live features and context values in one request.
MAX_COLUMNS = 256
#: The last microsecond of the year 9999.
MAX_TIMESTAMP_US = 253_402_300_799_999_999

Scalar = str | int | float | bool | None
#: One value for each candidate: an array of numbers, or a list in which None is a missing value.
CandidateColumn = np.ndarray | list[Any]


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Candidates to be ranked for one user and one query at one moment.

    Ids may come as lists or arrays; once built, `candidates` (and `history`) are Arrow arrays of int64 or
    string without nulls, and each candidate column is a NumPy array of finite numbers or a list of N values.

    Attributes:
        user_id: None, or an id that is not known, is a cold user.
        query: None where the product is recommended without a search.
        candidates: product ids, 1 to MAX_CANDIDATES; doubles are scored twice.
        timestamp_us: the moment, microseconds since 1970 in UTC; the server's clock if None.
        context: impression columns that are the same for all candidates (`store_id`, `device`).
        candidate_columns: live values, one for each candidate (`price`, `query_product_ctr_7d`).
        history: product ids newest first, instead of the snapshot's; an empty one says: no purchases.

    Raises:
        RequestError: a field has the wrong type, length or size, or a number is not finite.

    >>> request = ScoreRequest(user_id=7, query="oat milk", candidates=[101, 102])
    >>> len(request.candidates)
    2
    >>> ScoreRequest(user_id=7, query="oat milk", candidates=[])
    Traceback (most recent call last):
    ...
    features.online.request.RequestError: ...
    """

    user_id: int | str | None
    query: str | None
    candidates: pa.Array
    timestamp_us: int | None = None
    context: Mapping[str, Scalar] = field(default_factory=dict)
    candidate_columns: Mapping[str, CandidateColumn] = field(default_factory=dict)
    history: pa.Array | None = None

    def __post_init__(self) -> None:
        _check_user(self.user_id)
        _check_query(self.query)
        _check_timestamp(self.timestamp_us)
        candidates = _ids("candidates", self.candidates, at_most=MAX_CANDIDATES, status=413)
        if len(candidates) == 0:
            raise RequestError("candidates", "an empty list", "send at least one product id")
        object.__setattr__(self, "candidates", candidates)
        if self.history is not None:
            object.__setattr__(self, "history", _ids("history", self.history, at_most=MAX_HISTORY))
        _check_names("context", self.context)
        for name, value in self.context.items():
            if value is not None and type(value) is not bool:
                _check_scalar(f"context.{name}", value)
        _check_names("candidate_columns", self.candidate_columns)
        columns = {
            name: _column(f"candidate_columns.{name}", values, rows=len(candidates))
            for name, values in self.candidate_columns.items()
        }
        object.__setattr__(self, "candidate_columns", columns)


@dataclass(frozen=True, eq=False)
class ScoreReply:
    """Scores of one request, in the order in which its candidates came.

    Attributes:
        scores_N: float32, probabilities of a click.
        order_N: int64, positions in `candidates`, best first; equal scores stay in the order they came.
        model_version: of the package.
        generation: of its vectors and snapshot.
        as_of: the moment of the snapshot, ISO 8601.
        unknown: how many ids of each kind were not known ("users", "queries", "products", "history").
        history_length: how many purchases the model read.
        dense_NF: dense features as the model read them; for the drift counts, never sent.
    """

    scores_N: np.ndarray
    order_N: np.ndarray
    model_version: str
    generation: str
    as_of: str
    unknown: Mapping[str, int]
    history_length: int = 0
    dense_NF: np.ndarray | None = None


class Scorer(Protocol):
    """What a server needs; `serving.scoring.predictor.Predictor` is one."""

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        """One reply or refusal for each request: a bad one does not fail its neighbours."""
        ...

    def reload_if_changed(self) -> object:
        """Swap in a new generation of vectors and snapshot if there is one. Cheap if there is none."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What is being served: model version, generation, as_of, encoder, counts."""
        ...


def best_first(scores_N: np.ndarray) -> np.ndarray:
    """Positions int64[N] by falling score, equal ones as they came: [.2, .5, .5] gives [1, 2, 0]."""
    return np.argsort(-scores_N, kind="stable").astype(np.int64, copy=False)


def what_came(value: object) -> str:
    """A value of a request in words, for `RequestError.came`: its type, and itself if that is short."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float | str):
        return (
            f"{_KINDS[type(value)]} {value!r}" if len(repr(value)) <= 60 else f"a long {_KINDS[type(value)]}"
        )
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence | np.ndarray | pa.Array):
        return f"a list of {len(value)}"
    return f"a value of type {type(value).__name__}"


_KINDS: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def _check_user(user_id: object) -> None:
    _check_id("user_id", user_id, advice="send an integer, a string or null")


def _check_id(name: str, value: object, *, advice: str) -> None:
    if value is None:
        return
    if type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise RequestError(name, "an integer beyond 64 bits", advice)
    elif type(value) is str:
        _check_text(name, value, at_most=MAX_ID_CHARACTERS)
    else:
        raise RequestError(name, what_came(value), advice)


def _check_text(name: str, text: str, *, at_most: int) -> None:
    if len(text) > at_most:
        raise RequestError(name, f"{len(text):,} characters", f"send at most {at_most:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(name, "text with a lone surrogate", "send valid Unicode") from None


def _check_query(query: object) -> None:
    if query is None:
        return
    if type(query) is not str:
        raise RequestError("query", what_came(query), "send a string, or null if there was no search")
    _check_text("query", query, at_most=MAX_QUERY_CHARACTERS)


def _check_timestamp(timestamp_us: object) -> None:
    if timestamp_us is None:
        return
    if type(timestamp_us) is not int or not 0 <= timestamp_us <= MAX_TIMESTAMP_US:
        raise RequestError(
            "timestamp_us",
            what_came(timestamp_us),
            "send microseconds since 1970 as an integer, or null for now",
        )


def _check_names(name: str, mapping: object) -> None:
    if not isinstance(mapping, Mapping):
        raise RequestError(name, what_came(mapping), "send an object of names and values")
    if len(mapping) > MAX_COLUMNS:
        raise RequestError(name, f"{len(mapping):,} names", f"send at most {MAX_COLUMNS}")
    for key in mapping:
        if type(key) is not str:
            raise RequestError(name, f"a name that is {what_came(key)}", "send names as strings")
        _check_text(name, key, at_most=MAX_ID_CHARACTERS)


def _check_scalar(name: str, value: object) -> None:
    if type(value) is int or type(value) is str:
        _check_id(name, value, advice="send an integer of 64 bits")
    elif type(value) is float:
        if not math.isfinite(value):
            raise RequestError(name, str(value), "send a finite number, or null if it is missing")
    else:
        raise RequestError(name, what_came(value), "send one string, number, boolean or null")


def _ids(name: str, ids: object, *, at_most: int, status: Any = 400) -> pa.Array:
    """Ids as Arrow int64 or string without nulls."""
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if isinstance(ids, np.ndarray):
        ids = _array_of_numpy(name, ids)
    if not isinstance(ids, pa.Array | list | tuple):
        raise RequestError(name, what_came(ids), "send a list of product ids")
    if len(ids) > at_most:
        raise RequestError(name, f"{len(ids):,} ids", f"send at most {at_most:,}", status=status)
    return _arrow_ids(name, ids) if isinstance(ids, pa.Array) else _listed_ids(name, ids)


_ID_ADVICE = "send product ids that are all integers or all strings"


def _array_of_numpy(name: str, ids: np.ndarray) -> pa.Array | list[Any]:
    if ids.ndim != 1:
        raise RequestError(name, f"an array of shape {ids.shape}", "send a list of product ids")
    return pa.array(ids) if ids.dtype.kind in "iu" else ids.tolist()


def _listed_ids(name: str, ids: Sequence[Any]) -> pa.Array:
    kinds = set(map(type, ids))
    if kinds <= {int}:
        try:
            return pa.array(ids, pa.int64())
        except (OverflowError, pa.ArrowInvalid):
            raise RequestError(name, "an integer beyond 64 bits", _ID_ADVICE) from None
    if kinds == {str}:
        longest = max(map(len, ids))
        if longest > MAX_ID_CHARACTERS:
            raise RequestError(name, f"an id of {longest:,} characters", f"send at most {MAX_ID_CHARACTERS}")
        try:
            return pa.array(ids, pa.string())
        except UnicodeEncodeError:
            raise RequestError(name, "text with a lone surrogate", "send valid Unicode") from None
    for position, value in enumerate(ids):
        if type(value) not in (int, str) or type(value) is not type(ids[0]):
            raise RequestError(f"{name}[{position}]", what_came(value), _ID_ADVICE)
    raise AssertionError(f"unreachable: {kinds}")


def _arrow_ids(name: str, ids: pa.Array) -> pa.Array:
    if ids.null_count:
        raise RequestError(name, f"{ids.null_count} nulls", "send ids without nulls")
    kind = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if pa.types.is_integer(kind):
        wanted = pa.int64()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        wanted = pa.string()
    elif len(ids) == 0:
        return pa.array([], pa.int64())
    else:
        raise RequestError(name, f"a column of {ids.type}", _ID_ADVICE)
    try:
        return ids if ids.type == wanted else ids.cast(wanted)
    except pa.ArrowInvalid:
        raise RequestError(name, "an integer beyond 64 bits", _ID_ADVICE) from None


#: Classes of arrays that NumPy takes without a copy if they have no nulls.
_NUMBER_ARRAYS = frozenset(
    {pa.Int8Array, pa.Int16Array, pa.Int32Array, pa.Int64Array}
    | {pa.UInt8Array, pa.UInt16Array, pa.UInt32Array, pa.UInt64Array}
    | {pa.HalfFloatArray, pa.FloatArray, pa.DoubleArray}
)


def _column(name: str, values: Any, *, rows: int) -> CandidateColumn:
    """One live feature: a NumPy array of finite numbers, or a list in which None is a missing value."""
    if type(values) in _NUMBER_ARRAYS and values.null_count == 0:  # an Arrow body has many of these
        values = values.to_numpy()
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = _column_of_arrow(name, values)
    if isinstance(values, tuple):
        values = list(values)
    if not isinstance(values, list | np.ndarray) or (isinstance(values, np.ndarray) and values.ndim != 1):
        raise RequestError(name, what_came(values), "send a list with one value for each candidate")
    if len(values) != rows:
        raise RequestError(name, f"{len(values):,} values", f"send one for each of the {rows:,} candidates")
    if isinstance(values, list):
        return values
    if values.dtype.kind not in "iufb":
        return values.tolist()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RequestError(name, "NaN or an infinity", "send finite numbers, or null where one is missing")
    return values


def _column_of_arrow(name: str, values: pa.Array | pa.ChunkedArray) -> CandidateColumn:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    textual = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (numeric or textual or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise RequestError(name, f"a column of {values.type}", "send numbers, strings or booleans")
    if numeric and values.null_count == 0 and not pa.types.is_dictionary(values.type):
        return values.to_numpy(zero_copy_only=False)
    return values.to_pylist()

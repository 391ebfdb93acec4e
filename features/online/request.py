"""One request to rank candidates, read strictly: what is wrong is refused with its place.

`ScoreRequest` refuses what no model can read; the functions below it what a column of this model cannot, once
its kind is known: numbers or ids, integers or strings. `RequestError` says which field, what came, what to
do; every server turns it into a client error, never its own. No torch here: clients import this module, too.

Shapes: N candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.columns.id_map import IdKind
from features.inputs.blanks import without_blank, without_blanks
from features.inputs.plain_types import plain_values
from features.inputs.table_specs import is_text
from features.schema import MAX_CAP

#: Scored in one request at most; more is a matter for retrieval, or for several requests.
MAX_CANDIDATES = 10_000
#: Purchases that a request may bring: as many as any model may read.
MAX_HISTORY = MAX_CAP
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

FINITE_OR_NULL = "send finite numbers, null where one is missing"

#: What came is echoed to whoever asked: a pasted document would drown the sentence.
LONGEST_ECHO = 120
ClientStatus = Literal[400, 413]


class RequestError(ValueError):
    """A request that cannot be scored as it came.

    Attributes:
        field: where it is wrong, as the request spells it: `user_id`, `candidate_columns.price`.
        came: what was there, in words (a value, a type, a length), shortened to a readable length.
        advice: what must hold or what to do, as the end of a sentence: "send one number for each candidate".
        status: 400, or 413 where the request is merely too large.

    `str(RequestError("price", "NaN", "send finite numbers"))` is "price: NaN came; send finite numbers".
    """

    def __init__(self, field: str, came: str, advice: str, *, status: ClientStatus = 400) -> None:
        self.field = field
        self.came = came if len(came) <= LONGEST_ECHO else came[: LONGEST_ECHO - 1] + "…"
        self.advice = advice
        self.status: ClientStatus = status
        super().__init__(f"{self.field}: {self.came} came; {self.advice}")

    def __reduce__(self) -> tuple[object, ...]:
        return partial(RequestError, status=self.status), (self.field, self.came, self.advice)


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """Candidates to be ranked for one user and one query at one moment.

    Ids may come as lists or arrays, and every value as a scalar of NumPy or a member of an enum of strings or
    integers. A blank string is missing, as in the log: such a user or query becomes None. Once built,
    `candidates` (and `history`) are Arrow arrays of int64 or string, none missing, each candidate column is a
    NumPy array of finite numbers or a list of N values, and values are Python's own.

    Attributes:
        user_id: None, or an id that is not known, is a cold user.
        query: None where the product is recommended without a search.
        candidates: product ids, 1 to MAX_CANDIDATES; doubles are scored twice.
        timestamp_us: the moment, microseconds since 1970 in UTC; the server's clock if None.
        context: impression columns that are the same for all candidates (`store_id`, `device`); also live
            product columns and raw counters. None says that the value is missing; a column that is not there
            has the schema's `serving_value`, else is missing.
        candidate_columns: the same with one value for each candidate (`price`, `query_product_ctr_7d`).
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
        for name in ("user_id", "query", "timestamp_us"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        _check_id("user_id", self.user_id, advice="send an integer, a string or null")
        _check_query(self.query)
        object.__setattr__(self, "user_id", without_blank(self.user_id))
        object.__setattr__(self, "query", without_blank(self.query))
        _check_timestamp(self.timestamp_us)
        candidates = _ids("candidates", self.candidates, at_most=MAX_CANDIDATES, status=413)
        if len(candidates) == 0:
            raise RequestError("candidates", "an empty list", "send at least one product id")
        object.__setattr__(self, "candidates", candidates)
        if self.history is not None:
            object.__setattr__(self, "history", _ids("history", self.history, at_most=MAX_HISTORY))
        context = {name: _plain(value) for name, value in _named("context", self.context).items()}
        for name, value in context.items():
            if value is not None and type(value) is not bool:
                _check_scalar(f"context.{name}", value)
        object.__setattr__(self, "context", context)
        columns = {
            name: _column(f"candidate_columns.{name}", values, rows=len(candidates))
            for name, values in _named("candidate_columns", self.candidate_columns).items()
        }
        object.__setattr__(self, "candidate_columns", columns)


def one_number(name: str, value: object) -> float:
    """A finite number; NaN for None, a missing one. True is 1."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float):
        raise RequestError(name, what_came(value), "send a number, or null where it is missing")
    if not math.isfinite(value):
        raise RequestError(name, str(value), "send a finite number, or null where it is missing")
    return float(value)


def one_id(name: str, value: object, kind: IdKind) -> int | str | None:
    """An id of that kind, or None. True is 1 among integers."""
    if value is None or (kind == "text" and isinstance(value, str)):
        return value
    if kind == "integer" and isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise RequestError(name, "an integer beyond 64 bits", "send an integer that fits into 64 bits")
        return int(value)
    wanted = "an integer" if kind == "integer" else "a string"
    raise RequestError(name, what_came(value), f"send {wanted}, as in the log, or null where it is missing")


def numbers(name: str, values: CandidateColumn) -> npt.NDArray[np.float64]:
    """float64[N], NaN where a value is missing; others are finite. May be read-only."""
    if isinstance(values, np.ndarray):
        return values.astype(np.float64, copy=False)
    array = one_type(name, values)
    kind = array.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not is_number and not pa.types.is_null(kind):
        raise RequestError(name, f"values of type {kind}", "send numbers, null where one is missing")
    value_N: npt.NDArray[np.float64] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    finite_N = np.isfinite(value_N)
    if array.null_count:
        finite_N |= array.is_null().to_numpy(zero_copy_only=False)
    if not finite_N.all():
        place = int(np.argmin(finite_N))
        raise RequestError(name, f"{value_N[place]} for candidate {place}", FINITE_OR_NULL)
    return value_N


def ids(name: str, values: CandidateColumn, kind: IdKind) -> pa.Array:
    """int64 or string [N]; null where an id is missing."""
    array = one_type(name, values)
    try:
        if pa.types.is_null(array.type):
            return array.cast(pa.int64() if kind == "integer" else pa.string())
        if kind == "integer" and (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
            return array if array.type == pa.int64() else array.cast(pa.int64())
        if kind == "text" and is_text(array.type):
            return array
    except pa.ArrowInvalid:
        raise RequestError(name, "integers beyond 64 bits", "send integers that fit into 64 bits") from None
    wanted = "integers" if kind == "integer" else "strings"
    raise RequestError(
        name, f"values of type {array.type}", f"send {wanted}, as in the log, null where one is missing"
    )


def only_value(name: str, values: CandidateColumn) -> Any:
    """The one value that all candidates share, for what the model reads once per request.

    Raises:
        RequestError: they differ.
    """
    array = without_blanks(one_type(name, values))
    if pa.types.is_nested(array.type):
        raise RequestError(name, f"values of type {array.type}", "send one number or string for each")
    distinct = array.unique()
    if len(distinct) > 1:
        raise RequestError(
            name,
            f"{len(distinct):,} different values",
            "the model reads one value for the whole request: send it in context, or make several requests",
        )
    return distinct[0].as_py()


def one_type(name: str, values: CandidateColumn) -> pa.Array:
    """The values as an Arrow array.

    Raises:
        RequestError: they are not of one type.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            name, f"a list that is not of one type ({first})", "send values of one type, null where missing"
        ) from None


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


_INT64 = 2**63
_KINDS: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_PLAIN = frozenset({*_KINDS, type(None)})


def _plain(value: Any) -> Any:
    """Scalars of NumPy, decimals and members of an enum as Python's own; the rest as it is."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enum the text, not the member's name
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    # The float nearest to a decimal, as tables have it.
    return float(str(value).replace("s", "")) if isinstance(value, Decimal) else value


def _plain_list(values: Sequence[Any]) -> list[Any]:
    return list(values) if _PLAIN.issuperset(map(type, values)) else [_plain(value) for value in values]


def _check_id(name: str, value: object, *, advice: str) -> None:
    if value is None:
        return
    if type(value) is int:
        if not -_INT64 <= value < _INT64:
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
    if type(query) is str:
        _check_text("query", query, at_most=MAX_QUERY_CHARACTERS)
    elif query is not None:
        raise RequestError("query", what_came(query), "send a string, or null if there was no search")


def _check_timestamp(timestamp_us: object) -> None:
    if timestamp_us is None or (type(timestamp_us) is int and 0 <= timestamp_us <= MAX_TIMESTAMP_US):
        return
    advice = "send microseconds since 1970 as an integer, or null for now"
    if type(timestamp_us) is int and timestamp_us > MAX_TIMESTAMP_US:
        advice = "send microseconds since 1970 UTC, not nanoseconds"
    raise RequestError("timestamp_us", what_came(timestamp_us), advice)


def _named(name: str, mapping: object) -> dict[str, Any]:
    """Values by name, which is then a plain string."""
    if not isinstance(mapping, Mapping):
        raise RequestError(name, what_came(mapping), "send an object of names and values")
    if len(mapping) > MAX_COLUMNS:
        raise RequestError(name, f"{len(mapping):,} names", f"send at most {MAX_COLUMNS}")
    named = {_plain(key): value for key, value in mapping.items()}
    for key in named:
        if type(key) is not str:
            raise RequestError(name, f"a name that is {what_came(key)}", "send names as strings")
        _check_text(name, key, at_most=MAX_ID_CHARACTERS)
    return named


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
    array = _arrow_ids(name, ids) if isinstance(ids, pa.Array) else _listed_ids(name, ids)
    if not (blank := without_blanks(array).null_count):
        return array
    raise RequestError(name, f"{blank} blank ids", _ID_ADVICE)


_ID_ADVICE = "send product ids that are all integers or all strings"


def _array_of_numpy(name: str, ids: np.ndarray) -> pa.Array | list[Any]:
    if ids.ndim != 1:
        raise RequestError(name, f"an array of shape {ids.shape}", "send a list of product ids")
    return pa.array(ids) if ids.dtype.kind in "iu" else ids.tolist()


def _listed_ids(name: str, ids: Sequence[Any]) -> pa.Array:
    ids = _plain_list(ids)
    kinds = set(map(type, ids))
    if kinds <= {int}:
        try:
            return pa.array(ids, pa.int64())
        except (OverflowError, pa.ArrowInvalid):
            raise RequestError(name, "an integer beyond 64 bits", _ID_ADVICE) from None
    if kinds == {str}:
        _check_longest(name, ids, what="an id")
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
    elif is_text(kind):
        wanted = pa.string()
    elif len(ids) == 0:
        return pa.array([], pa.int64())
    else:
        raise RequestError(name, f"a column of {ids.type}", _ID_ADVICE)
    try:
        array = ids if ids.type == wanted else ids.cast(wanted)
    except pa.ArrowInvalid:
        raise RequestError(name, "an integer beyond 64 bits", _ID_ADVICE) from None
    _check_longest(name, array, what="an id")
    return array


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
    if not isinstance(values, list | tuple | np.ndarray) or (
        isinstance(values, np.ndarray) and values.ndim != 1
    ):
        raise RequestError(name, what_came(values), "send a list with one value for each candidate")
    if len(values) != rows:
        raise RequestError(name, f"{len(values):,} values", f"send one for each of the {rows:,} candidates")
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iufb":
        values = values.tolist()
    if not isinstance(values, np.ndarray):
        return _checked_list(name, _plain_list(values))
    if not values.dtype.isnative or values.dtype.itemsize > 8:  # neither Arrow nor JSON has such numbers
        values = values.astype(np.float64)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RequestError(name, "NaN or an infinity", "send finite numbers, or null where one is missing")
    return values


def _check_longest(name: str, texts: pa.Array | Sequence[Any], *, what: str) -> None:
    """Refuse text that is too long, of an Arrow array before a value of it becomes Python's."""
    if isinstance(texts, pa.Array):
        longest = pc.max(pc.utf8_length(texts)).as_py() if is_text(texts.type) else None
    else:
        longest = max((len(text) for text in texts if type(text) is str), default=None)
    if longest is not None and longest > MAX_ID_CHARACTERS:
        raise RequestError(name, f"{what} of {longest:,} characters", f"send at most {MAX_ID_CHARACTERS}")


def _checked_list(name: str, values: list[Any]) -> list[Any]:
    """The values: no number is NaN or infinite, which JSON would make a missing one; no text is too long."""
    kinds = set(map(type, values))
    if str in kinds:
        _check_longest(name, values, what="a text")
    if float in kinds:
        value_N = np.array([value if type(value) is float else 0.0 for value in values])
        if not np.isfinite(value_N).all():
            place = int(np.argmin(np.isfinite(value_N)))
            raise RequestError(name, f"{value_N[place]} for candidate {place}", FINITE_OR_NULL)
    return values


def _column_of_arrow(name: str, values: pa.Array | pa.ChunkedArray) -> CandidateColumn:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_decimal(kind):
        values, kind = plain_values(values, pa.float64()), pa.float64()
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (numeric or is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise RequestError(name, f"a column of {values.type}", "send numbers, strings or booleans")
    if numeric and values.null_count == 0 and not pa.types.is_dictionary(values.type):
        return values.to_numpy(zero_copy_only=False)
    if pa.types.is_string_view(values.type):  # Arrow has no functions for it
        values = values.cast(pa.string())
    _check_longest(name, values, what="a text")
    return values.to_pylist()

"""Values of a request, read strictly: a wrong type, length or number is refused with its place.

`RequestError` says which field, what came, what to do. It lies below `serving`, since reading a request's
features is where most of its faults show; every server turns it into a client error, never its own.

Shapes: N candidates.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.id_map import IdKind
from features.inputs.table_specs import is_text

ClientStatus = Literal[400, 413]

# What came is echoed to whoever asked: a pasted document would drown the sentence.
LONGEST_ECHO = 120


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
        return _restore, (self.field, self.came, self.advice, self.status)


def _restore(field: str, came: str, advice: str, status: ClientStatus) -> RequestError:
    return RequestError(field, came, advice, status=status)


_INT64 = 2**63
_PLURAL = {"integer": "integers", "text": "strings"}


def one_number(field: str, value: object) -> float:
    """A finite number; NaN for None, a missing one. True is 1."""
    if value is None:
        return math.nan
    if not isinstance(value, int | float | np.number | np.bool_) or isinstance(value, np.complexfloating):
        raise RequestError(field, describe(value), "send a number, or null where it is missing")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RequestError(field, str(number), "send a finite number, or null where it is missing")
    return number


def one_id(field: str, value: object, kind: IdKind) -> int | str | None:
    """An id of that kind as Python's own integer or string, or None. True is 1 among integers."""
    if value is None:
        return None
    if kind == "integer" and isinstance(value, int | np.integer | np.bool_):
        if not -_INT64 <= int(value) < _INT64:
            raise RequestError(field, "an integer beyond 64 bits", "send an integer that fits into 64 bits")
        return int(value)
    if kind == "text" and isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestError(field, "text with a lone surrogate", "send valid Unicode") from None
        return str(value)
    wanted = "an integer" if kind == "integer" else "a string"
    raise RequestError(field, describe(value), f"send {wanted}, as in the log, or null where it is missing")


def numbers(field: str, values: object, count: int) -> npt.NDArray[np.float64]:
    """float64[N], NaN where a value is missing (None in a list, null in Arrow); others are finite."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iufb":
        value_N = values.astype(np.float64)
        missing_N = None
        _check_length(field, value_N.shape, count)
    else:
        array = _arrow(field, values, count)
        kind = array.type
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        if not is_number and not pa.types.is_null(kind):
            raise RequestError(field, f"values of type {kind}", "send numbers, null where one is missing")
        missing_N = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        value_N = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if not value_N.flags.writeable:
            value_N = value_N.copy()
    finite_N = np.isfinite(value_N)
    if missing_N is not None:
        finite_N |= missing_N
    if not finite_N.all():
        place = int(np.argmin(finite_N))
        raise RequestError(
            field, f"{value_N[place]} for candidate {place}", "send finite numbers, null where one is missing"
        )
    return value_N


def ids(field: str, values: object, count: int, kind: IdKind) -> pa.Array:
    """int64 or string [N]; null where an id is missing."""
    array = _arrow(field, values, count)
    try:
        if pa.types.is_null(array.type):
            return array.cast(pa.int64() if kind == "integer" else pa.string())
        if kind == "integer" and (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
            return array if array.type == pa.int64() else array.cast(pa.int64())
        if kind == "text" and is_text(array.type):
            return array
    except pa.ArrowInvalid:
        raise RequestError(field, "integers beyond 64 bits", "send integers that fit into 64 bits") from None
    raise RequestError(
        field,
        f"values of type {array.type}",
        f"send {_PLURAL[kind]}, as in the log, null where one is missing",
    )


def any_ids(field: str, values: object) -> pa.Array:
    """int64 or string ids of whatever kind, none missing."""
    array = _arrow(field, values, None)
    if array.null_count:
        raise RequestError(field, f"null for {array.null_count:,} of {len(array):,}", "send ids only")
    if not len(array):
        return pa.array([], pa.int64())
    if is_text(array.type) or array.type == pa.int64():
        return array
    if pa.types.is_integer(array.type):
        return ids(field, array, len(array), "integer")
    raise RequestError(field, f"values of type {array.type}", "send integers or strings")


def describe(value: object) -> str:
    """A value in words: its type, and itself if it is short."""
    if value is None:
        return "null"
    if isinstance(value, str | int | float | np.generic):
        return (
            f"{type(value).__name__} {value!r}" if len(str(value)) <= 60 else f"a long {type(value).__name__}"
        )
    return f"a value of type {type(value).__name__}"


def _arrow(field: str, values: object, count: int | None) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        _check_length(field, (len(values),), count)
        return values
    if isinstance(values, np.ndarray):
        _check_length(field, values.shape, count)
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        _check_length(field, (len(values),), count)
    else:
        raise RequestError(field, describe(values), "send a list with one value for each candidate")
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(
            field, f"a list that is not of one type ({first})", "send values of one type, null where missing"
        ) from None


def _check_length(field: str, shape: tuple[int, ...], count: int | None) -> None:
    if len(shape) != 1:
        raise RequestError(field, f"an array of {len(shape)} dimensions", "send one value for each candidate")
    if count is not None and shape[0] != count:
        raise RequestError(field, f"{shape[0]:,} values", f"send one for each of the {count:,} candidates")


def only_value(field: str, values: Any, count: int) -> Any:
    """The one value that all candidates share, for what the model reads once per request.

    Raises:
        RequestError: they differ.
    """
    array = _arrow(field, values, count)
    distinct = array.unique()
    if len(distinct) > 1:
        raise RequestError(
            field,
            f"{len(distinct):,} different values",
            "the model reads one value for the whole request: send it in context, or make several requests",
        )
    return distinct[0].as_py() if len(distinct) else None

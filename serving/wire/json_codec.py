"""Requests and replies as JSON.

A request, where everything but query and candidates may be left out; without a user it is nobody's:

    {"user_id": 7, "query": "oat milk", "candidates": [101, 102], "timestamp_us": 1767225600000000,
     "context": {"store_id": 3, "device": "phone"}, "candidate_columns": {"price": [2.5, null]},
     "history": [55, 54]}
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from features.online.request import CandidateColumn, RequestError, ScoreRequest, one_type, what_came
from serving.wire.reply import ScoreReply

CONTENT_TYPE = "application/json"

#: Fields that must be there, if only as null: a forgotten query would silently cost quality.
REQUIRED = ("query", "candidates")
OPTIONAL = ("user_id", "timestamp_us", "context", "candidate_columns", "history")
#: What the fields beside the candidates are in an Arrow request, too.
BESIDE_CANDIDATES = ("user_id", "query", "timestamp_us", "context", "history")
#: What JSON writers of some languages make of a number that is none.
_NO_NUMBER = re.compile(r"-?(nan|inf)", re.IGNORECASE)


def decode_request(body: bytes | bytearray | memoryview) -> ScoreRequest:
    """A request from its bytes.

    Raises:
        RequestError: not JSON, not an object, a field that is missing, unknown or wrong.
    """
    fields = parse_object("body", body)
    check_fields(fields, required=REQUIRED, optional=OPTIONAL)
    if not isinstance(fields["candidates"], list):
        raise RequestError("candidates", what_came(fields["candidates"]), "send a list of product ids")
    history = fields.get("history")
    if history is not None and not isinstance(history, list):
        raise RequestError("history", what_came(history), "send a list of product ids, newest first, or null")
    return ScoreRequest(**without_nulls(fields))


def encode_request(request: ScoreRequest) -> bytes:
    """The bytes of a request. What equals the default is left out.

    Raises:
        RequestError: the values of a candidate column are not of one type.
    """
    fields: dict[str, Any] = {
        "user_id": request.user_id,
        "query": request.query,
        "candidates": request.candidates.to_pylist(),
    }
    fields |= _optional_fields(request)
    if request.candidate_columns:
        fields["candidate_columns"] = {
            name: _column(f"candidate_columns.{name}", values)
            for name, values in request.candidate_columns.items()
        }
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_beside_candidates(request: ScoreRequest) -> bytes:
    """The fields of a request that are not columns, for the metadata of an Arrow request."""
    fields = {"user_id": request.user_id, "query": request.query, **_optional_fields(request)}
    return orjson.dumps(fields)


def encode_reply(reply: ScoreReply) -> bytes:
    """The bytes of a reply; float32 scores in the fewest digits that give them back."""
    fields = {
        "scores": np.ascontiguousarray(reply.scores_N),
        "order": np.ascontiguousarray(reply.order_N),
        **facts_of_reply(reply),
    }
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_reply(body: bytes) -> ScoreReply:
    """A reply from its bytes.

    Raises:
        ValueError: these are not the bytes of a reply.
    """
    try:
        fields = orjson.loads(body)
        return ScoreReply(
            scores_N=np.array(fields.pop("scores"), np.float32),
            order_N=np.array(fields.pop("order"), np.int64),
            **fields,
        )
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError):
        raise ValueError(f"not a reply: {bytes(body[:80])!r}") from None


def facts_of_reply(reply: ScoreReply) -> dict[str, Any]:
    """What a reply says beside the columns; of variants only where there are several packages."""
    routed = {"variant": reply.variant, "salt": reply.salt, "instead_of": reply.instead_of}
    return {
        "model_version": reply.model_version,
        "generation": reply.generation,
        "as_of": reply.as_of,
        "unknown": dict(reply.unknown),
        "history_length": reply.history_length,
        **{name: value for name, value in routed.items() if value is not None},
    }


def encode_error(error: RequestError) -> bytes:
    """{"error": {"field", "came", "advice", "message"}}."""
    return orjson.dumps(
        {
            "error": {
                "field": error.field,
                "came": error.came,
                "advice": error.advice,
                "message": str(error),
            }
        }
    )


def parse_object(name: str, text: bytes | bytearray | memoryview) -> dict[str, Any]:
    """JSON text as an object.

    Raises:
        RequestError: it is not JSON, or not an object.
    """
    if len(text) == 0:
        raise RequestError(name, "nothing", "send a JSON object or an Arrow stream")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(name, f"malformed JSON ({error})", _advice(bytes(text), error.pos)) from None
    if not isinstance(value, dict):
        raise RequestError(name, what_came(value), "send one JSON object")
    return value


def _advice(text: bytes, place: int) -> str:
    """What to do about a text that ceases to be JSON at a character."""
    if _NO_NUMBER.match(text.decode("utf-8", "replace"), place):
        return "JSON has no NaN and no Infinity: send null where a number is missing"
    return "send one JSON object in UTF-8"


def check_fields(fields: Mapping[str, Any], *, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    """Refuse what is missing and what is not known, with the name that may have been meant.

    Raises:
        RequestError: a required field is missing, or there is one of another name.
    """
    known = (*required, *optional)
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name[:64], known, n=1)
            meant = f"did you mean {close[0]}?" if close else f"send only {', '.join(known)}"
            raise RequestError(printable(name), "an unknown field", meant)
    for name in required:
        if name not in fields:
            raise RequestError(
                name, "nothing", f"send {name}" + (" (null if there is none)" * (name != "candidates"))
            )


def without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields as keyword arguments: a null is as good as nothing where nothing is allowed."""
    given = {name: value for name, value in fields.items() if value is not None or name in REQUIRED}
    return {"user_id": None} | given


def printable(name: str) -> str:
    """A field name from outside, safe and short enough for an error."""
    return name if name.isidentifier() and len(name) <= 64 else ascii(name)[:64]


def _column(name: str, values: CandidateColumn) -> CandidateColumn:
    if isinstance(values, np.ndarray):
        # The digits of a float32 that suffice for float32 are another number once read as a float64.
        return np.ascontiguousarray(values, np.float64 if values.dtype.kind == "f" else None)
    one_type(name, values)
    return values


def _optional_fields(request: ScoreRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if request.timestamp_us is not None:
        fields["timestamp_us"] = request.timestamp_us
    if request.context:
        fields["context"] = dict(request.context)
    if request.history is not None:
        fields["history"] = request.history.to_pylist()
    return fields

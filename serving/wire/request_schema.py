"""What a request to one package may hold: JSON Schema for the JSON body, columns for the Arrow body.

Made of the plan by which requests are read, so that it says what the server checks. What no schema can say
stays with the server: the length of a candidate column against the candidates, clicks against impressions,
how far a body may exceed its limits in bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from features.columns.id_map import IdKind
from features.columns.transforms import FAR_BEYOND, Transform
from features.online.plan import Part, Plan
from features.online.request import (
    MAX_BODY_BYTES,
    MAX_CANDIDATES,
    MAX_COLUMNS,
    MAX_HISTORY,
    MAX_ID_CHARACTERS,
    MAX_QUERY_CHARACTERS,
    MAX_TIMESTAMP_US,
)
from features.online.request_features import MAX_COUNT, OnlineFeatures
from features.online.snapshot import Snapshot
from serving.package.generations import SNAPSHOT, current_generation, generation_folder
from serving.package.manifest import PackageManifest

Schema = dict[str, Any]
IfAbsent = Literal["looked up", "its serving value", "missing"]
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_INT64 = 2**63
#: Timestamps decades before the snapshot are in another unit.
_OLDEST = 100


@dataclass(frozen=True)
class Input:
    """One name that `context` or `candidate_columns` may have.

    Attributes:
        for_request: all candidates share it; as a candidate column it has one value throughout.
        if_absent: what the model reads instead.
        schema: of one value.
        arrow: type of a column of an Arrow body.
    """

    name: str
    for_request: bool
    if_absent: IfAbsent
    schema: Schema
    arrow: str


def inputs_of(plan: Plan) -> tuple[Input, ...]:
    """All that a request may give, in the order of their names."""
    found: dict[str, Input] = {}
    for part in (plan.shared, plan.own):
        for one in _of_counters(part):
            found[one.name] = one
    for part in (plan.shared, plan.own):
        for one in _of_features(part):
            earlier = found.get(one.name)
            both = earlier is not None and earlier.if_absent != "looked up"
            found[one.name] = _both(earlier, one) if earlier is not None and both else one
    return tuple(
        Input(name, plan.inputs[name], found[name].if_absent, found[name].schema, found[name].arrow)
        for name in sorted(found)
    )


def request_schema(manifest: PackageManifest, features: OnlineFeatures) -> dict[str, Any]:
    """{"json": JSON Schema of the JSON body, "arrow": columns and metadata of the Arrow body, ...}."""
    inputs = inputs_of(features.plan)
    fields = _fields(features)
    values = {one.name: one.schema for one in inputs}
    columns = {
        one.name: {
            "type": "array",
            "items": one.schema,
            "maxItems": MAX_CANDIDATES,
            "description": _said(one) + (", the same for all candidates" if one.for_request else ""),
        }
        for one in inputs
    }
    named = {"type": ["object", "null"], "additionalProperties": False, "maxProperties": MAX_COLUMNS}
    context = {
        **named,
        "properties": {one.name: {**one.schema, "description": _said(one)} for one in inputs},
        "description": "values that all candidates share",
    }
    product = _id(features.snapshot.products.kind, "of a product")
    body = {
        "$schema": _DIALECT,
        "title": f"a request to {manifest.model_version}",
        "type": "object",
        "properties": {
            **fields,
            "candidates": {
                "type": "array",
                "items": product,
                "minItems": 1,
                "maxItems": MAX_CANDIDATES,
                "description": "product ids; an unknown one is scored and counted",
            },
            "context": context,
            "candidate_columns": {
                **named,
                "properties": columns,
                "description": "one value for each candidate, in their order",
            },
        },
        "required": ["query", "candidates"],
        "additionalProperties": False,
    }
    in_metadata = {
        "type": "object",
        "properties": {**fields, "context": context},
        "required": ["query"],
        "additionalProperties": False,
    }
    id_type = "int64" if features.snapshot.products.kind == "integer" else "string"
    return {
        "model_version": manifest.model_version,
        "most_bytes": MAX_BODY_BYTES,
        "json": body,
        "arrow": {
            "columns": [
                {"name": "product_id", "type": id_type, "nullable": False, "required": True},
                *(
                    {
                        "name": name,
                        "type": one.arrow,
                        "nullable": "null" in _types(values[name]),
                        "required": False,
                    }
                    for name, one in zip(values, inputs, strict=True)
                ),
            ],
            "metadata": {"dashclip": in_metadata},
        },
        "inputs": [
            {
                "name": one.name,
                "given_for": "request" if one.for_request else "candidate",
                "if_absent": one.if_absent,
                **one.schema,
            }
            for one in inputs
        ],
    }


def schema_of_package(package: Path) -> dict[str, Any]:
    """`request_schema` of what a package serves now, without opening its model.

    Raises:
        PackageError: no package, or a damaged one.
    """
    manifest = PackageManifest.read(package)
    folder = generation_folder(package, current_generation(package))
    snapshot = Snapshot.open(folder / SNAPSHOT, verify=False)
    return request_schema(manifest, OnlineFeatures(snapshot, context_columns=manifest.context))


def _fields(features: OnlineFeatures) -> dict[str, Schema]:
    """Those beside the candidates."""
    snapshot = features.snapshot
    product = _id(snapshot.products.kind, "of a product")
    history: Schema = {"type": "null", "description": "this model reads no purchase history"}
    if snapshot.manifest.config.history is not None and snapshot.purchases is not None:
        history = {
            "type": ["array", "null"],
            "items": product,
            "maxItems": MAX_HISTORY,
            "description": "product ids, newest first; looked up if absent",
        }
    return {
        "user_id": {
            **_nullable(_id(snapshot.users.kind, "of a user")),
            "description": "an unknown one is a cold user; null or absent is nobody",
        },
        "query": {
            "type": ["string", "null"],
            "maxLength": MAX_QUERY_CHARACTERS,
            "description": "null where there was no search",
        },
        "timestamp_us": {
            "type": ["integer", "null"],
            "minimum": snapshot.manifest.as_of_us // _OLDEST,
            "maximum": MAX_TIMESTAMP_US,
            "description": "microseconds since 1970, UTC; the server's clock if absent",
        },
        "history": history,
    }


def _of_counters(part: Part) -> Iterable[Input]:
    for counter in part.counters:
        for name in counter.block.names:
            schema: dict[str, Any] = {"type": "number", "minimum": 0}
            if not counter.block.place[name][0]:  # a CTR may exceed 1, with the counts that it is of
                schema["maximum"] = MAX_COUNT
            yield Input(name, False, "looked up", schema, "double")


def _of_features(part: Part) -> Iterable[Input]:
    for dense in part.dense:
        if dense.input is not None:
            absent: IfAbsent = "looked up" if dense.product_place is not None else "missing"
            yield Input(dense.input, False, absent, _number(dense.transform), "double")
    for sparse in part.sparse:
        if sparse.input is not None:
            kind = sparse.vocabulary.ids.kind
            absent = "looked up" if sparse.known else "missing"
            if sparse.feature.serving_value is not None:
                absent = "its serving value"
            arrow = "int64" if kind == "integer" else "string"
            yield Input(sparse.input, False, absent, _nullable(_id(kind, None)), arrow)


def _number(transform: Transform) -> Schema:
    schema: Schema = {"type": ["number", "null"]}
    if transform.bounds is not None and transform.sd != 0:
        low, high = transform.bounds
        farthest = FAR_BEYOND * max(abs(low), abs(high))
        schema |= {"minimum": 0 if low >= 0 else -farthest, "maximum": farthest}
    return schema


def _id(kind: IdKind, what: str | None) -> Schema:
    said = {} if what is None else {"description": f"id {what}"}
    if kind == "integer":
        return {"type": "integer", "minimum": -_INT64, "maximum": _INT64 - 1, **said}
    return {"type": "string", "maxLength": MAX_ID_CHARACTERS, **said}


def _nullable(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _types(schema: Mapping[str, Any]) -> list[str]:
    if "allOf" in schema:
        return [name for name in _types(schema["allOf"][0]) if name in _types(schema["allOf"][1])]
    return [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])


def _both(first: Input, second: Input) -> Input:
    """What two features read has to suit both."""
    if first.schema == second.schema:
        return first
    narrow = first if first.arrow == "int64" else second
    return Input(first.name, False, first.if_absent, {"allOf": [first.schema, second.schema]}, narrow.arrow)


def _said(one: Input) -> str:
    return {
        "looked up": "looked up if absent",
        "its serving value": "has the feature's serving value if absent",
        "missing": "missing if absent",
    }[one.if_absent]

"""`dashclip schema`: what a request to a package may hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping


def schema(
    package: Annotated[Path, typer.Argument(help="A package of `dashclip package`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file to write: JSON Schema of the JSON body, columns of the Arrow body."),
    ] = None,
) -> None:
    """Say what a request may hold: fields, live values, their types and ranges, and what is looked up.

    Example: `dashclip schema runs/package --out request_schema.json`
    """
    from rich.table import Table

    from experiments.runtime.terminal import Console
    from features.artifacts import atomic_write_json
    from serving.wire.request_schema import schema_of_package

    described = schema_of_package(package)
    console = Console()
    body = described["json"]
    fields = Table("field", "type", "range", "", title=body["title"], title_justify="left")
    for name, field in body["properties"].items():
        must = " (required)" if name in body["required"] else ""
        fields.add_row(name + must, _types(field), _range(field), field.get("description", ""))
    console.print(fields)
    title = "names in context and candidate_columns; an Arrow body has the latter as columns"
    columns = Table("name", "given for a", "type", "range", "if absent", title=title, title_justify="left")
    columns.columns[0].overflow = "fold"  # a name that is cut helps nobody
    for one in described["inputs"]:
        columns.add_row(one["name"], one["given_for"], _types(one), _range(one), one["if_absent"])
    console.print(columns)
    console.print(f"a body has at most {described['most_bytes']:,} bytes")
    if out is not None:
        atomic_write_json(out, described)


def _types(schema: "Mapping[str, Any]") -> str:
    if "allOf" in schema:
        return " and ".join(_types(one) for one in schema["allOf"])
    kinds = schema["type"]
    said = kinds if isinstance(kinds, str) else " or ".join(kinds)
    return f"{said} of {_types(schema['items'])}" if "items" in schema else said


def _range(schema: "Mapping[str, Any]") -> str:
    if "maxItems" in schema:
        return f"{schema.get('minItems', 0):,} to {schema['maxItems']:,}"
    if "maxLength" in schema:
        return f"at most {schema['maxLength']:,} characters"
    if "maximum" in schema and schema["maximum"] < 2**62:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    if "maximum" not in schema and "minimum" in schema:
        return f"from {schema['minimum']:g}"
    return ""

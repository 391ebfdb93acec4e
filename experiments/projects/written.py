"""A drafted config as a commented TOML file: each key with its meaning, its other values and why it is so."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.config_keys import ConfigKey, find_keys, toml_value
from experiments.projects.configs import Drafted

WIDTH = 100


def written(draft: Drafted, heading: str) -> str:
    """The text of the file. Keys that are left out are named where their section ends."""
    meanings = {key.path: key for key in find_keys(draft.kind)}
    lines = textwrap.wrap(heading, WIDTH, initial_indent="# ", subsequent_indent="# ")
    lines += ["# All keys: `dashclip config explain " + draft.kind + "`, or docs/configuration.md.", ""]
    lines += _section(draft, draft.content, "", "", meanings)
    return "\n".join(lines) + "\n"


def _section(
    draft: Drafted, content: dict[str, Any], path: str, model: str, meanings: dict[str, ConfigKey]
) -> Iterator[str]:
    """Lines of one section; `model` is its path in the config's model, where names are NAME."""
    plain = {name: value for name, value in content.items() if not isinstance(value, dict)}
    for name, value in plain.items():
        key, own = meanings[f"{model}{name}"], f"{path}{name}"
        yield from _comment(_told(key, draft.notes.get(own)))
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _list(draft, name, value)
        else:
            yield f"{name} = {toml_value(value)}"
    left_out = [
        key.path.removeprefix(model)
        for key in meanings.values()
        if _is_in(key.path, model) and key.path.removeprefix(model) not in content
    ]
    if left_out:
        yield from _comment(f"Also here: {', '.join(left_out)}.")
    for name, value in content.items():
        if not isinstance(value, dict):
            continue
        own, below = f"{path}{name}", f"{model}{name}"
        yield ""
        yield from _comment(_told(meanings.get(below), draft.notes.get(own), values=False))
        yield f"[{own}]"
        if below == "variants":
            for variant, settings in value.items():
                yield from ("", *_bare(settings, f"{own}.{variant}"))
        else:
            yield from _section(draft, value, f"{own}.", f"{below}.", meanings)


def _bare(content: dict[str, Any], path: str) -> Iterator[str]:
    """Lines without comments, which would stand at each variant alike."""
    plain = {name: value for name, value in content.items() if not isinstance(value, dict)}
    if plain:
        yield f"[{path}]"
    for name, value in plain.items():
        yield f"{name} = {toml_value(value)}"
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _bare(value, f"{path}.{name}")


def _is_in(path: str, section: str) -> bool:
    return path.startswith(section) and "." not in path.removeprefix(section) and "[]" not in path


def _list(draft: Drafted, name: str, entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield f"{name} = ["
    for entry in entries:
        if note := draft.notes.get(entry["name"]):
            yield f"  # {note}"
        yield f"  {toml_value(entry)},"
    if spare := draft.spare.get(name):
        yield "  # Further columns. Uncomment those that are known before the click, and to a server as well:"
        yield from (f"  # {line}" for line in spare)
    yield "]"


def _told(key: ConfigKey | None, note: str | None, *, values: bool = True) -> str:
    parts = []
    if key is not None:
        parts.append(key.meaning)
        if (
            values
            and key.value.startswith('"')
            and any(word.split('"')[0] not in key.meaning for word in key.value.split('"')[1::2])
        ):
            parts.append(f"Values: {key.value}.")
    if note:
        parts.append(f"Here: {note}.")
    return " ".join(parts)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)

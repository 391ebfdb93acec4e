"""What the keys of configs mean, for a terminal and as the page docs/configuration.md."""

import textwrap
from collections.abc import Sequence

from experiments.config import READ_BY
from experiments.config_keys import KINDS, ConfigKey, keys_of
from experiments.statistics.cells import markdown_table

WIDTH = 80

_INTRODUCTION = """\
# Every key of every config

Written by `dashclip config explain --markdown` from the models that check the configs; change their comments,
not this page. `dashclip config explain KEY` shows one key or section in the terminal, `dashclip config list`
the configs that come along, and `dashclip init DATA` writes configs that fit your data.

A key that no model knows is refused, with the nearest that it knows. `NAME` stands for a name that you
choose, `[]` for an entry of a list.
"""


def kinds_text() -> str:
    """The kinds of config, each with its top-level keys."""
    lines = ["Kinds of config, and their top-level keys:", ""]
    for kind in KINDS:
        names = ", ".join(kind.model.model_fields)
        lines += [f"{kind.name}, read by `{READ_BY[kind.name]}`", *_wrapped(names, "    "), ""]
    return "\n".join([*lines, "`dashclip config explain KIND` or KEY says what they mean."]) + "\n"


def keys_text(keys: Sequence[ConfigKey]) -> str:
    """Each key on a line of its own, what may stand there below, then its meaning; 80 columns."""
    lines = []
    for key in keys:
        lines += [key.full, *_wrapped(f"{key.value}; {key.default_words}", "    ")]
        lines += [*_wrapped(_meaning(key), "    "), ""]
    return "\n".join(lines[:-1]) + "\n"


def to_markdown() -> str:
    """The page: a table for each section of each kind; keys that two sections share stand once."""
    lines = [_INTRODUCTION.rstrip()]
    shown: dict[type, str] = {}
    for kind in KINDS:
        lines += ["", f"## {kind.name}", "", f"Read by `{READ_BY[kind.name]}`.", ""]
        keys, sections = keys_of(kind), {"": kind.model}
        for key in keys:
            if key.section:
                sections[key.path] = key.section
        for path, model in sections.items():
            own = [key for key in keys if _section_of(key.path) == path]
            if path and own:
                lines += ["", f"### `{kind.name}: {path}`", ""]
            if not own:
                continue
            if model in shown and path:
                lines.append(f"The same keys as `{shown[model]}`.{_otherwise(own)}")
                continue
            shown[model] = f"{kind.name}: {path}" if path else kind.name
            rows = [(f"`{key.path}`", key.value, _default_cell(key), _meaning(key)) for key in own]
            lines += markdown_table(
                ("key", "value", "without it", "meaning"),
                [tuple(map(_cell, row)) for row in rows],
                text_columns=4,
            )
    return "\n".join(lines) + "\n"


def _section_of(path: str) -> str:
    """Where a key stands: `a.b[].c` in `a.b`, `variants.NAME.title` in `variants`."""
    above = path.rpartition(".")[0].removesuffix("[]")
    return above.removesuffix(".NAME")


def _meaning(key: ConfigKey) -> str:
    """With the kind whose keys it takes, where these are not told again."""
    kinds = {kind.model: kind.name for kind in KINDS}
    return f"{key.meaning} Its keys: `{kinds[key.section]}`." if key.section in kinds else key.meaning


def _otherwise(keys: Sequence[ConfigKey]) -> str:
    return f" Without one: {keys[0].otherwise}." if keys[0].otherwise else ""


def _default_cell(key: ConfigKey) -> str:
    if key.otherwise or key.default is None:
        return key.default_words
    return f"`{key.default}`" if key.default else "–"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

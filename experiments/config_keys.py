"""Every key of every config, read from the models that check it: type, limits, default and meaning.

A meaning is the `#:` comment above a field; a section without one has the first paragraph of its model's
docstring. So what people read is written beside what is checked.
"""

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from embeddings.grading.language_models.prompt import Prompt
from experiments.ablation.plan import AblationConfig
from experiments.config import ConfigError, KeysOf
from experiments.datasets.own_tables.mapping import ImportMapping
from experiments.encoders.config import EncodersConfig
from experiments.sweeps.sweep import SweepConfig
from features.schema import FeatureConfig
from ranking.run import RunConfig

#: Stands in the name of a key for a name that the user chooses, and for an entry of a list.
NAME, ENTRY = "NAME", "[]"


@dataclass(frozen=True)
class ConfigKind:
    """One kind of config file, and the model that checks it."""

    name: str
    model: type[BaseModel]


KINDS = (
    ConfigKind("features", FeatureConfig),
    ConfigKind("encoders", EncodersConfig),
    ConfigKind("run", RunConfig),
    ConfigKind("sweep", SweepConfig),
    ConfigKind("ablation", AblationConfig),
    ConfigKind("prompt", Prompt),
    ConfigKind("mapping", ImportMapping),
)


@dataclass(frozen=True)
class ConfigKey:
    """One key of one kind of config.

    Attributes:
        path: as `split.test_days`; `sparse[].name` is a key of each entry of a list.
        value: what may stand there, in words.
        default: as TOML; None where the key must be given, empty where it is left out.
        section: the model whose keys stand below this one, if any.
        otherwise: what holds without the key, where that is not `default`.
    """

    kind: str
    path: str
    value: str
    default: str | None
    meaning: str
    section: type[BaseModel] | None = None
    otherwise: str | None = None

    @property
    def full(self) -> str:
        """With its kind: `features.split.test_days`."""
        return f"{self.kind}.{self.path}"

    @property
    def default_words(self) -> str:
        """What holds without the key."""
        if self.otherwise:
            return self.otherwise
        if self.default is None:
            return "must be given"
        return f"default {self.default}" if self.default else "may be left out"


def all_keys() -> list[ConfigKey]:
    """Every key of every kind, in the order of the models."""
    return [key for kind in KINDS for key in keys_of(kind)]


def keys_of(kind: ConfigKind) -> list[ConfigKey]:
    """Every key of one kind, each section before its keys."""
    return list(_walk(kind.name, kind.model, ""))


def find_keys(asked: str) -> list[ConfigKey]:
    """The keys of that name: a kind, a whole path, or the end of one; a section brings the keys below it.

    `features` gives all keys of that kind, `split.test_days` and `test_days` one, `optimizer` a section.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    wanted = asked.strip().strip("[]")
    for kind in KINDS:
        if wanted == kind.name:
            return keys_of(kind)
    keys = all_keys()
    names = {key: _plain(key.full) for key in keys}
    exact = [key for key in keys if names[key] == _plain(wanted)]
    named = exact or [key for key in keys if names[key].endswith(f".{_plain(wanted)}")]
    if named:
        return [key for key in keys if any(_is_below(key, over) for over in named)]
    ends = {
        ".".join(name.split(".")[start:]) for name in names.values() for start in range(name.count(".") + 1)
    }
    near = difflib.get_close_matches(_plain(wanted), sorted(ends), n=5, cutoff=0.6)
    hint = (
        f"did you mean {', '.join(near)}?"
        if near
        else f"give a kind ({', '.join(kind.name for kind in KINDS)}) to see all its keys"
    )
    raise ConfigError(f"no config has a key {asked!r}; {hint}")


def _plain(path: str) -> str:
    return path.replace(ENTRY, "")


def _is_below(key: ConfigKey, over: ConfigKey) -> bool:
    return key.full == over.full or key.full.startswith((f"{over.full}.", f"{over.full}{ENTRY}."))


def _walk(
    kind: str, model: type[BaseModel], prefix: str, over: "_Section | None" = None
) -> Iterator[ConfigKey]:
    for name, field in model.model_fields.items():
        if over and name in over.without:
            continue
        below = _section_of(field)
        told = _comment(model, name)
        meaning = told or (_first_paragraph(below.model) if below else "")
        yield ConfigKey(
            kind=kind,
            path=f"{prefix}{name}",
            value=_value_words(field.annotation, field.metadata),
            default=_default(field),
            otherwise=over.otherwise if over else _whole_default(field),
            meaning=meaning,
            section=below.model if below else None,
        )
        if below and below.model not in {other.model for other in KINDS}:
            yield from _walk(kind, below.model, f"{prefix}{name}{below.step}", below)


@dataclass(frozen=True)
class _Section:
    model: type[BaseModel]
    step: str
    without: tuple[str, ...] = ()
    otherwise: str | None = None


def _section_of(field: FieldInfo) -> _Section | None:
    """The model whose keys stand below a field, and how its keys are reached."""
    for note in field.metadata:
        if isinstance(note, KeysOf):
            return _Section(note.model, ".", note.without, note.otherwise)
    return _section_in(field.annotation)


def _section_in(annotation: Any, step: str = ".") -> _Section | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return _Section(annotation, step)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return _section_in(arguments[0], f"{ENTRY}.")
    if origin is dict:
        return _section_in(arguments[1], f".{NAME}.")
    if origin is Annotated:
        return _section_in(arguments[0], step)
    return next((found for argument in arguments if (found := _section_in(argument, step))), None)


def _comment(model: type[BaseModel], name: str) -> str:
    """The `#:` comment above a field, in the class that declares it."""
    owner = next(owner for owner in model.__mro__ if name in vars(owner).get("__annotations__", {}))
    lines = _lines_of(owner)
    at = next(number for number, line in enumerate(lines) if re.match(rf"    {name}: ", line))
    found: list[str] = []
    while at and lines[at - 1].strip().startswith("#:"):
        at -= 1
        found.insert(0, lines[at].strip().removeprefix("#:").strip())
    return " ".join(found)


@cache
def _lines_of(owner: type) -> list[str]:
    """Of a class, once: to find them Python parses the whole module."""
    return textwrap.dedent(inspect.getsource(owner)).splitlines()


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].split())


_PLAIN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    Any: "any value",
}
_LIMIT_WORDS: dict[type, tuple[str, str]] = {
    limits.Ge: ("at least", "ge"),
    limits.Gt: ("above", "gt"),
    limits.Le: ("at most", "le"),
    limits.Lt: ("below", "lt"),
    limits.MultipleOf: ("a multiple of", "multiple_of"),
}


def _value_words(annotation: Any, metadata: Any = ()) -> str:
    """What a value may be: `a whole number, at least 1`, `"exact", "hour" or "day"`."""
    limited = _limits(metadata)
    for note in metadata:
        if isinstance(note, KeysOf):
            return "a section"
    return ", ".join([_type_words(annotation), *limited])


def _limits(metadata: Any) -> list[str]:
    found = []
    for note in metadata:
        if isinstance(note, FieldInfo):
            found += _limits(note.metadata)
        elif type(note) in _LIMIT_WORDS:
            words, attribute = _LIMIT_WORDS[type(note)]
            found.append(f"{words} {getattr(note, attribute):,}")
        elif isinstance(note, limits.MinLen):
            found.append(f"at least {note.min_length} of them")
        elif pattern := getattr(note, "pattern", None):
            found.append(f"as {pattern}")
    return found


def _type_words(annotation: Any) -> str:
    if annotation in _PLAIN_WORDS:
        return _PLAIN_WORDS[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "a section"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _value_words(arguments[0], arguments[1:])
    if origin is Literal:
        return _either([json.dumps(value) for value in arguments])
    if origin in (Union, UnionType):
        return _either([_type_words(argument) for argument in arguments if argument is not NoneType])
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(_type_words, arguments))}"
    if origin is tuple:
        return f"a list, each {_type_words(arguments[0])}"
    if origin is dict:
        return f"a section of names, each {_type_words(arguments[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _either(words: list[str]) -> str:
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _whole_default(field: FieldInfo) -> str | None:
    return "its defaults" if isinstance(field.default, BaseModel) else None


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel) or value in ({}, "", ()):
        return ""
    return toml_value(value)


def toml_value(value: Any) -> str:
    """A plain value as TOML writes it: `true`, `[1, 7, 28]`, `"hour"`."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {toml_value(inner)}' for name, inner in value.items())} }}"
    if isinstance(value, float):
        return repr(round(value, 4)) if value > 1e-3 else f"{value:g}"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)

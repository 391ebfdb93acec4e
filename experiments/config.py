"""TOML files to frozen configs, with errors that name the key, what came and what would do."""

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

ConfigT = TypeVar("ConfigT", bound=BaseModel)

SHIPPED = Path(__file__).parent / "configs"
#: The command that reads each kind of config.
READ_BY = {
    "features": "dashclip features build",
    "encoders": "dashclip encode",
    "run": "dashclip train",
    "sweep": "dashclip sweep",
    "ablation": "dashclip encode ablate",
    "prompt": "dashclip grade",
    "mapping": "dashclip import tables",
}

#: A top-level key, and the kind of config that it tells; the first found counts.
KINDS = (
    ("base", "ablation"),
    ("size", "encoders"),
    ("variants", "sweep"),
    ("variant", "run"),
    ("sparse", "features"),
    ("products", "mapping"),
)


@dataclass(frozen=True)
class KeysOf:
    """Says of a dictionary in a config that its keys are fields of `model`, but for those in `without`.

    `otherwise` says what holds for a key that is left out, where that is not the model's default.
    """

    model: type[BaseModel]
    without: tuple[str, ...] = ()
    otherwise: str | None = None


class ConfigError(ValueError):
    """A configuration file that cannot be used; the message names the file and every bad key."""


def config_file(path: Path) -> Path:
    """Where a config is: of a bare name, among the shipped ones, unless there is a file of that name."""
    shipped = SHIPPED / f"{path}.toml"
    return shipped if not path.is_file() and path.parent == Path() and shipped.exists() else path


def load_config(path: Path, model: type[ConfigT]) -> ConfigT:
    """Read a TOML file into `model`; a bare name like `demo` means the shipped config of that name.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key is unknown, missing or out of range.
    """
    path = config_file(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.toml")))
        raise ConfigError(f"{path} is not a file; give a TOML file or a shipped config ({names})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return parse_config(content, model, where=str(path))


def parse_config(content: dict[str, Any], model: type[ConfigT], *, where: str) -> ConfigT:
    """Validate a nested dictionary; `where` names its origin in errors."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_sentence(problem, model) for problem in error.errors()]
        raise ConfigError(f"{where}: {_another_kind(content, model)}" + "; ".join(lines)) from None


def merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `common`, table by table: {"a": {"x": 1}} over {"a": {"y": 2}} keeps both keys of `a`."""
    found = dict(common)
    for key, value in own.items():
        both_tables = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both_tables else value
    return found


def _another_kind(content: dict[str, Any], model: type[BaseModel]) -> str:
    kind = next((kind for key, kind in KINDS if key in content and key not in model.model_fields), None)
    return f"this is a config that `{READ_BY[kind]}` reads; " if kind else ""


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    if problem["type"] == "value_error":  # our own sentence, which names what came; the input may be the file
        return f"{key}: {problem['ctx']['error']}" if location else str(problem["ctx"]["error"])
    return f"{key!r}: {problem['msg']} (got {problem['input']!r})"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Field names of the model that sits at `location` inside `model`."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            continue  # a list index or a free dictionary key: its model was found one step before
        inner = _models_in(field.annotation)
        if not inner:
            return []
        model = inner[0]
    return sorted(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]

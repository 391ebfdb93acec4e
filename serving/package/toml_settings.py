"""Settings that people may change in a package: TOML files that nothing seals."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from features.artifacts import StrictModel
from serving.package.sealed_folder import PackageError

SettingsT = TypeVar("SettingsT", bound=StrictModel)


def read_settings(path: Path, kind: type[SettingsT]) -> SettingsT:
    """What the file says; the defaults where there is none, as in older packages.

    Raises:
        PackageError: the file cannot be used; says which key.
    """
    try:
        return kind.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return kind()
    except ValidationError as invalid:
        first = invalid.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise PackageError(f"{path}: {key}: {first['msg']} (got {first['input']!r})") from None
    except ValueError as error:
        raise PackageError(f"{path} cannot be read: {error}") from None

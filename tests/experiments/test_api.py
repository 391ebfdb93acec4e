"""The public API: every name is there, explained, and defined in one place."""

import inspect
import re
from pathlib import Path

import pytest

from experiments import api


def test_every_public_name_is_listed_once_with_a_line_on_it() -> None:
    source = inspect.getsource(api)
    listed = re.findall(r'^    "(\w+)",  # \S.*$', source, flags=re.MULTILINE)
    assert listed == api.__all__
    assert len(set(listed)) == len(listed)
    imported = {name for name, value in vars(api).items() if name[0] != "_" and hasattr(value, "__module__")}
    assert imported == set(listed)


@pytest.mark.parametrize("name", api.__all__)
def test_every_public_name_has_a_docstring_of_its_own(name: str) -> None:
    assert (getattr(api, name).__doc__ or "").strip()


def test_the_api_defines_nothing_itself() -> None:
    assert {getattr(api, name).__module__ for name in api.__all__}.isdisjoint({"experiments.api"})
    assert Path(api.__file__).read_text(encoding="utf-8").count("def ") == 0

"""Every key of every config is explained, by the models that check it."""

import inspect
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from experiments import config_keys
from experiments.cli import app
from experiments.config import READ_BY, ConfigError
from experiments.config_keys import KINDS, ConfigKind, all_keys, find_keys, keys_of
from experiments.reports.config_text import WIDTH, keys_text, kinds_text, to_markdown
from features.artifacts import StrictModel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


class Inner(StrictModel):
    """A part.

    More about it.
    """

    #: How much of it
    #: there is.
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


class Derived(Inner):
    """A part with a choice."""

    #: Which one.
    kind: Literal["a", "b"]


class Whole(StrictModel):
    """All of it."""

    part: Inner = Inner()
    #: What is left out.
    parts: tuple[Derived, ...] = ()
    #: Named.
    named: dict[str, Inner] = Field(default_factory=dict)
    #: Sizes.
    sizes: tuple[Annotated[int, Field(ge=1, multiple_of=4)], ...] = (4, 8)


def test_a_key_has_the_words_limits_and_default_of_its_field():
    found = {key.path: key for key in keys_of(ConfigKind("x", Whole))}
    assert [*found] == [
        *("part", "part.share", "parts", "parts[].share", "parts[].kind"),
        *("named", "named.NAME.share", "sizes"),
    ]
    assert (found["part"].meaning, found["part"].default_words) == ("A part.", "its defaults")
    assert found["part.share"].meaning == "How much of it there is."
    assert found["part.share"].value == "a number, above 0, at most 1"
    assert found["part.share"].default_words == "default 0.5"
    assert found["parts[].share"].meaning == found["part.share"].meaning, "inherited with its comment"
    assert found["parts[].kind"].value == '"a" or "b"'
    assert found["parts[].kind"].default_words == "must be given"
    assert found["named"].value == "a section of names, each a section"
    assert found["sizes"].value == "a list, each a whole number, at least 1, a multiple of 4"
    assert found["sizes"].default == "[4, 8]"


def test_every_kind_of_config_is_explained_and_says_who_reads_it():
    assert [kind.name for kind in KINDS] == [*READ_BY]


@pytest.mark.parametrize("key", all_keys(), ids=lambda key: key.full)
def test_every_key_has_a_meaning_that_is_a_sentence(key):
    assert key.meaning.endswith((".", "?")), f"write a `#:` comment above {key.full}"
    assert key.meaning[0].isupper() or key.meaning[0] in '"`0123456789'


def test_the_page_of_all_keys_is_current():
    assert PAGE.read_text(encoding="utf-8") == to_markdown(), (
        "dashclip config explain --markdown > docs/configuration.md"
    )


def test_the_page_names_every_key():
    page = PAGE.read_text(encoding="utf-8")
    last = {f"`{key.path.rpartition('.')[2]}`" for key in all_keys()}
    missing = [name for name in last if name[1:-1] not in page]
    assert missing == []


def test_a_key_is_found_by_its_end_and_a_section_brings_its_keys():
    assert [key.full for key in find_keys("test_days")] == ["features.split.test_days"]
    assert [key.full for key in find_keys("[split]")][:2] == ["features.split", "features.split.method"]
    assert [key.full for key in find_keys("sparse.min_count")] == ["features.sparse[].min_count"]
    assert {key.kind for key in find_keys("sweep")} == {"sweep"}
    assert {key.full for key in find_keys("product_table")} == {
        *("run.product_table", "sweep.product_table", "sweep.variants.NAME.product_table")
    }


def test_keys_of_a_free_dictionary_are_those_of_the_model_that_checks_it():
    [dim] = find_keys("encoders.architecture.embedding_dim")
    assert dim.default_words == "as `size` has it"
    [rate] = find_keys("sweep.training.optimizer.warmup_steps")
    assert rate.default == "50"
    with pytest.raises(ConfigError):
        find_keys("architecture.kept_dims")


def test_an_unknown_key_gets_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean .*test_days"):
        find_keys("tset_days")
    with pytest.raises(ConfigError, match=r"give a kind \(features, encoders"):
        find_keys("zzzzqqq")


def test_the_command_prints_lines_that_fit_a_terminal():
    printed = CliRunner().invoke(app, ["config", "explain", "align.kept_dims"], catch_exceptions=False)
    assert printed.output.startswith("encoders.align.kept_dims\n    a whole number")
    for text in (printed.output, kinds_text(), keys_text(all_keys())):
        assert max(map(len, text.splitlines())) <= WIDTH


def test_the_source_of_a_model_is_read_once(monkeypatch):
    """`dashclip init` spent half its time on reading the same modules some 1,600 times."""
    read: list[type] = []
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda owner: read.append(owner) or source(owner))
    config_keys._lines_of.cache_clear()
    for _ in range(3):
        find_keys("features")
    assert read
    assert len(read) == len(set(read))

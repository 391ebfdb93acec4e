"""Chats to fine-tune on: what each line says, and which queries are in neither file."""

import json
from pathlib import Path

import numpy as np
import pytest

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION
from embeddings.grading.language_models.fine_tuning import export_chats
from embeddings.grading.language_models.prompt import TEMPLATE, Prompt
from embeddings.grading.pairs import GradingError
from tests.embeddings.grading.small_world import read_small_world


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    text = TEMPLATE.replace('high = "high"', 'high = "perfect"')
    (tmp_path / "prompt.toml").write_text(text)
    return Prompt.read(tmp_path / "prompt.toml")


def chats(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_is_the_question_as_it_will_be_asked_and_the_word_for_peoples_grade(
    world: Path, prompt: Prompt, tmp_path: Path
) -> None:
    _, graded = read_small_world(world)
    export_chats(graded, prompt, tmp_path / "chats")
    for role, name in ((TRAIN, "train"), (VALIDATION, "validation")):
        part = graded.of_role(role)
        lines = chats(tmp_path / "chats" / f"{name}.jsonl")
        assert len(lines) == len(part)
        words = ("irrelevant", "moderate", "perfect")
        rows = zip(lines, part.pairs.queries, part.pairs.texts, part.grade_N.tolist(), strict=True)
        for messages, query, text, grade in rows:
            assert messages[:2] == prompt.messages(query, text)
            assert messages[2] == {"role": "assistant", "content": words[grade]}


def test_no_query_is_in_both_files_and_test_queries_are_in_neither(
    world: Path, prompt: Prompt, tmp_path: Path
) -> None:
    _, graded = read_small_world(world)
    export_chats(graded, prompt, tmp_path / "chats")
    asked = {
        name: {
            messages[1]["content"].splitlines()[0] for messages in chats(tmp_path / "chats" / f"{name}.jsonl")
        }
        for name in ("train", "validation")
    }
    of_test = {f"Query: {query}" for query in graded.of_role(TEST).pairs.queries}
    assert asked["train"]
    assert asked["validation"]
    assert of_test
    assert not asked["train"] & asked["validation"]
    assert not of_test & (asked["train"] | asked["validation"])


def test_pairs_and_tokens_are_counted(world: Path, prompt: Prompt, tmp_path: Path) -> None:
    _, graded = read_small_world(world)
    found = export_chats(graded, prompt, tmp_path / "chats")
    part = graded.of_role(VALIDATION)
    assert found.fine_tuning_pairs == {"train": len(graded.of_role(TRAIN)), "validation": len(part)}
    characters = [
        sum(len(message["content"]) for message in prompt.messages(query, text))
        for query, text in zip(part.pairs.queries, part.pairs.texts, strict=True)
    ]
    assert found.tokens["validation"] == sum(round(count / 4) + 1 for count in characters)
    assert found.prompt_sha == prompt.sha256
    assert export_chats(graded, prompt, tmp_path / "chats") == found


@pytest.mark.parametrize(("role", "name"), [(TRAIN, "train"), (VALIDATION, "validation")])
def test_a_role_without_pairs_is_refused_and_nothing_is_written(
    world: Path, prompt: Prompt, tmp_path: Path, role: int, name: str
) -> None:
    _, graded = read_small_world(world)
    rest = graded.take(np.flatnonzero(graded.role_N != role))
    with pytest.raises(GradingError, match=f"no {name} query"):
        export_chats(rest, prompt, tmp_path / "chats")
    assert not (tmp_path / "chats").exists()

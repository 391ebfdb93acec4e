"""The prompt file, its checksum, and what tokens mean."""

import hashlib
import json
import math
from pathlib import Path

import pytest

from embeddings.grading.language_models.prompt import TEMPLATE, Prompt, probabilities_of
from embeddings.grading.pairs import GradingError
from tests.embeddings.grading.language_models.chat_server import answer


def written(folder: Path, text: str) -> Prompt:
    (folder / "prompt.toml").write_text(text)
    return Prompt.read(folder / "prompt.toml")


def test_the_checksum_changes_with_what_is_asked_and_not_with_comments(tmp_path: Path) -> None:
    first = written(tmp_path, TEMPLATE).sha256
    assert written(tmp_path, "# a remark\n" + TEMPLATE).sha256 == first
    assert written(tmp_path, TEMPLATE.replace("near miss", "miss")).sha256 != first
    example = '\n[[examples]]\nquery = "a"\ntext = "b"\ngrade = "high"\n'
    assert written(tmp_path, TEMPLATE + example).sha256 != first


def test_a_prompt_without_nearest_examples_has_the_checksum_of_what_it_says_alone(tmp_path: Path) -> None:
    prompt = written(tmp_path, TEMPLATE)
    said = {
        "version": "1",
        "role": prompt.role,
        "definitions": prompt.definitions.model_dump(),
        "labels": {"irrelevant": "irrelevant", "moderate": "moderate", "high": "high"},
        "examples": [],
        "max_text_characters": 600,
    }
    assert prompt.sha256 == hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    count = TEMPLATE.replace("# nearest_count = 4", "nearest_count = 7")
    assert written(tmp_path, count).sha256 == prompt.sha256


def test_query_and_product_come_last_so_that_the_start_is_the_same_for_all(tmp_path: Path) -> None:
    prompt = written(tmp_path, TEMPLATE)
    one, other = prompt.messages("tea", "Green tea"), prompt.messages("ink", "Pen")
    assert one[0] == other[0]
    assert one[1]["content"].startswith("Query: tea\nProduct: Green tea")


def test_tokens_mean_the_grade_whose_label_they_begin(tmp_path: Path) -> None:
    prompt = written(tmp_path, TEMPLATE)
    assert [prompt.grade_of(token) for token in (" ir", "Mod", "high", "higher", "hi!", "", "no")] == [
        0, 1, 2, 2, None, None, None,
    ]  # fmt: skip


def test_probabilities_of_tokens_of_one_label_add_up(tmp_path: Path) -> None:
    prompt = written(tmp_path, TEMPLATE)
    found, problem = probabilities_of(json.loads(answer({"high": 0.4, " High": 0.2, "ir": 0.2})), prompt)
    assert found == pytest.approx([0.25, 0, 0.75], abs=1e-5)
    assert problem == ""


def test_a_single_letter_in_another_case_begins_a_sentence_and_no_label(tmp_path: Path) -> None:
    prompt = written(tmp_path, TEMPLATE)
    assert [prompt.grade_of(token) for token in ("I", " M", "i", " m", "Ir")] == [None, None, 0, 1, 0]
    numbers = "".join(
        f'{name} = "{number}"\n' for number, name in enumerate(("irrelevant", "moderate", "high"))
    )
    prompt = written(tmp_path, TEMPLATE.split("[labels]")[0] + "[labels]\n" + numbers)
    assert [prompt.grade_of(token) for token in ("0", " 2", "3")] == [0, 2, None]


def test_labels_that_other_words_outweigh_are_answers_and_named(tmp_path: Path) -> None:
    """As a llama.cpp server answers for a model that begins to chat."""
    prompt = written(tmp_path, TEMPLATE)
    alternatives = [("The", -0.6), ("I", -2.0), (" high", -2.5), ("ir", -3.5)]
    top = [
        {"id": row, "token": token, "bytes": [*token.encode()], "logprob": logprob}
        for row, (token, logprob) in enumerate(alternatives)
    ]
    choice = {
        "finish_reason": "length",
        "index": 0,
        "message": {"role": "assistant", "content": "The"},
        "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
    }
    found, problem = probabilities_of({"choices": [choice], "object": "chat.completion"}, prompt)
    odds = math.exp(-1.0)
    assert found == pytest.approx([odds / (1 + odds), 0, 1 / (1 + odds)], abs=1e-4)
    assert problem == "other_words_likelier"


def test_an_answer_without_log_probabilities_counts_whole_and_is_named(tmp_path: Path) -> None:
    prompt = written(tmp_path, TEMPLATE)
    body = {"choices": [{"message": {"content": "moderate"}}]}
    found, problem = probabilities_of(body, prompt)
    assert found is not None
    assert (found.tolist(), problem) == ([0, 1, 0], "without_logprobs")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('moderate = "moderate"', 'moderate = "hm"', "three different"),
        ("role =", "rolle =", "role"),
        ('version = "1"', "version = ", "cannot be read"),
    ],
)
def test_a_bad_prompt_is_refused_with_the_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(GradingError, match=says):
        written(tmp_path, TEMPLATE.replace(old, new))

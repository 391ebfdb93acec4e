"""A local model answers as if each whole prompt were read alone, and reads the shared part once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from embeddings.encoders.pretrained import PretrainedError
from embeddings.grading.language_models.local_model import LocalGrader
from embeddings.grading.language_models.prompt import Prompt
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.grading.run import run_grader
from tests.embeddings.grading.language_models.small_models import (
    CHAT,
    CONTEXT,
    NO_SYSTEM,
    write_model,
    write_prompt,
)
from tests.embeddings.grading.small_world import COLOURS, THINGS
from tests.tolerances import float32_drift

#: Two layers of width 16 with 32 in between, and up to 400 tokens to attend to in each. A probability is
#: off by less than its logit.
TERMS = 2 * (4 * 16 + 32 + CONTEXT) + 16


def some_pairs(count: int = 11) -> Pairs:
    """Queries and texts of different lengths, an empty text among them."""
    queries = [f"{COLOURS[n % 8]} {THINGS[n % 10]}" if n % 3 else THINGS[n % 10] for n in range(count)]
    texts = [" ".join([*COLOURS, *THINGS][: (5 * n) % 17]) for n in range(count)]
    return Pairs(queries, texts, pa.array(range(count)))


def slow_probabilities(
    folder: Path, prompt: Prompt, pairs: Pairs, *, opening: str = "", space: str = ""
) -> np.ndarray:
    """Each whole prompt alone, without a cache or a batch, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    labels = tokenizer.convert_tokens_to_ids([space + label for label in prompt.labels.in_order()])
    rows = []
    for query, text in zip(pairs.queries, pairs.texts, strict=True):
        messages = prompt.messages(query, text)
        if not tokenizer.chat_template:
            whole = "\n\n".join(message["content"] for message in messages)
            ids = tokenizer(whole)["input_ids"]
        else:
            if "no system" in tokenizer.chat_template:
                whole = "\n\n".join(message["content"] for message in messages)
                messages = [{"role": "user", "content": whole}]
            whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = tokenizer(whole + opening, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            rows.append(torch.softmax(model(torch.tensor([ids])).logits[0, -1, labels], 0).numpy())
    return np.array(rows)


@pytest.mark.parametrize("chat", [None, CHAT, NO_SYSTEM], ids=["plain", "chat", "chat without system"])
def test_probabilities_are_those_of_each_whole_prompt_read_alone(tmp_path: Path, chat: str | None) -> None:
    folder, prompt = write_model(tmp_path / "m", chat=chat), write_prompt(tmp_path / "p.toml")
    pairs = some_pairs()
    found = LocalGrader.load(folder, prompt, batch_size=4).probabilities(pairs)
    slow = slow_probabilities(folder, prompt, pairs)
    assert np.ptp(slow, axis=0).min() > 0.1  # pairs differ, or anything would do
    np.testing.assert_allclose(found, slow, rtol=0, atol=2 * float32_drift(TERMS))


@pytest.mark.parametrize("kind", ["mistral", "gpt2"])
def test_models_with_a_sliding_window_or_absolute_positions_answer_alike(tmp_path: Path, kind: str) -> None:
    folder, prompt = write_model(tmp_path / "m", kind=kind), write_prompt(tmp_path / "p.toml")
    found = LocalGrader.load(folder, prompt, batch_size=4).probabilities(some_pairs())
    slow = slow_probabilities(folder, prompt, some_pairs())
    np.testing.assert_allclose(found, slow, rtol=0, atol=2 * float32_drift(TERMS))


@pytest.mark.parametrize(("chat", "opening"), [(None, ""), (CHAT, "Grade:")], ids=["plain", "chat"])
def test_labels_that_are_tokens_only_after_a_space_are_asked_for_after_one(
    tmp_path: Path, chat: str | None, opening: str
) -> None:
    folder, prompt = write_model(tmp_path / "m", chat=chat, spaces=True), write_prompt(tmp_path / "p.toml")
    found = LocalGrader.load(folder, prompt).probabilities(some_pairs())
    slow = slow_probabilities(folder, prompt, some_pairs(), opening=opening, space=" ")
    np.testing.assert_allclose(found, slow, rtol=0, atol=2 * float32_drift(TERMS))


def test_neither_order_nor_batches_nor_earlier_calls_matter(tmp_path: Path) -> None:
    folder, prompt = write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml")
    pairs, order = some_pairs(), np.random.default_rng(0).permutation(11)
    whole = LocalGrader.load(folder, prompt, batch_size=64).probabilities(pairs)
    grader = LocalGrader.load(folder, prompt, batch_size=3)
    # One pair shares all of its prompt but the last token with itself; later calls share less.
    one = grader.probabilities(pairs.take(np.array([7])))
    shuffled = grader.probabilities(pairs.take(order))
    tolerance = 2 * float32_drift(TERMS)
    np.testing.assert_allclose(one[0], whole[7], rtol=0, atol=tolerance)
    np.testing.assert_allclose(shuffled, whole[order], rtol=0, atol=tolerance)
    assert grader.probabilities(pairs.take(order[:0])).shape == (0, 3)


def test_the_part_that_all_prompts_share_is_read_once(tmp_path: Path) -> None:
    folder, prompt = write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml")
    grader = LocalGrader.load(folder, prompt, batch_size=4)
    read: list[tuple[int, int]] = []
    grader.model.get_input_embeddings().register_forward_hook(
        lambda _module, inputs, _output: read.append(tuple(inputs[0].shape))
    )
    pairs = some_pairs()
    grader.probabilities(pairs)
    grader.probabilities(pairs)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    static = len(tokenizer(prompt.system() + "\n\nQuery:")["input_ids"])
    lengths = sorted(
        len(tokenizer("\n\n".join(message["content"] for message in prompt.messages(*pair)))["input_ids"])
        for pair in zip(pairs.queries, pairs.texts, strict=True)
    )
    batches = [(len(part), part[-1] - static) for part in (lengths[:4], lengths[4:8], lengths[8:])]
    assert read == [(1, static), *batches, *batches]


def test_only_the_rows_of_the_labels_are_kept_of_the_output_layer(tmp_path: Path) -> None:
    folder, prompt = write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml")
    whole = AutoModelForCausalLM.from_pretrained(folder).get_output_embeddings().weight
    grader = LocalGrader.load(folder, prompt)
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(prompt.labels.in_order()))
    assert grader.model.get_output_embeddings().weight.equal(whole[ids])


def test_a_model_without_a_linear_output_layer_is_refused(tmp_path: Path) -> None:
    folder, prompt = write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml")
    found = LocalGrader.load(folder, prompt)
    found.model.set_output_embeddings(torch.nn.Identity())
    with pytest.raises(GradingError, match="LlamaForCausalLM has no linear output layer"):
        LocalGrader("lm", found.model, found.tokenizer, prompt)


def test_a_prompt_that_is_longer_than_the_model_reads_is_left_unanswered(tmp_path: Path) -> None:
    folder, prompt = write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml")
    pairs = some_pairs(3)
    pairs.queries[1] = "red " * CONTEXT
    grader = LocalGrader.load(folder, prompt)
    found = grader.probabilities(pairs)
    assert np.isnan(found).any(axis=1).tolist() == [False, True, False]
    assert grader.remarks == "pairs that the model could not answer: longer than its 400 tokens 1"
    manifest = run_grader(pairs, tmp_path / "out", grader)
    assert (manifest.graded, manifest.unanswered) == (2, 1)


def test_weights_that_give_no_number_leave_a_pair_unanswered(tmp_path: Path) -> None:
    grader = LocalGrader.load(write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml"))
    with torch.no_grad():
        grader.model.get_output_embeddings().weight.fill_(float("nan"))
    assert np.isnan(grader.probabilities(some_pairs(2))).all()
    assert "no number 2" in grader.remarks


def test_a_label_that_is_not_one_known_token_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with pytest.raises(GradingError, match="label 'near-miss' is 3 tokens to the tokenizer of lm-m-"):
        LocalGrader.load(folder, write_prompt(tmp_path / "p.toml", moderate="near-miss"))
    with pytest.raises(GradingError, match=r"label 'unheard' is unknown .* another word of one token"):
        LocalGrader.load(folder, write_prompt(tmp_path / "p.toml", moderate="unheard"))


def test_a_run_stops_and_goes_on_without_asking_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, prompt = write_model(tmp_path / "m"), write_prompt(tmp_path / "p.toml")
    pairs = some_pairs()
    run_grader(pairs.take(np.arange(6)), tmp_path / "out", LocalGrader.load(folder, prompt), shard_pairs=4)
    grader = LocalGrader.load(folder, prompt)
    asked: list[int] = []
    answer = grader.probabilities

    def counted(some: Pairs) -> np.ndarray:
        asked.append(len(some))
        return answer(some)

    monkeypatch.setattr(grader, "probabilities", counted)
    manifest = run_grader(pairs, tmp_path / "out", grader, shard_pairs=4)
    assert asked == [4, 1]
    assert (manifest.graded, manifest.grader, manifest.prompt_sha) == (11, grader.name, prompt.sha256)


def test_other_weights_are_another_grader_and_the_same_ones_are_not(tmp_path: Path) -> None:
    prompt = write_prompt(tmp_path / "p.toml")
    names = [
        LocalGrader.load(write_model(tmp_path / place / "m", seed=seed), prompt).name
        for place, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("lm-m-") for name in names)


def test_a_folder_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    prompt = write_prompt(tmp_path / "p.toml")
    with pytest.raises(PretrainedError, match=r"must be a folder with config\.json"):
        LocalGrader.load(tmp_path / "nothing", prompt)
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(PretrainedError, match="cannot be loaded"):
        LocalGrader.load(folder, prompt)
    with pytest.raises(GradingError, match="cannot be put on 'nowhere'"):
        LocalGrader.load(write_model(tmp_path / "n"), prompt, device="nowhere")

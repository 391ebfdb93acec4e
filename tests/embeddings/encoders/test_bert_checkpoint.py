"""Published text weights: the vectors of transformers' BertModel, or a sentence that says why not."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.bert_checkpoint import is_bert_folder, lacks_images, read_bert
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.encoders.pretrained import PretrainedError
from embeddings.encoders.published_weights import find_published
from embeddings.encoders.query_export import export_query_encoder
from tests.embeddings.encoders.small_bert import (
    TEXTS,
    TOKENS,
    as_other_file,
    change_config,
    mean_pooling,
    save_bert,
    vectors_of_transformers,
    write_json,
    write_modules,
)
from tests.embeddings.small_catalog import write_small_catalog

#: Largest difference in any entry of a unit vector with published weights.
EXACT = 1e-6
#: With random weights, whose layers enlarge what float32 rounds: 1.2e-6 was met. One transposed matrix gave
#: 2.8e-2 or more (four seeds).
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modules(save_bert(tmp_path_factory.mktemp("published") / "bert"))


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def title_vectors(encoder: DashClipEncoder, titles: list[str]) -> Tensor:
    """Of products that are a title alone: through [ENC], as every product goes."""
    catalog = ProductCatalog(
        ids=[str(row) for row in range(len(titles))],
        titles=titles,
        image_paths=[None] * len(titles),
        aisles=[""] * len(titles),
    )
    return encoder.embed_products(encoder.load_batch(catalog, list(range(len(titles)))))


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_query_and_title_vectors_are_those_of_bert_pooled_and_normalised(data: st.DataObject) -> None:
    heads, width = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([4, 8, 20]))
    pooling = data.draw(st.sampled_from(["mean", "cls"]))
    seed = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    sizes = [heads * width, *data.draw(st.lists(st.sampled_from([4, 12, 24]), max_size=2))]
    dense = [
        (torch.randn(wide, narrow, generator=generator), torch.randn(wide, generator=generator))
        for narrow, wide in pairwise(sizes)
    ]
    positions = data.draw(st.sampled_from([40, 512, 600]))
    with TemporaryDirectory() as name:
        folder = save_bert(
            Path(name) / "bert",
            hidden=heads * width,
            heads=heads,
            layers=data.draw(st.integers(1, 3)),
            positions=positions,
            unused_rows=data.draw(st.sampled_from([0, 7])),
            layer_norm_eps=data.draw(st.sampled_from([1e-12, 1e-5])),
            seed=seed,
        )
        said = mean_pooling(
            pooling_mode_cls_token=pooling == "cls", pooling_mode_mean_tokens=pooling == "mean"
        )
        write_modules(folder, pooling=said, dense=dense)
        cut = min(48, positions)
        theirs_BD = vectors_of_transformers(folder, TEXTS, pooling=pooling, max_tokens=cut, dense=dense)
        if data.draw(st.booleans()):
            as_other_file(folder)
        encoder = read_bert(folder, size="tiny", max_query_tokens=cut)
    assert (encoder.embed_queries(TEXTS) - theirs_BD).abs().max() <= ROUNDING
    assert (title_vectors(encoder, TEXTS) - theirs_BD).abs().max() <= ROUNDING
    assert (theirs_BD[0] - theirs_BD[1]).abs().max() > 10 * ROUNDING, "equal vectors agree with anything"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_prefixes_go_before_every_query_and_title_and_count_as_tokens(bert: Path, pooling: str) -> None:
    encoder = read_bert(
        bert,
        size="tiny",
        pooling=pooling,
        query_prefix="query: ",
        title_prefix="passage: red. ",
        max_query_tokens=12,
    )
    for found_BD, prefix, cut in (
        (encoder.embed_queries(TEXTS), "query: ", 12),
        (title_vectors(encoder, TEXTS), "passage: red. ", 48),
    ):
        prefixed = [prefix + text for text in TEXTS]
        theirs_BD = vectors_of_transformers(bert, prefixed, pooling=pooling, max_tokens=cut)
        assert (found_BD - theirs_BD).abs().max() <= ROUNDING
    plain = read_bert(bert, size="tiny", pooling=pooling)
    assert (encoder.embed_queries(TEXTS) - plain.embed_queries(TEXTS)).abs().max() > 0.01


def test_a_prefix_makes_no_empty_or_unknown_text_known(bert: Path) -> None:
    encoder = read_bert(bert, size="tiny", query_prefix="query: ", title_prefix="query: ")
    assert encoder.embed_queries(["", None, "日", "red"]).any(dim=1).tolist() == [False, False, False, True]
    assert title_vectors(encoder, ["", "日", "red"]).any(dim=1).tolist() == [False, False, True]


def test_prefixes_are_read_from_the_prompts_of_sentence_transformers(copy: Path) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    write_json(copy / "config_sentence_transformers.json", {"prompts": prompts})
    config = read_bert(copy, size="tiny").config
    assert (config.query_prefix, config.title_prefix) == ("query: ", "passage: ")
    assert read_bert(copy, size="tiny", query_prefix="").config.query_prefix == ""
    every = {"prompts": {"all": "red: "}, "default_prompt_name": "all"}
    write_json(copy / "config_sentence_transformers.json", every)
    config = read_bert(copy, size="tiny").config
    assert (config.query_prefix, config.title_prefix) == ("red: ", "red: ")


def test_what_is_served_and_what_is_saved_is_what_was_read(bert: Path, tmp_path: Path) -> None:
    encoder = read_bert(bert, size="tiny", query_prefix="query: ")
    saved = encoder.save(tmp_path / "encoder", stage="initial", trained_on=encoder.trained_on)
    assert torch.equal(saved.embed_queries(TEXTS), encoder.embed_queries(TEXTS))
    assert saved.config.query_prefix == "query: "
    assert lacks_images(saved)
    # The export compares its vectors with those of the encoder itself.
    assert export_query_encoder(tmp_path / "encoder", tmp_path / "served").prefix == "query: "


def test_until_it_is_trained_a_product_with_an_image_is_its_title(bert: Path, tmp_path: Path) -> None:
    catalog = ProductCatalog.open(write_small_catalog(tmp_path / "data", products=4, without_image={1}))
    encoder = read_bert(bert, size="tiny")
    with_images = encoder.embed_products(encoder.load_batch(catalog, [0, 1, 2, 3]))
    torch.testing.assert_close(with_images, title_vectors(encoder, catalog.titles))
    assert with_images[0].any(), "a product with an image and a known title"


def test_the_same_seed_draws_the_same_image_side_and_leaves_the_random_state_alone(bert: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again, other = (read_bert(bert, size="tiny", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(4), expected)
    weights = [encoder.product.vision_proj.weight for encoder in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "said, pooling",
    [
        (mean_pooling(), "mean"),
        (mean_pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), "cls"),
        ({"embedding_dimension": 32, "pooling_mode": "mean"}, "mean"),
        ({"embedding_dimension": 32, "pooling_mode": "cls"}, "cls"),
    ],
)
def test_pooling_is_what_sentence_transformers_says_unless_it_is_given(
    copy: Path, said: Any, pooling: str
) -> None:
    write_json(copy / "1_Pooling" / "config.json", said)
    assert read_bert(copy, size="tiny").config.pooling == pooling
    assert read_bert(copy, size="tiny", pooling="cls").config.pooling == "cls"


@pytest.mark.parametrize(
    "said",
    [
        mean_pooling(pooling_mode_max_tokens=True),
        mean_pooling(pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True),
        {"pooling_mode": "lasttoken"},
        {},
    ],
)
def test_another_pooling_is_refused(copy: Path, said: Any) -> None:
    write_json(copy / "1_Pooling" / "config.json", said)
    with pytest.raises(PretrainedError, match=r"pooling must be the mean of the tokens or \[CLS\]"):
        read_bert(copy, size="tiny")


def cased(folder: Path) -> None:
    tokens = [token.title() if token.isalpha() else token for token in TOKENS]
    tokenizer = BertTokenizer(vocab={t: row for row, t in enumerate(tokens)}, do_lower_case=False)
    tokenizer.save_pretrained(folder)


def cased_without_a_word(folder: Path) -> None:
    tokens = [token.title() if token.isalpha() else token for token in TOKENS]
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def other_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({token: row for row, token in enumerate(TOKENS)}, [])).save(
        str(folder / "tokenizer.json")
    )
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def lose(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file({n: v for n, v in weights.items() if n != name}, folder / "model.safetensors")

    return harm


def add(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        save_file(weights | {name: torch.zeros(shape)}, folder / "model.safetensors")

    return harm


@pytest.mark.parametrize(
    "harm, sentence",
    [
        (lambda folder: change_config(folder, model_type="roberta"), "its config says 'roberta'"),
        (lambda folder: change_config(folder, hidden_act="gelu_new"), "exact GELU .*, got 'gelu_new'"),
        (lambda folder: change_config(folder, hidden_act="relu"), "got 'relu'"),
        (
            lambda folder: change_config(folder, position_embedding_type="relative_key"),
            "positions must be absolute, got 'relative_key'",
        ),
        (lambda folder: change_config(folder, intermediate_size=64), "four times as wide"),
        (lambda folder: change_config(folder, is_decoder=True), "from left to right"),
        (lambda folder: change_config(folder, num_attention_heads=5), "multiple of text_heads"),
        (lambda folder: change_config(folder, num_hidden_layers=1), r"'encoder\.layer\.1\..*do not have"),
        (lambda folder: change_config(folder, num_hidden_layers=3), r"lacks 'encoder\.layer\.2\."),
        (lambda folder: change_config(folder, max_position_embeddings=80), "64 positions, its"),
        (lambda folder: change_config(folder, hidden_size="wide"), "hidden_size"),
        (lambda folder: (folder / "config.json").write_text("no"), "no config of a BERT"),
        (lambda folder: (folder / "config.json").unlink(), "must be a folder with the config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights as one file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "safetensors library"),
        (lambda folder: (folder / "modules.json").unlink(), "give pooling"),
        (lambda folder: write_json(folder / "modules.json", {"a": 1}), "list of modules"),
        (
            lambda folder: write_json(folder / "modules.json", [{"type": "a.WordEmbeddings", "path": ""}]),
            "lists WordEmbeddings",
        ),
        (
            lambda folder: write_json(
                folder / "modules.json",
                [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "../1_Pooling"}],
            ),
            "leads out of the folder",
        ),
        (
            lambda folder: write_modules(
                folder,
                dense=[(torch.zeros(8, 32), torch.zeros(8))],
                activation="torch.nn.modules.activation.Tanh",
            ),
            "must be linear",
        ),
        (
            lambda folder: write_modules(folder, dense=[(torch.zeros(8, 16), torch.zeros(8))]),
            "takes 16 values",
        ),
        (
            lambda folder: write_modules(folder, pooling=mean_pooling(include_prompt=False)),
            "leaves the prompt out",
        ),
        (cased, "uncased"),
        (cased_without_a_word, "have capital letters"),
        (other_tokenizer, "tokenizer must be that of an uncased BERT"),
        (lose("embeddings.token_type_embeddings.weight"), "lacks 'embeddings.token_type"),
        (lose("encoder.layer.1.output.dense.bias"), r"lacks 'encoder\.layer\.1\.output\.dense\.bias'"),
        (add("encoder.layer.0.adapter.weight", (2, 2)), r"'encoder\.layer\.0\.adapter\.weight'"),
        (add("encoder.layer.0.output.dense.bias", (3,)), r"must be \[32\], as its config says, got \[3\]"),
        (add("embeddings.word_embeddings.weight", (20, 32)), "20 word embeddings, but its vocabulary"),
    ],
)
def test_a_model_that_would_give_other_vectors_is_refused(
    copy: Path, harm: Callable[[Path], object], sentence: str
) -> None:
    harm(copy)
    with pytest.raises(PretrainedError, match=sentence):
        read_bert(copy, size="tiny")


def test_weights_that_would_run_code_are_refused_and_do_not_run(copy: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (copy / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Harmful()}, copy / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match="nothing but tensors"):
        read_bert(copy, size="tiny")
    assert not (tmp_path / "ran").exists()


def test_what_comes_with_the_weights_cannot_be_chosen(bert: Path) -> None:
    with pytest.raises(PretrainedError, match="text_layers comes with the weights"):
        read_bert(bert, size="tiny", text_layers=3)
    with pytest.raises(PretrainedError, match="positions for 64 tokens, so max_title_tokens"):
        read_bert(bert, size="tiny", max_title_tokens=65)
    with pytest.raises(PretrainedError, match=r"title_prefix.*must end in a space or punctuation"):
        read_bert(bert, size="tiny", title_prefix="query")


def test_a_bert_folder_is_told_from_an_encoder_of_ours(bert: Path, tmp_path: Path) -> None:
    encoder = read_bert(bert, size="tiny")
    encoder.save(tmp_path / "encoder", stage="initial", trained_on={})
    assert is_bert_folder(bert)
    assert not is_bert_folder(tmp_path / "encoder")
    assert not is_bert_folder(tmp_path / "absent")


@pytest.mark.weights
def test_the_published_minilm_gives_the_vectors_of_transformers() -> None:
    try:
        folder = find_published("all-minilm-l6-v2")
    except PretrainedError as error:
        pytest.skip(str(error))
    encoder = read_bert(folder, size="tiny")
    assert (encoder.config.text_layers, encoder.config.text_heads, encoder.config.vector_dim) == (6, 12, 384)
    texts = [
        "l bracket",
        "Simpson Strong-Tie 12-Gauge Angle",
        "3/4 in. x 100 ft. café pipe",
        "9 volt battery",
    ]
    theirs_BD = vectors_of_transformers(folder, texts, pooling="mean", max_tokens=32)
    assert (encoder.embed_queries(texts) - theirs_BD).abs().max() <= EXACT
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"] == 30_522

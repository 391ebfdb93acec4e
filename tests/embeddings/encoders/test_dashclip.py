"""The encoder folder: saved, loaded, damaged, refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.catalog.tokenizer import TextTokenizer
from embeddings.embedding_table import EmbeddingTable, is_table
from embeddings.encoders.config import EncoderConfig
from embeddings.encoders.dashclip import DashClipEncoder, EncoderError, is_encoder
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import batch_of, small_encoder

QUERIES = ["red circle", "a", "purple ring by acme"]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> ProductBatch:
    data = write_small_catalog(
        tmp_path_factory.mktemp("dashclip"), products=6, without_title={1}, without_image={2}
    )
    return batch_of(small_encoder(), ProductCatalog.open(data), list(range(6)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    encoder = small_encoder().with_query_encoder()
    encoder.save(tmp_path / "encoder", stage="aligned", trained_on={"products": 6})
    return tmp_path / "encoder"


@pytest.mark.parametrize("aligned", [False, True])
def test_what_is_saved_is_what_is_loaded_to_the_bit(
    tmp_path: Path, batch: ProductBatch, aligned: bool
) -> None:
    encoder = small_encoder().with_query_encoder() if aligned else small_encoder()
    stage = "aligned" if aligned else "pretrained"
    saved = encoder.save(tmp_path / "encoder", stage=stage, trained_on={"products": 6})
    loaded = DashClipEncoder.load(tmp_path / "encoder")
    assert (loaded.stage, loaded.trained_on, loaded.query is not None) == (stage, {"products": 6}, aligned)
    assert loaded.encoder_id == saved.encoder_id != encoder.encoder_id == "unsaved"
    assert loaded.embed_products(batch).equal(encoder.embed_products(batch))
    assert loaded.embed_queries(QUERIES).equal(encoder.embed_queries(QUERIES))
    for name, value in encoder.product.state_dict().items():
        assert loaded.product.state_dict()[name].equal(value)
    assert not any(tensor.is_meta for tensor in [*loaded.product.parameters(), *loaded.product.buffers()])


def test_a_loaded_encoder_can_be_trained_on(folder: Path, batch: ProductBatch) -> None:
    product = DashClipEncoder.load(folder).product
    product(batch).sum().backward()
    assert product.product_proj.weight.grad is not None


def test_the_id_covers_weights_config_and_tokenizer(tmp_path: Path) -> None:
    def id_of(encoder: DashClipEncoder, name: str) -> str:
        return encoder.save(tmp_path / name, stage="initial", trained_on={}).encoder_id

    first = small_encoder()
    tokens = first.tokenizer.tokens
    tokens[-2:] = reversed(tokens[-2:])
    swapped = DashClipEncoder(
        first.config, TextTokenizer.from_vocabulary(tokens), first.product, query=None, stage="initial"
    )
    other_config = first.config.model_copy(update={"text_layer_norm_eps": 1e-5})
    config = DashClipEncoder(other_config, first.tokenizer, first.product, query=None, stage="initial")
    ids = [id_of(first, "a"), id_of(small_encoder(seed=1), "b"), id_of(swapped, "c"), id_of(config, "d")]
    assert len(set(ids)) == 4
    assert id_of(small_encoder(), "e") == ids[0]


def test_before_stage_2_a_product_is_the_mean_of_image_and_text_and_a_query_is_a_text(
    batch: ProductBatch,
) -> None:
    encoder = small_encoder()
    image_BD, text_BD = encoder.unimodal_features(batch)
    vector_BD = encoder.embed_products(batch)
    torch.testing.assert_close(vector_BD[0], normalize(image_BD[0] + text_BD[0], dim=0))
    torch.testing.assert_close(vector_BD[1], image_BD[1])
    torch.testing.assert_close(vector_BD[2], text_BD[2])
    tokens = encoder.tokenizer(QUERIES, max_tokens=encoder.config.max_query_tokens)
    with torch.no_grad():
        text_QTH = encoder.product.text_tokens(tokens.ids_BT, tokens.mask_BT)
        text_QD = encoder.product.text_features(text_QTH, tokens.mask_BT)
    assert encoder.embed_queries(QUERIES).equal(text_QD)


@pytest.mark.parametrize("aligned", [False, True])
def test_a_query_without_a_known_token_is_zero(aligned: bool) -> None:
    encoder = small_encoder().with_query_encoder() if aligned else small_encoder()
    vector_QD = encoder.embed_queries(["", None, "\N{GRINNING FACE}", "red circle"])
    torch.testing.assert_close(vector_QD.norm(dim=1), torch.tensor([0.0, 0.0, 0.0, 1.0]))


def _truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _other_config(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text.replace("1e-12", "1e-11"), encoding="utf-8")


def _forget_a_checksum(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["checksums"]["model.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_truncate, "model.safetensors has changed since it was written"),
        (_flip_a_bit, "model.safetensors has changed since it was written"),
        (_other_config, "config.json has changed since it was written"),
        (_forget_a_checksum, "model.safetensors has changed since it was written"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing; write the encoder"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not an encoder: it has no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "is not the manifest of an encoder"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "is not the manifest of an encoder"),
    ],
)
def test_a_harmed_folder_is_refused(folder: Path, harm: Callable[[Path], object], sentence: str) -> None:
    harm(folder)
    with pytest.raises(EncoderError, match=sentence):
        DashClipEncoder.load(folder)


def test_without_verifying_a_harmed_folder_is_still_an_encoder_error(folder: Path) -> None:
    _truncate(folder)
    with pytest.raises(EncoderError, match="cannot be read"):
        DashClipEncoder.load(folder, verify=False)
    weights = small_encoder().product.state_dict()
    save_file(
        {f"product.{name}": value for name, value in list(weights.items())[1:]}, folder / "model.safetensors"
    )
    with pytest.raises(EncoderError, match=r"model\.safetensors does not fit .*config\.json: .*Missing key"):
        DashClipEncoder.load(folder, verify=False)


def test_an_embedding_table_never_takes_the_place_of_an_encoder_nor_an_encoder_that_of_a_table(
    folder: Path, tmp_path: Path
) -> None:
    def write_table(target: Path) -> EmbeddingTable:
        return EmbeddingTable.write(
            target,
            ids=pa.array([1]),
            vectors_ND=np.ones((1, 4), np.float32),
            encoder_id="e",
            kind="product",
            normalised=False,
        )

    assert not is_table(folder)
    with pytest.raises(FileExistsError, match="something of another kind"):
        write_table(folder)
    assert is_encoder(folder)
    table = write_table(tmp_path / "table")
    assert is_table(table.folder)
    assert not is_encoder(table.folder)
    with pytest.raises(FileExistsError, match="something of another kind"):
        small_encoder().save(table.folder, stage="initial", trained_on={})


def test_an_encoder_takes_the_place_of_an_encoder_and_of_nothing_else(folder: Path, tmp_path: Path) -> None:
    before = load_file(folder / "model.safetensors")
    small_encoder(seed=5).save(folder, stage="initial", trained_on={})
    after = load_file(folder / "model.safetensors")
    assert not after["product.product_proj.weight"].equal(before["product.product_proj.weight"])
    assert is_encoder(folder)
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(FileExistsError, match="holiday"):
        small_encoder().save(foreign, stage="initial", trained_on={})
    assert [path.name for path in foreign.iterdir()] == ["manifest.json"]


def test_a_tokenizer_of_another_size_is_refused() -> None:
    encoder = small_encoder()
    config = EncoderConfig.preset("tiny", vocab_size=encoder.tokenizer.vocab_size + 1)
    with pytest.raises(EncoderError, match=r"make the config with vocab_size=tokenizer\.vocab_size"):
        DashClipEncoder.new(config, encoder.tokenizer, seed=0)

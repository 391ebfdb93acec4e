"""A server's query encoder gives the vectors of the trained one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import embeddings.encoders.query_export
from embeddings.encoders.dashclip import DashClipEncoder, EncoderError
from embeddings.encoders.query_export import export_query_encoder
from embeddings.stages.whitening import fold
from serving.scoring.query_encoder import QueryEncoderError, QueryTextEncoder
from tests.embeddings.small_catalog import small_tokenizer
from tests.embeddings.small_encoders import ROUNDING, small_encoder

TEXTS = [
    "fruit",
    "Red  Apple JUICE",
    "",
    None,
    "café ™ 🥛",
    "12 x 330 ml",
    "the " * 300,
    "[CLS] [ENC]",
    "\ud800",
]


def saved(folder: Path, *, with_query_encoder: bool = True, **changes: object) -> DashClipEncoder:
    encoder = small_encoder(**changes)
    if with_query_encoder:
        encoder = encoder.with_query_encoder()
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in encoder.query.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return encoder.save(folder, stage="aligned" if with_query_encoder else "pretrained", trained_on={})


def keep_dims(encoder: DashClipEncoder, kept: int) -> DashClipEncoder:
    """As at the end of stage 2: both projections cut."""
    assert encoder.query is not None
    with torch.no_grad():
        for projection in (encoder.product.product_proj, encoder.query.query_proj):
            width = projection.out_features
            fold(projection, torch.eye(width, dtype=torch.float64)[:kept], torch.zeros(width))
    encoder.config = encoder.config.model_copy(update={"kept_dims": kept})
    return encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("query_encoder")
    saved(root / "encoder")
    export_query_encoder(root / "encoder", root / "exported")
    return root / "encoder", root / "exported"


def known_texts() -> list[str | None]:
    pieces = [token for token in small_tokenizer().tokens if token.isalpha() and len(token) > 2]
    return [*TEXTS, *pieces[:5], " ".join(pieces[:40])]


@pytest.mark.parametrize("pooling, prefix", [("cls", ""), ("mean", "red ring: ")])
@pytest.mark.parametrize(
    "with_query_encoder, grams, kept",
    [
        (True, {}, 0),
        (False, {}, 0),
        (False, {"ngram_buckets": 64, "ngram_dim": 12}, 0),
        (True, {"ngram_buckets": 64, "ngram_dim": 12}, 8),
    ],
)
def test_vectors_are_those_of_the_trained_encoder(
    pooling: str, prefix: str, with_query_encoder: bool, grams: dict[str, int], kept: int, tmp_path: Path
) -> None:
    shape = {"pooling": pooling, "query_prefix": prefix, **grams}
    encoder = saved(tmp_path / "encoder", with_query_encoder=with_query_encoder, **shape)
    if kept:
        encoder = keep_dims(encoder, kept).save(tmp_path / "encoder", stage="aligned", trained_on={})
    assert encoder.config.vector_dim == (kept or encoder.config.embedding_dim)
    config = export_query_encoder(tmp_path / "encoder", tmp_path / "exported")
    served = QueryTextEncoder.open(tmp_path / "exported")
    assert config.encoder_id == served.config.encoder_id == encoder.encoder_id
    expected_QD = encoder.embed_queries(known_texts()).numpy()
    np.testing.assert_allclose(served.embed(known_texts()), expected_QD, rtol=0, atol=ROUNDING)
    assert np.count_nonzero(expected_QD.any(axis=1)) >= 6


def test_a_query_does_not_depend_on_those_beside_it(folders: tuple[Path, Path]) -> None:
    together_QD = QueryTextEncoder.open(folders[1]).embed(known_texts())
    alone = QueryTextEncoder.open(folders[1])
    alone_QD = np.concatenate([alone.embed([text]) for text in known_texts()])
    np.testing.assert_allclose(alone_QD, together_QD, rtol=0, atol=ROUNDING)


def test_no_query_gets_no_vector_and_null_gets_zeros(folders: tuple[Path, Path]) -> None:
    served = QueryTextEncoder.open(folders[1])
    assert served.embed([]).shape == (0, served.dim)
    assert not served.embed([None, "", "   "]).any()


def test_a_query_asked_for_again_is_not_computed_again(folders: tuple[Path, Path]) -> None:
    served, computed = QueryTextEncoder.open(folders[1], remembered=2), []
    encode = served._encode
    served._encode = lambda texts: computed.append(list(texts)) or encode(texts)
    first_QD = served.embed(["a", "b", "a"])
    again_QD = served.embed(["a"])
    assert computed == [["a", "b"]]
    np.testing.assert_array_equal(again_QD[0], first_QD[0])
    served.embed(["c"])  # "b" was asked for longest ago
    served.embed(["a", "b"])
    assert computed == [["a", "b"], ["c"], ["b"]]


def test_changing_a_returned_vector_does_not_change_what_is_remembered(folders: tuple[Path, Path]) -> None:
    served = QueryTextEncoder.open(folders[1])
    text = known_texts()[-1]
    expected_D = served.embed([text])[0].copy()
    served.embed([text])[0] = 7
    np.testing.assert_array_equal(served.embed([text])[0], expected_D)


def test_an_export_that_gives_other_vectors_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = embeddings.encoders.query_export.query_network

    def swapped(*arguments: object) -> torch.nn.Module:
        network = build(*arguments)
        network.layers = network.layers[::-1]
        return network

    monkeypatch.setattr(embeddings.encoders.query_export, "query_network", swapped)
    with pytest.raises(EncoderError, match="they differ by"):
        export_query_encoder(folders[0], tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_a_damaged_folder_is_refused_by_name(
    name: str, harm: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for path in folders[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if harm == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((folders[1] / name).read_bytes()[:100])
    with pytest.raises(QueryEncoderError, match=str(tmp_path)):
        QueryTextEncoder.open(tmp_path)


def test_weights_of_another_shape_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for path in folders[1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(QueryEncoderError, match=r"words\.weight"):
        QueryTextEncoder.open(tmp_path)

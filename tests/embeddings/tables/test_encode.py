"""Encoding a catalogue: the same vectors however it is cut, in flat memory; what cannot be is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.catalog.products import ProductCatalog, load_batch
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import Encoded, EncodeError, encode_products, encode_queries
from tests.embeddings.small_encoders import ROUNDING
from tests.embeddings.tables.small_tables import PRODUCTS, QUERIES, encode, vectors_by_id


def test_the_table_holds_what_the_encoder_gives_product_by_product(
    encoder: DashClipEncoder, shared_data: Path, plain: Encoded
) -> None:
    table = plain.table
    catalog = ProductCatalog.open(shared_data)
    assert table.ids.equals(catalog.ids)
    assert (table.manifest.encoder_id, table.manifest.kind) == (encoder.encoder_id, "product")
    for row in range(len(catalog)):
        batch = load_batch(catalog, encoder.tokenizer, [row], image_size=32, max_title_tokens=24)
        alone_D = encoder.embed_products(batch)[0].numpy()
        np.testing.assert_allclose(table.vectors_ND[row + 1], alone_D, rtol=0, atol=ROUNDING)
    assert len(np.unique(np.round(table.vectors_ND[1:], 5), axis=0)) == PRODUCTS, "products must differ"


@settings(max_examples=6, deadline=None)
@given(
    batch_size=st.integers(1, 30),
    shard_rows=st.integers(1, 30),
    loaders=st.integers(1, 3),
    order=st.permutations(range(PRODUCTS)),
)
def test_neither_batches_nor_shards_nor_the_order_of_products_change_a_vector(
    encoder_folder: Path,
    shared_data: Path,
    plain: Encoded,
    tmp_path_factory: pytest.TempPathFactory,
    batch_size: int,
    shard_rows: int,
    loaders: int,
    order: list[int],
) -> None:
    expected = vectors_by_id(plain.table)
    whole = ProductCatalog.open(shared_data)
    shuffled = ProductCatalog(
        ids=whole.ids.take(pa.array(order)),
        titles=[whole.titles[row] for row in order],
        image_paths=[whole.image_paths[row] for row in order],
        aisles=[whole.aisles[row] for row in order],
    )
    found = encode_products(
        DashClipEncoder.load(encoder_folder),
        shuffled,
        tmp_path_factory.mktemp("cut") / "products",
        batch_size=batch_size,
        shard_rows=shard_rows,
        loaders=loaders,
        dtype="float32",
    )
    for product_id, vector_D in vectors_by_id(found.table).items():
        np.testing.assert_allclose(vector_D, expected[product_id], rtol=0, atol=ROUNDING)


def test_float16_is_the_rounded_float32(
    encoder: DashClipEncoder, shared_data: Path, plain: Encoded, tmp_path: Path
) -> None:
    half = encode(encoder, shared_data, tmp_path / "half", dtype="float16").table
    np.testing.assert_array_equal(half.vectors_ND, plain.table.vectors_ND.astype(np.float16))


def test_in_bfloat16_vectors_are_those_of_float32_but_for_a_thousandth(
    encoder: DashClipEncoder, shared_data: Path, plain: Encoded, tmp_path: Path
) -> None:
    quick = replace(encoder, precision="bfloat16")
    queries = pa.array([*QUERIES.to_pylist(), " "])
    for table, exact in (
        (encode_products(quick, ProductCatalog.open(shared_data), tmp_path / "p", dtype="float32"), plain),
        (
            encode_queries(quick, queries, tmp_path / "q", dtype="float32"),
            encode_queries(encoder, queries, tmp_path / "exact", dtype="float32"),
        ),
    ):
        found_ND, exact_ND = table.table.vectors_ND[1:], exact.table.vectors_ND[1:].astype(np.float32)
        known_N = exact_ND.any(axis=1)
        assert (found_ND[~known_N] == 0).all()
        np.testing.assert_allclose(np.linalg.norm(found_ND[known_N], axis=1), 1, atol=1e-6)
        assert (found_ND * exact_ND).sum(axis=1)[known_N].min() > 0.999
        assert not np.array_equal(found_ND, exact_ND)


def test_in_bfloat16_few_lengths_of_texts_reach_the_encoder(
    encoder: DashClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    assert encoder.query is not None
    forward = encoder.query.forward
    monkeypatch.setattr(
        encoder.query, "forward", lambda ids, mask: (seen.append(ids.shape[1]), forward(ids, mask))[1]
    )
    for words in range(1, 9):
        replace(encoder, precision="bfloat16").embed_queries([" ".join(["milk"] * words)])
    assert {length % 4 for length in seen} == {0}


def test_queries_get_the_vectors_of_the_query_encoder(encoder: DashClipEncoder, tmp_path: Path) -> None:
    found = encode_queries(
        encoder, QUERIES, tmp_path / "queries", batch_size=2, shard_rows=3, dtype="float32"
    )
    assert found.table.manifest.kind == "query"
    assert found.table.ids.equals(QUERIES)
    expected_QD = encoder.embed_queries(QUERIES.to_pylist()).numpy()
    np.testing.assert_allclose(found.table.vectors_ND[1:], expected_QD, rtol=0, atol=ROUNDING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["queries"]


def test_a_query_without_a_known_token_is_zeros_and_counted(encoder: DashClipEncoder, tmp_path: Path) -> None:
    table = encode_queries(encoder, pa.array(["green ring", "🍎🍎", ""]), tmp_path / "queries").table
    assert table.manifest.zero_vectors == 2
    assert [bool(row.any()) for row in table.vectors_ND[1:]] == [True, False, False]


def test_an_empty_catalogue_gives_an_empty_table(encoder: DashClipEncoder, tmp_path: Path) -> None:
    nothing = ProductCatalog(ids=pa.array([], pa.int64()), titles=[], image_paths=[], aisles=[])
    found = encode_products(encoder, nothing, tmp_path / "products")
    assert (len(found.table), found.encoded, found.table.dim) == (0, 0, encoder.config.embedding_dim)


def test_progress_rises_from_nothing_to_all_and_ends_with_the_table(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    calls: list[tuple[str, int, int]] = []
    encode(encoder, shared_data, tmp_path / "products", progress=lambda *call: calls.append(call))
    done = [done for stage, done, _ in calls if stage == "products"]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, PRODUCTS)
    assert 4 in done, "each batch is told, not only each shard"
    assert calls[-1] == ("table", 1, 1)


def test_a_folder_with_something_else_is_left_as_it_is(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    calls: list[int] = []
    with pytest.raises(FileExistsError, match="left as it is"):
        encode(encoder, shared_data, tmp_path / "thesis", progress=lambda *call: calls.append(1))
    assert not calls
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "words"


def test_an_unsaved_encoder_is_refused(encoder: DashClipEncoder, shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="save it first"):
        encode(encoder.with_query_encoder(), shared_data, tmp_path / "products")


@pytest.mark.parametrize("queries", [["a", "b", "a"], ["a", None]])
def test_null_or_repeated_queries_are_refused(
    encoder: DashClipEncoder, tmp_path: Path, queries: list[str | None]
) -> None:
    with pytest.raises(EncodeError, match="queries must be distinct and not null"):
        encode_queries(encoder, pa.array(queries), tmp_path / "queries")


def test_a_vector_that_is_no_number_stops_the_call_and_names_the_product(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        encoder.product.vision_proj.weight.fill_(torch.nan)
        encoder.product.text.embeddings.word_embeddings.weight[encoder.tokenizer.enc_id] = torch.nan
    with pytest.raises(EncodeError, match=r"the vector of product 1\d\d must be finite"):
        encode(encoder, shared_data, tmp_path / "products")
    assert not (tmp_path / "products").exists()


_MEASURED = """
import json, sys
from pathlib import Path
import pyarrow as pa
import torch
from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import encode_products
torch.set_num_threads(1)
encoder, image, out = sys.argv[1:]
def peak_mib():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
peaks = []
for count in (100, 1000, 4000):
    catalog = ProductCatalog(ids=pa.array(range(count)), titles=["Acme Red Circle"] * count,
                             image_paths=[Path(image)] * count, aisles=[""] * count)
    encode_products(DashClipEncoder.load(Path(encoder)), catalog, Path(out) / str(count),
                    batch_size=32, shard_rows=256)
    peaks.append(peak_mib())
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_four_times_the_catalogue_does_not_raise_the_peak_of_memory(
    encoder_folder: Path, shared_data: Path, tmp_path: Path
) -> None:
    image = shared_data / "images" / "100.png"
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        _MEASURED,
        str(encoder_folder),
        str(image),
        str(tmp_path),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd()).stdout
    _, small_mib, large_mib = json.loads(output)
    pixels_mib = 3000 * 3 * 32 * 32 * 4 / 2**20  # of the 3,000 further products: 35 MiB
    assert large_mib - small_mib < pixels_mib / 5

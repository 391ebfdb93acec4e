"""Encoding what is new: the same table as from a full run."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import EncodeError, encode_queries
from tests.embeddings.small_catalog import FIRST_ID, write_small_catalog
from tests.embeddings.small_encoders import ROUNDING
from tests.embeddings.tables.small_tables import (
    PRODUCTS,
    QUERIES,
    Stopped,
    change_products,
    encode,
    save_encoder,
    stop_at,
    vectors_by_id,
)


def test_only_new_products_are_encoded_and_all_equal_a_full_run(
    encoder: DashClipEncoder, tmp_path: Path
) -> None:
    data = write_small_catalog(tmp_path / "data", products=PRODUCTS)
    full = encode(encoder, data, tmp_path / "full" / "products")
    products = pq.read_table(data / "products.parquet")
    gone, known = products.slice(0, 1), products.slice(0, 15)
    pq.write_table(known, data / "products.parquet")
    encode(encoder, data, tmp_path / "growing" / "products")
    pq.write_table(pa.concat_tables([products.slice(15), products.slice(1, 14)]), data / "products.parquet")
    grown = encode(
        encoder, data, tmp_path / "growing" / "products", only_new_from=tmp_path / "growing" / "products"
    )
    assert (grown.encoded, grown.copied, grown.resumed) == (PRODUCTS - 15, 14, 0)
    expected = vectors_by_id(full.table)
    assert expected.pop(gone.column("product_id")[0].as_py()) is not None
    found = vectors_by_id(grown.table)
    assert found.keys() == expected.keys()
    for product_id, vector_D in found.items():
        np.testing.assert_allclose(vector_D, expected[product_id], rtol=0, atol=ROUNDING)


def test_zeros_and_quarantined_products_of_the_older_table_are_tried_again(
    encoder: DashClipEncoder, tmp_path: Path
) -> None:
    data = write_small_catalog(tmp_path / "data", products=PRODUCTS, without_image=[3])
    good = (data / "images" / "101.png").read_bytes()
    change_products(data, title={3: ""})
    for name in ("101.png", "102.png"):
        (data / "images" / name).write_bytes(b"broken")
    old = encode(encoder, data, tmp_path / "products")
    assert (old.quarantined, old.table.manifest.zero_vectors) == (2, 1)
    (data / "images" / "101.png").write_bytes(good)
    change_products(data, title={3: "Acme Pink Ring"})
    new = encode(encoder, data, tmp_path / "products", only_new_from=tmp_path / "products")
    assert (new.encoded, new.copied) == (3, PRODUCTS - 3)
    assert (new.quarantined, new.table.manifest.zero_vectors) == (1, 0)
    assert pq.read_table(tmp_path / "quarantine.parquet").column("product_id").to_pylist() == [FIRST_ID + 2]


def test_a_picture_that_can_be_read_again_counts_whenever_the_call_is_killed(
    encoder: DashClipEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_small_catalog(tmp_path / "data", products=PRODUCTS), tmp_path / "products"
    picture = data / "images" / "101.png"
    good = picture.read_bytes()
    picture.write_bytes(b"broken")
    encode(encoder, data, out)
    picture.write_bytes(good)
    with monkeypatch.context() as patched:
        patched.setattr(EmbeddingTable, "write", Mock(side_effect=Stopped))
        with pytest.raises(Stopped):
            encode(encoder, data, out, only_new_from=out)
    found = encode(encoder, data, out, only_new_from=out)
    expected = vectors_by_id(encode(encoder, data, tmp_path / "whole" / "products").table)[101]
    np.testing.assert_allclose(vectors_by_id(found.table)[101], expected, rtol=0, atol=ROUNDING)
    assert pq.read_table(tmp_path / "quarantine.parquet").num_rows == 0


def test_an_incremental_call_that_was_stopped_goes_on(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    whole = encode(encoder, shared_data, tmp_path / "whole" / "products").table
    older = EmbeddingTable.write(
        tmp_path / "older" / "products",
        ids=whole.ids.slice(0, 3),
        vectors_ND=whole.vectors_ND[1:4],
        encoder_id=encoder.encoder_id,
        kind="product",
        normalised=True,
    )
    out = tmp_path / "products"
    with pytest.raises(Stopped):
        encode(encoder, shared_data, out, only_new_from=older.folder, progress=stop_at(18))
    found = encode(encoder, shared_data, out, only_new_from=older.folder)
    assert (found.copied, found.resumed, found.encoded) == (3, 11, 10)
    assert found.copied + found.resumed + found.encoded == PRODUCTS


def test_an_older_table_of_another_encoder_kind_or_number_format_is_refused(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    other = DashClipEncoder.load(save_encoder(tmp_path / "other", seed=1))
    old = encode(encoder, shared_data, tmp_path / "products").table.folder
    with pytest.raises(EncodeError, match=f"their encoder is {encoder.encoder_id}, but {other.encoder_id}"):
        encode(other, shared_data, tmp_path / "new", only_new_from=old)
    with pytest.raises(EncodeError, match="their number format is float32, but float16"):
        encode(encoder, shared_data, tmp_path / "new", only_new_from=old, dtype="float16")
    with pytest.raises(EncodeError, match="their kind is product, but query"):
        encode_queries(encoder, QUERIES, tmp_path / "new", only_new_from=old, dtype="float32")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / ".new.encoding").exists()


def test_only_new_queries_are_encoded(encoder: DashClipEncoder, tmp_path: Path) -> None:
    encode_queries(encoder, QUERIES[:3], tmp_path / "queries")
    found = encode_queries(encoder, QUERIES, tmp_path / "queries", only_new_from=tmp_path / "queries")
    assert (found.encoded, found.copied) == (1, 3)

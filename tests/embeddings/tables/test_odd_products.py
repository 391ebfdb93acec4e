"""Odd inputs: nothing is lost in silence, nothing stops the run."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import Encoded, encode_products
from tests.embeddings.small_catalog import FIRST_ID, write_small_catalog
from tests.embeddings.small_encoders import ROUNDING
from tests.embeddings.tables.small_tables import change_products, encode


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products 0 ... 11, each odd in its own way."""
    data = write_small_catalog(tmp_path_factory.mktemp("odd") / "data", products=12, side=40)
    images = data / "images"
    (images / f"{FIRST_ID}.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of use")
    (images / f"{FIRST_ID + 1}.png").unlink()
    whole = (images / f"{FIRST_ID + 2}.png").read_bytes()
    (images / f"{FIRST_ID + 2}.png").write_bytes(whole[: len(whole) // 2])
    good = Image.open(images / f"{FIRST_ID + 6}.png").convert("RGB")
    good.resize((5000, 4000), Image.Resampling.NEAREST).save(images / "large.jpg", quality=60)
    good.convert("CMYK").save(images / "cmyk.jpg", quality=95)
    frames = [Image.new("RGB", good.size, (shade, 0, 90)) for shade in (10, 200)]
    good.save(images / "animated.gif", save_all=True, append_images=frames)
    change_products(
        data,
        image={
            3: "images/large.jpg",
            4: "images/cmyk.jpg",
            5: "images/animated.gif",
            7: None,
            9: None,
            10: None,
            11: None,
        },
        title={7: "", 8: "🍎🥑", 9: "🍎🥑", 10: "Acme Red Circle " * 625, 11: "Acme Red Circle " * 2000},
    )
    return data


@pytest.fixture(scope="module")
def odd(encoder_folder: Path, odd_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """The odd catalogue, encoded."""
    out = tmp_path_factory.mktemp("odd") / "out" / "products"
    return encode(DashClipEncoder.load(encoder_folder), odd_data, out, loaders=3)


@pytest.fixture(scope="module")
def odd_titles(encoder_folder: Path, odd_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """The same from the titles alone."""
    text_only = ProductCatalog.open(odd_data, modalities=("text",))
    out = tmp_path_factory.mktemp("odd") / "titles" / "products"
    return encode_products(DashClipEncoder.load(encoder_folder), text_only, out, dtype="float32")


def test_unreadable_images_are_quarantined_and_their_products_encoded_from_the_title(
    odd: Encoded, odd_titles: Encoded
) -> None:
    listed = pq.read_table(odd.table.folder.parent / "quarantine.parquet").to_pylist()
    assert [row["product_id"] for row in listed] == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2]
    assert [Path(row["image"]).name for row in listed] == ["100.png", "101.png", "102.png"]
    assert all(row["reason"] for row in listed)
    assert odd.quarantined == 3
    for row in (1, 2, 3):
        np.testing.assert_allclose(
            odd.table.vectors_ND[row], odd_titles.table.vectors_ND[row], rtol=0, atol=ROUNDING
        )
        assert odd.table.vectors_ND[row].any()


def test_a_product_with_neither_image_nor_title_is_zeros_and_counted(odd: Encoded) -> None:
    zeros = [product for product in range(12) if not odd.table.vectors_ND[product + 1].any()]
    assert zeros == [7, 9], "an empty title and one of emojis alone, both without an image"
    assert odd.table.manifest.zero_vectors == 2
    assert odd.without_title == 3
    assert odd.without_image == 4 + odd.quarantined


def test_a_title_of_emojis_with_an_image_is_encoded_from_the_image(odd: Encoded) -> None:
    assert np.linalg.norm(odd.table.vectors_ND[8 + 1]) == pytest.approx(1, abs=1e-5)


def test_a_title_of_10000_characters_counts_up_to_its_cut(odd: Encoded, odd_data: Path) -> None:
    assert len(ProductCatalog.open(odd_data).titles[10]) == 9_999
    assert odd.table.vectors_ND[10 + 1].any()
    np.testing.assert_allclose(
        odd.table.vectors_ND[10 + 1], odd.table.vectors_ND[11 + 1], rtol=0, atol=ROUNDING
    )


def test_large_cmyk_and_animated_images_are_read(odd: Encoded, odd_titles: Encoded) -> None:
    for row in (3 + 1, 4 + 1, 5 + 1):
        assert np.linalg.norm(odd.table.vectors_ND[row]) == pytest.approx(1, abs=1e-5)
        difference_D = odd.table.vectors_ND[row] - odd_titles.table.vectors_ND[row]
        assert np.abs(difference_D).max() > 1e-3, "the image must count"


def test_an_animated_image_counts_as_its_first_frame(encoder: DashClipEncoder, tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=2)
    frame = Image.open(data / "images" / "100.png").convert("P")
    frame.save(data / "images" / "still.gif")
    frame.save(
        data / "images" / "moving.gif", save_all=True, append_images=[Image.new("RGB", frame.size, "red")]
    )
    change_products(data, title={1: "Acme Red Circle"}, image={0: "images/still.gif", 1: "images/moving.gif"})
    table = encode(encoder, data, tmp_path / "products").table
    np.testing.assert_allclose(table.vectors_ND[1], table.vectors_ND[2], rtol=0, atol=ROUNDING)


def test_quarantine_of_a_good_catalogue_is_an_empty_table(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"product_id": [1]}), tmp_path / "quarantine.parquet")
    encode(encoder, shared_data, tmp_path / "products")
    listed = pq.read_table(tmp_path / "quarantine.parquet")
    assert (len(listed), listed.schema.names) == (0, ["product_id", "image", "reason"])

"""The catalogue: what lacks is counted, lookalikes share a group, a batch equals its products alone."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.catalog import lookalikes as catalog_groups
from embeddings.catalog.images import AugmentationConfig, ImageUnreadable, load_image, to_pixels
from embeddings.catalog.lookalikes import groups_of_lookalikes, without_size
from embeddings.catalog.products import CatalogError, ProductBatch, ProductCatalog, load_batch
from embeddings.catalog.tokenizer import TextTokenizer
from features.inputs.tables import InputError
from tests.embeddings.small_catalog import small_tokenizer, write_small_catalog


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 products; product 3 has no title, 5 no image, 7 neither."""
    folder = tmp_path_factory.mktemp("small") / "data"
    return write_small_catalog(folder, without_title=[3, 7], without_image=[5, 7])


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return small_tokenizer()


def write_products(folder: Path, **columns: object) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "products.parquet")
    return folder


def batch_of(data: Path, tokenizer: TextTokenizer, index: object, **options: object) -> ProductBatch:
    catalog = ProductCatalog.open(data)
    return load_batch(catalog, tokenizer, index, image_size=16, max_title_tokens=12, **options)


def test_products_keep_the_order_of_their_table_and_say_what_they_lack(data: Path) -> None:
    catalog = ProductCatalog.open(data)
    assert catalog.ids.to_pylist() == list(range(100, 124))
    assert catalog.titles[:4] == ["Acme Red Circle", "Borvo Green Square", "Celto Blue Triangle", ""]
    assert catalog.image_paths[0] == data / "images" / "100.png"
    assert catalog.image_paths[5] is None
    assert catalog.aisles[:3] == ["Round", "Angular", "Angular"]
    summary = catalog.summary()
    assert (summary.products, summary.without_title, summary.without_image, summary.without_both) == (
        (24, 2, 2, 1)
    )
    assert len(catalog) == 24


def test_a_modality_left_out_reads_as_missing_for_all(data: Path) -> None:
    texts, pictures = (ProductCatalog.open(data, modalities=[kind]) for kind in ("text", "image"))
    assert texts.summary().without_image == pictures.summary().without_title == 24
    assert (texts.summary().without_title, pictures.summary().without_image) == (2, 2)


def test_a_catalogue_without_a_modality_is_the_one_that_was_opened_so(data: Path) -> None:
    whole = ProductCatalog.open(data)
    for kind in ("text", "image"):
        opened = ProductCatalog.open(data, modalities=[kind])
        part = whole.only([kind])
        assert (part.titles, part.image_paths) == (opened.titles, opened.image_paths)
        assert part.ids.equals(opened.ids)
        assert part.group_P.tolist() == opened.group_P.tolist()
        assert part.only([kind]) is part  # what is not there need not go
    assert whole.only(["image", "text"]) is whole


def test_pixels_of_products_without_images_take_no_memory(data: Path, tokenizer: TextTokenizer) -> None:
    texts = ProductCatalog.open(data, modalities=["text"])
    batch = load_batch(texts, tokenizer, np.arange(8), image_size=96, max_title_tokens=12)
    assert batch.pixels_BCHW.shape == (8, 3, 96, 96)
    assert not batch.pixels_BCHW.any()
    assert not batch.has_image_B.any()
    assert batch.pixels_BCHW.untyped_storage().nbytes() == 4


def test_several_text_columns_are_joined_without_nulls_and_stray_spaces(tmp_path: Path) -> None:
    data = write_products(
        tmp_path / "data",
        product_id=["a", "b", "c"],
        title=[" Cola \t Zero", None, " "],
        brand=["Acme", "Borvo", None],
    )
    catalog = ProductCatalog.open(data, text_columns=("brand", "title"))
    assert catalog.titles == ["Acme Cola Zero", "Borvo", ""]
    assert (catalog.aisles, catalog.image_paths) == (["", "", ""], [None, None, None])
    assert catalog.ids.type == pa.string()


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    for name, product in (("b", 2), ("a", 1)):
        write_products(tmp_path / name, product_id=pa.array([product], pa.int32()), title=["x"])
        (tmp_path / "products").mkdir(exist_ok=True)
        shutil.move(tmp_path / name / "products.parquet", tmp_path / "products" / f"{name}.parquet")
    catalog = ProductCatalog.open(tmp_path)
    assert catalog.ids.to_pylist() == [1, 2]
    assert catalog.ids.type == pa.int64()


def test_no_products_are_a_catalogue_of_length_zero(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    data = write_products(
        tmp_path / "data", product_id=pa.array([], pa.int64()), title=pa.array([], pa.string())
    )
    catalog = ProductCatalog.open(data)
    assert len(catalog) == len(catalog.group_P) == 0
    batch = load_batch(catalog, tokenizer, [], image_size=8, max_title_tokens=8)
    assert batch.pixels_BCHW.shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"product_id": [1, 2, 1], "title": ["a"] * 3}, "1 appears 2 times"),
        ({"product_id": [1, None], "title": ["a"] * 2}, "that of row 1 is"),
        ({"product_id": [1.5], "title": ["a"]}, "integer or a string, got double"),
        ({"product_id": [1], "title": ["a"], "image": ["../secret.png"]}, "must lie inside"),
        ({"product_id": [1], "title": ["a"], "image": ["/etc/logo.png"]}, "must lie inside"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, columns: dict, said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        ProductCatalog.open(write_products(tmp_path / "data", **columns))


def test_a_text_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = write_products(tmp_path / "data", product_id=[1], name=["a"])
    with pytest.raises(InputError, match=r"columns \['title'\]; found product_id, name"):
        ProductCatalog.open(data)


def test_a_folder_without_products_and_unknown_modalities_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match=r"neither products\.parquet"):
        ProductCatalog.open(tmp_path)
    for modalities in ([], ["sound"]):
        with pytest.raises(CatalogError, match="modalities"):
            ProductCatalog.open(data, modalities=modalities)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "title, plain",
    [
        ("Cola Zero, 6 x 330ml", "cola zero"),
        ("Cola Zero 12 fl. oz (Pack of 8)", "cola zero"),
        ("Whole Milk 1.5 L", "whole milk"),
        ("Vitamins, 30 pcs", "vitamins"),
        ("Plywood 3 in. x 4 ft. x 8 ft.", "plywood"),
        ("Family Size Crackers 12-count", "crackers"),
        ("7 Up", "7 up"),
        ("2% Milk", "2 milk"),
        ("Vitamin B 12", "vitamin b 12"),
        ("Series 3 Razor", "series 3 razor"),
        ("Pack Light Bag", "pack light bag"),
        ("500 g", ""),
        ("🍊", ""),
        ("Cola 0,33 l", "cola"),
        ("Cola 6x1,5 l", "cola"),
        ("Copy Paper 1,000 Sheets", "copy paper"),
        ("Milk 1/2 gal", "milk"),
        ("Juice 1 ½ l", "juice"),
        ("Foil 10 m", "foil"),
        ("2 in 1 Shampoo 250 ml", "2 in 1 shampoo"),
        ("Shampoo 2-in-1", "shampoo 2 in 1"),
        ("No 5 Pack of 2", "no 5"),
        ("No. 5 L'Eau 50 ml", "no 5 leau"),
        ("N° 5 Cream", "no 5 cream"),
        ("No 1.5 L Lens", "no 1.5 l lens"),
        ("Drill Bit 10 mm, 5 pcs", "drill bit 10 mm"),
        ("Plywood 3/4 in. x 4 ft. x 8 ft.", "plywood 3 over 4 in"),
        ("Photo Frame 30 x 40 cm", "photo frame"),
    ],
)
def test_sizes_leave_a_title_and_other_numbers_stay(title: str, plain: str) -> None:
    assert without_size(title) == plain


def test_size_variants_and_equal_titles_share_a_group() -> None:
    titles = ["Cola 330 ml", "COLA, 6 x 1 l", "Cola Zero 1 l", "cola", "", "", "🍊", "🍊", "500 g", "1 kg"]
    groups = groups_of_lookalikes(titles, [None] * len(titles))
    assert groups.tolist() == [0, 0, 2, 0, 4, 5, 6, 7, 8, 9]
    assert groups.dtype == np.int64


@pytest.mark.parametrize(
    "titles",
    [
        ("2 in 1 Shampoo", "3 in 1 Shampoo", "1 Shampoo"),
        ("No 5", "No 19"),
        ("No 5 Pack of 2", "No 19 Pack of 2"),
        ("Chanel No. 5 L'Eau", "Chanel No. 19 L'Eau", "Chanel L'Eau"),
        ("Pencil #2, box of 12", "Pencil #3, box of 12"),
        ("N°5 Oz", "№ 19 Oz"),
        (
            "Drill Bit 1/2 in",
            "Drill Bit 1/4 in",
            "Drill Bit 1 1/4 in.",
            "Drill Bit 1-1/2 in",
            "Drill Bit 1 in",
        ),
        ("Drill Bit ½ in", "Drill Bit ¼ in"),
        ("Drill Bit 6 mm", "Drill Bit 10 mm"),
        ("Pipe 1/2 in x 10 ft", "Pipe 3/4 in x 10 ft"),
    ],
)
def test_numbers_that_name_a_product_keep_it_apart(titles: tuple[str, ...]) -> None:
    groups = groups_of_lookalikes(titles, [None] * len(titles))
    assert groups.tolist() == list(range(len(titles)))


@pytest.mark.parametrize(
    "titles",
    [
        ("Cola 0,33 l", "Cola 1,5 l", "Cola 0.33 l", "Cola 6 x 1,5 L", "Cola"),
        ("Paper 1,000 sheets", "Paper 500 sheets", "Paper 12,000 sheets"),
        ("2 in 1 Shampoo 250 ml", "2 in 1 Shampoo, 1 l"),
        ("No 5 Pack of 2", "No. 5, 3 pack", "№5"),
        ("Drill Bit 1/2 in", "Drill Bit 1/2 in. (Pack of 5)", "Drill Bit ½ in, 10 pcs"),
        ("Pipe 1/2 in x 10 ft", "Pipe 1/2 in. x 5 ft.", "Pipe 1/2 in"),
        ("Milk 1/2 gal", "Milk 1 gal"),
        ("Drill Bit 1½ in", "Drill Bit 1 1/2 in", "Drill Bit 1-1/2 in."),
    ],
)
def test_sizes_written_in_other_ways_share_a_group(titles: tuple[str, ...]) -> None:
    assert not groups_of_lookalikes(titles, [None] * len(titles)).any()


def test_pictures_with_the_same_bytes_share_a_group(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two", "c": b"one", "d": b"longer"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in "abcdda"] + [tmp_path / "lost", tmp_path / "lost", None, None]
    titles = [f"word{position}" for position in range(len(paths))]
    assert groups_of_lookalikes(titles, paths).tolist() == [0, 1, 0, 3, 3, 0, 6, 7, 8, 9]


def test_lookalikes_are_joined_through_chains(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"one")
    paths = [None, tmp_path / "a", tmp_path / "b", None]
    assert groups_of_lookalikes(["x", "y", "z 1 l", "z"], paths).tolist() == [0, 1, 1, 1]


def test_only_pictures_of_equal_length_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, length in (("a", 3), ("b", 4), ("c", 4)):
        (tmp_path / name).write_bytes(bytes(length))
    read: list[str] = []
    monkeypatch.setattr(catalog_groups, "sha256_of", lambda path: read.append(path.name) or "digest")
    groups_of_lookalikes(["w1", "w2", "w3", "w4"], [tmp_path / name for name in "abca"])
    assert read == ["b", "c"]


@given(
    facts=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c 1 l", "c", "a 2 kg", ""]), st.sampled_from("xyz-")),
        max_size=12,
    )
)
@settings(max_examples=40, deadline=None)
def test_groups_equal_the_connected_parts_found_by_brute_force(
    tmp_path_factory: pytest.TempPathFactory, facts: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in "xyz":
        (folder / name).write_bytes(name.encode())
    paths = [None if name == "-" else folder / name for _, name in facts]
    groups = groups_of_lookalikes([title for title, _ in facts], paths)
    expected = list(range(len(facts)))
    for _ in facts:
        for first, (title, name) in enumerate(facts):
            for second, (other_title, other_name) in enumerate(facts):
                same_title = title != "" and without_size(title) == without_size(other_title)
                if same_title or (name != "-" and name == other_name):
                    expected[first] = expected[second] = min(expected[first], expected[second])
    assert groups.tolist() == expected


def test_groups_are_those_of_titles_and_pictures(data: Path) -> None:
    assert ProductCatalog.open(data).group_P.tolist() == list(range(24))


def test_a_batch_holds_pixels_tokens_and_what_lacks(data: Path, tokenizer: TextTokenizer) -> None:
    batch = batch_of(data, tokenizer, [5, 0, 7, 3])
    assert batch.index_B.tolist() == [5, 0, 7, 3]
    assert batch.has_image_B.tolist() == [False, True, False, True]
    assert batch.has_title_B.tolist() == [True, True, False, False]
    assert not batch.pixels_BCHW[[0, 2]].any()
    image = load_image(data / "images" / "100.png", size=16)
    assert torch.equal(batch.pixels_BCHW[1], to_pixels(image[None])[0])
    assert batch.ids_BT[2].tolist()[:2] == [tokenizer.cls_id, tokenizer.sep_id]
    assert batch.mask_BT.sum(dim=1).tolist()[2:] == [2, 2]
    assert batch.pixels_BCHW.dtype == torch.float32
    assert batch.index_B.dtype == torch.int64
    assert len(batch) == 4


@given(index=st.lists(st.integers(0, 23), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_a_batch_equals_its_products_one_by_one(
    data: Path, tokenizer: TextTokenizer, index: list[int], seed: int
) -> None:
    options = {"augmentation": AugmentationConfig(), "seed": (seed, 1)}
    batch = batch_of(data, tokenizer, index, **options)
    for position, product in enumerate(index):
        alone = batch_of(data, tokenizer, [product], **options)
        length = int(batch.mask_BT[position].sum())
        assert torch.equal(alone.pixels_BCHW[0], batch.pixels_BCHW[position])
        assert torch.equal(alone.ids_BT[0], batch.ids_BT[position, :length])
        assert alone.has_image_B[0] == batch.has_image_B[position]
        assert alone.has_title_B[0] == batch.has_title_B[position]


def test_each_seed_augments_anew_and_each_product_apart(data: Path, tokenizer: TextTokenizer) -> None:
    config = AugmentationConfig()
    plain = batch_of(data, tokenizer, [0, 0])
    first = batch_of(data, tokenizer, [0, 0], augmentation=config, seed=(1,))
    second = batch_of(data, tokenizer, [0, 0], augmentation=config, seed=(2,))
    assert torch.equal(first.pixels_BCHW[0], first.pixels_BCHW[1])
    assert not torch.equal(first.pixels_BCHW, second.pixels_BCHW)
    assert not torch.equal(first.pixels_BCHW, plain.pixels_BCHW)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """The picture of product 1 is cut off and that of product 2 is gone."""
    data = write_small_catalog(tmp_path / "data", products=4)
    picture = data / "images" / "101.png"
    picture.write_bytes(picture.read_bytes()[:200])
    (data / "images" / "102.png").unlink()
    return data


def test_an_unreadable_image_is_reported_and_counts_as_missing(
    damaged: Path, tokenizer: TextTokenizer
) -> None:
    reported: dict[int, str] = {}
    batch = batch_of(
        damaged,
        tokenizer,
        [2, 0, 1],
        unreadable=reported,
    )
    pictures = ProductCatalog.open(damaged).image_paths
    names = [(row, path.name) for row in reported if (path := pictures[row])]
    assert names == [(2, "102.png"), (1, "101.png")]
    assert all(reported.values()), "each has a reason"
    assert batch.has_image_B.tolist() == [False, True, False]
    assert not batch.pixels_BCHW[[0, 2]].any()
    assert batch.has_title_B.all()


def test_an_image_outside_of_the_folder_is_unreadable_and_never_opened(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    data = write_small_catalog(tmp_path / "data", products=4)
    table = pq.read_table(data / "products.parquet")
    names = table["image"].to_pylist()
    (data / names[1]).rename(tmp_path / "secret.png")
    names[1], names[2] = "../secret.png", f"./{names[0]}"
    place = table.schema.get_field_index("image")
    pq.write_table(table.set_column(place, "image", pa.array(names)), data / "products.parquet")
    catalog = ProductCatalog.open(data)
    assert catalog.image_paths[2] == catalog.image_paths[0]
    assert catalog.group_P[2] == catalog.group_P[0]
    reasons: dict[int, str] = {}
    batch = batch_of(data, tokenizer, range(4), unreadable=reasons)
    assert reasons == {1: "it lies outside of the data folder"}
    assert batch.has_image_B.tolist() == [True, False, True, True]
    with pytest.raises(ImageUnreadable, match=r"^\.\./secret\.png cannot be read .* it lies outside"):
        batch_of(data, tokenizer, [1])


def test_an_unreadable_image_stops_the_batch_unless_asked_otherwise(
    damaged: Path, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(ImageUnreadable, match=r"101\.png"):
        batch_of(damaged, tokenizer, [0, 1])


@pytest.mark.parametrize("index", [[24], [0, -1]])
def test_an_index_outside_the_catalogue_is_refused(
    data: Path, tokenizer: TextTokenizer, index: list[int]
) -> None:
    with pytest.raises(CatalogError, match=f"from 0 to 23, got {index[-1]}"):
        batch_of(data, tokenizer, index)


def test_a_batch_moves_as_a_whole(data: Path, tokenizer: TextTokenizer) -> None:
    moved = batch_of(data, tokenizer, [0, 1]).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(moved, ProductBatch)


def test_a_batch_that_has_left_the_host_still_knows_there_what_it_lacks(
    data: Path, tokenizer: TextTokenizer
) -> None:
    """On the meta device tensors have no values that could be looked at."""
    batch = batch_of(data, tokenizer, [2, 3, 5, 6, 7])
    moved = batch.to("meta").to("meta")
    for one, other in ((batch, moved), (batch.take(slice(1, 3)), moved.take(slice(1, 3)))):
        assert len(other.image_rows()) == len(one.image_rows())
        for without_image in (False, True):
            rows = one.title_rows(without_image=without_image)
            assert len(other.title_rows(without_image=without_image)) == len(rows)
    assert batch.image_rows().tolist() == [0, 1, 3]
    assert batch.title_rows(without_image=False).tolist() == [0, 2, 3]
    assert batch.title_rows(without_image=True).tolist() == [2]

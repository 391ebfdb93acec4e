"""Encoding a catalogue: the same vectors however it is cut, stopped or extended; nothing lost in silence."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from embeddings.catalog import ProductCatalog, load_batch
from embeddings.completion import Completion
from embeddings.dashclip import DashClipEncoder
from embeddings.encode import Encoded, EncodeError, encode_products, encode_queries
from embeddings.encoder_config import EncoderConfig
from embeddings.encoders import seeded
from embeddings.shards import WorkFolderBusyError, work_folder
from embeddings.table import EmbeddingTable, EmbeddingTableError
from tests.embeddings.small_catalog import FIRST_ID, small_tokenizer, write_small_catalog

PRODUCTS = 24
QUERIES = pa.array(["red circle", "blue square", "a much longer query for a pink ring", "green"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder") / "aligned", seed=0)


@pytest.fixture
def encoder(encoder_folder: Path) -> DashClipEncoder:
    return DashClipEncoder.load(encoder_folder)


@pytest.fixture(scope="module")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read by many tests, changed by none."""
    return write_small_catalog(
        tmp_path_factory.mktemp("shared") / "data", products=PRODUCTS, without_title=[3], without_image=[5, 6]
    )


@pytest.fixture(scope="module")
def plain(encoder_folder: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """The shared catalogue, encoded without a stop."""
    out = tmp_path_factory.mktemp("plain") / "products"
    return encode(DashClipEncoder.load(encoder_folder), shared_data, out)


def save_encoder(folder: Path, *, seed: int) -> Path:
    tokenizer = small_tokenizer()
    config = EncoderConfig.preset("tiny", vocab_size=tokenizer.vocab_size)
    encoder = DashClipEncoder.new(config, tokenizer, seed=seed).with_query_encoder()
    completion = seeded(lambda: Completion(config.embedding_dim, config.vocab_size), seed)
    for parameter in completion.parameters():  # an untrained one would add nothing
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    encoder.product.completion = completion
    encoder.save(folder, stage="aligned", trained_on={})
    return folder


def encode(encoder: DashClipEncoder, data: Path, out: Path, **settings: object) -> Encoded:
    arguments = {"batch_size": 4, "shard_rows": 7, "dtype": "float32"} | settings
    return encode_products(encoder, ProductCatalog.open(data), out, **arguments)


def vectors_by_id(table: EmbeddingTable) -> dict[object, np.ndarray]:
    return dict(zip(table.ids.to_pylist(), np.array(table.vectors_ND[1:]), strict=True))


def assert_same_files(first: Path, second: Path) -> None:
    for name in ("vectors.npy", "ids.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def change_products(data: Path, **columns: dict[int, object]) -> None:
    """Set cells of products.parquet: column = {position: value}."""
    table = pq.read_table(data / "products.parquet")
    for name, cells in columns.items():
        values = table.column(name).to_pylist()
        for position, value in cells.items():
            values[position] = value
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, data / "products.parquet")


# what a vector depends on


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
        np.testing.assert_allclose(table.vectors_ND[row + 1], alone_D, atol=1e-6)
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
        np.testing.assert_allclose(vector_D, expected[product_id], atol=1e-6)


def test_float16_is_the_rounded_float32(
    encoder: DashClipEncoder, shared_data: Path, plain: Encoded, tmp_path: Path
) -> None:
    half = encode(encoder, shared_data, tmp_path / "half", dtype="float16").table
    np.testing.assert_array_equal(half.vectors_ND, plain.table.vectors_ND.astype(np.float16))


def test_queries_get_the_vectors_of_the_query_encoder(encoder: DashClipEncoder, tmp_path: Path) -> None:
    found = encode_queries(
        encoder, QUERIES, tmp_path / "queries", batch_size=2, shard_rows=3, dtype="float32"
    )
    assert found.table.manifest.kind == "query"
    assert found.table.ids.equals(QUERIES)
    expected_QD = encoder.embed_queries(QUERIES.to_pylist()).numpy()
    np.testing.assert_allclose(found.table.vectors_ND[1:], expected_QD, atol=1e-6)
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


# edge cases of a catalogue


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
        np.testing.assert_allclose(odd.table.vectors_ND[row], odd_titles.table.vectors_ND[row], atol=1e-6)
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
    np.testing.assert_allclose(odd.table.vectors_ND[10 + 1], odd.table.vectors_ND[11 + 1], atol=1e-6)


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
    np.testing.assert_allclose(table.vectors_ND[1], table.vectors_ND[2], atol=1e-6)


def test_quarantine_of_a_good_catalogue_is_an_empty_table(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"product_id": [1]}), tmp_path / "quarantine.parquet")
    encode(encoder, shared_data, tmp_path / "products")
    listed = pq.read_table(tmp_path / "quarantine.parquet")
    assert (len(listed), listed.schema.names) == (0, ["product_id", "image", "reason"])


# stopped and called again

_CHILD = """
import sys, time
from pathlib import Path
import torch
from embeddings.catalog import ProductCatalog
from embeddings.dashclip import DashClipEncoder
from embeddings.encode import encode_products
torch.set_num_threads(1)
encoder, data, out, stage, point = sys.argv[1:]
def progress(now, done, total):
    if (now, done) == (stage, int(point)):
        print("here", flush=True)
        time.sleep(600)
encode_products(DashClipEncoder.load(Path(encoder)), ProductCatalog.open(Path(data)), Path(out),
                batch_size=4, shard_rows=7, dtype="float32", progress=progress)
"""


@pytest.mark.parametrize(
    ("stage", "point", "resumed"),
    [("products", 18, 14), ("table", 0, PRODUCTS)],
    ids=["within the third shard", "before the table"],
)
def test_a_killed_process_goes_on_after_its_last_shard_to_the_same_bytes(
    encoder_folder: Path, tmp_path: Path, stage: str, point: int, resumed: int
) -> None:
    data = write_small_catalog(tmp_path / "data", products=PRODUCTS, without_image=[5])
    (data / "images" / "101.png").write_bytes(b"broken")
    encoder = DashClipEncoder.load(encoder_folder)
    encode(encoder, data, tmp_path / "whole" / "products")
    out = tmp_path / "killed" / "products"
    arguments = [str(encoder_folder), str(data), str(out), stage, str(point)]
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not out.exists(), "a table is whole or absent"

    calls: list[tuple[str, int, int]] = []
    found = encode(encoder, data, out, progress=lambda *call: calls.append(call))
    assert (found.resumed, found.encoded) == (resumed, PRODUCTS - resumed)
    assert found.quarantined == 1, "notes of finished shards outlive the kill, too"
    assert found.without_image == 2
    assert_same_files(out, tmp_path / "whole" / "products")
    quarantine = [pq.read_table(tmp_path / run / "quarantine.parquet") for run in ("whole", "killed")]
    assert quarantine[0].equals(quarantine[1])
    assert sorted(path.name for path in out.parent.iterdir()) == ["products", "quarantine.parquet"]


class _Stopped(Exception):
    pass


def stop_at(point: int):
    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("products", point):
            raise _Stopped

    return progress


def stopped_after_two_shards(encoder: DashClipEncoder, data: Path, out: Path) -> Path:
    """Shards 1 and 2 (products 0 ... 13) are finished; the folder that holds them."""
    with pytest.raises(_Stopped):
        encode(encoder, data, out, progress=stop_at(18))
    return out.parent / f".{out.name}.encoding"


def test_an_interrupted_call_keeps_its_shards(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    work = stopped_after_two_shards(encoder, shared_data, tmp_path / "products")
    assert sorted(path.name for path in work.glob("*.npy")) == ["shard-00001.npy", "shard-00002.npy"]
    assert encode(encoder, shared_data, tmp_path / "products").resumed == 14
    assert not work.exists()


@pytest.mark.parametrize("damage", ["cut off", "flipped bit", "no record", "half a record"])
def test_a_damaged_shard_is_computed_again(
    encoder: DashClipEncoder, shared_data: Path, plain: Encoded, tmp_path: Path, damage: str
) -> None:
    work = stopped_after_two_shards(encoder, shared_data, tmp_path / "products")
    vectors, record = work / "shard-00002.npy", work / "shard-00002.json"
    content = bytearray(vectors.read_bytes())
    if damage == "cut off":
        vectors.write_bytes(content[:-5])
    elif damage == "flipped bit":
        content[-1] ^= 1
        vectors.write_bytes(content)
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:20])
    assert encode(encoder, shared_data, tmp_path / "products").resumed == 7
    assert_same_files(tmp_path / "products", plain.table.folder)


def test_what_changed_since_the_stop_is_computed_again(encoder: DashClipEncoder, tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=PRODUCTS)
    (data / "images" / "101.png").write_bytes(b"broken")
    out = tmp_path / "products"
    stopped_after_two_shards(encoder, data, out)
    (data / "images" / "101.png").write_bytes((data / "images" / "120.png").read_bytes())
    stopped_again = stopped_after_two_shards(encoder, data, out)
    change_products(data, title={8: "Acme Pink Ring"})
    found = encode(encoder, data, out)
    assert (found.resumed, found.quarantined) == (7, 0)
    assert not stopped_again.exists()
    assert_same_files(out, encode(encoder, data, tmp_path / "anew").table.folder)


def test_shards_of_another_encoder_or_number_format_are_not_used(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    other = DashClipEncoder.load(save_encoder(tmp_path / "other", seed=1))
    stopped_after_two_shards(encoder, shared_data, tmp_path / "products")
    assert encode(other, shared_data, tmp_path / "products").resumed == 0
    stopped_after_two_shards(encoder, shared_data, tmp_path / "half")
    assert encode(encoder, shared_data, tmp_path / "half", dtype="float16").resumed == 0


def test_two_processes_cannot_write_the_same_table(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    with (
        work_folder(tmp_path / ".products.encoding"),
        pytest.raises(WorkFolderBusyError, match="in use by another process"),
    ):
        encode(encoder, shared_data, tmp_path / "products")


def test_a_failing_machine_stops_the_call_but_keeps_the_shards(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after_two_shards(encoder, shared_data, tmp_path / "products")
    opened = Image.open

    def too_many_files(path: Path, *rest: object) -> Image.Image:
        if Path(path).name == "120.png":
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(path, *rest)

    monkeypatch.setattr(Image, "open", too_many_files)
    with pytest.raises(OSError, match="Too many open files"):
        encode(encoder, shared_data, tmp_path / "products")
    monkeypatch.undo()
    assert encode(encoder, shared_data, tmp_path / "products").resumed == 14


def test_a_full_disk_leaves_what_stood_there_and_can_go_on(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encode(encoder, shared_data, tmp_path / "products").table.manifest
    other = DashClipEncoder.load(save_encoder(tmp_path / "other", seed=1))
    save, calls = np.save, []

    def full_disk(file: object, *rest: object, **settings: object) -> None:
        calls.append(file)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, *rest, **settings)

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        encode(other, shared_data, tmp_path / "products")
    monkeypatch.undo()
    assert EmbeddingTable.load(tmp_path / "products").manifest == before
    assert encode(other, shared_data, tmp_path / "products").resumed == 14


# only what is new


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
        np.testing.assert_allclose(vector_D, expected[product_id], atol=1e-6)


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
    with pytest.raises(_Stopped):
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


# what is refused, before any work


def test_a_folder_with_something_else_is_left_as_it_is(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    calls: list[int] = []
    with pytest.raises(EmbeddingTableError, match="left as it is"):
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


# memory

_MEASURED = """
import json, sys
from pathlib import Path
import pyarrow as pa
import torch
from embeddings.catalog import ProductCatalog
from embeddings.dashclip import DashClipEncoder
from embeddings.encode import encode_products
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

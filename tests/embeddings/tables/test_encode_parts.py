"""A table encoded in parts by several processes is the table that one process makes."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import EncodedPart, encode_part
from embeddings.tables.shards import LOCK, WorkFolderBusyError, part_of_work_folder, work_folder
from embeddings.tables.sources import Products
from features.artifacts import file_lock
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.tables.small_tables import PRODUCTS, assert_same_files, encode


def part_of(encoder: DashClipEncoder, data: Path, out: Path, number: int, count: int) -> EncodedPart:
    source = Products(encoder, ProductCatalog.open(data), batch_size=4, loaders=1)
    return encode_part(encoder, source, out, number=number, count=count, shard_rows=7, dtype="float32")


def test_parts_put_together_are_the_table_of_one_process(encoder: DashClipEncoder, tmp_path: Path) -> None:
    data = write_small_catalog(tmp_path / "data", products=PRODUCTS, without_image=[5])
    (data / "images" / "101.png").write_bytes(b"broken")
    whole = encode(encoder, data, tmp_path / "whole" / "products")
    out = tmp_path / "parts" / "products"
    out.parent.mkdir()
    parts = [part_of(encoder, data, out, number, 3) for number in (3, 1, 2)]
    assert sum(part.encoded for part in parts) == PRODUCTS
    assert all(0 < part.encoded < PRODUCTS for part in parts)
    assert not out.exists()
    assert part_of(encoder, data, out, 1, 3).resumed == parts[1].encoded, "a job that starts again"
    found = encode(encoder, data, out)
    assert (found.encoded, found.resumed, found.quarantined) == (0, PRODUCTS, 1)
    assert_same_files(out, whole.table.folder)
    assert sorted(path.name for path in out.parent.iterdir()) == ["products", "quarantine.parquet"]


def test_what_a_missing_part_would_have_encoded_is_encoded_at_the_end(
    encoder: DashClipEncoder, shared_data: Path, tmp_path: Path
) -> None:
    one = part_of(encoder, shared_data, tmp_path / "products", 1, 2)
    found = encode(encoder, shared_data, tmp_path / "products")
    assert (found.resumed, found.encoded) == (one.encoded, PRODUCTS - one.encoded)


def test_parts_work_beside_each_other_but_not_beside_the_whole(tmp_path: Path) -> None:
    folder, slept = tmp_path / "work", list[float]()
    with part_of_work_folder(folder, number=1, count=2):
        with part_of_work_folder(folder, number=2, count=2):
            pass
        with pytest.raises(WorkFolderBusyError), part_of_work_folder(folder, number=1, count=2):
            pass
        with pytest.raises(WorkFolderBusyError), work_folder(folder):
            pass
    with (
        work_folder(folder),
        pytest.raises(WorkFolderBusyError),
        part_of_work_folder(folder, number=3, count=3, sleep=slept.append),
    ):
        pass
    assert len(slept) > 10, "it looks for some seconds"
    assert not folder.exists(), "the whole has ended"


def test_a_part_waits_for_another_that_only_looks(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    with ExitStack() as other:
        other.enter_context(file_lock(folder / LOCK, busy=AssertionError()))
        with part_of_work_folder(folder, number=1, count=2, sleep=lambda _: other.close()):
            pass

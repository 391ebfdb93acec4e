"""Encoding that was stopped and goes on: the same bytes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import Encoded
from embeddings.tables.shards import WorkFolderBusyError, work_folder
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.tables.small_tables import (
    PRODUCTS,
    Stopped,
    assert_same_files,
    change_products,
    encode,
    save_encoder,
    stop_at,
)

_CHILD = """
import sys, time
from pathlib import Path
import torch
from embeddings.catalog.products import ProductCatalog
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.tables.encode import encode_products
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


def stopped_after_two_shards(encoder: DashClipEncoder, data: Path, out: Path) -> Path:
    """Shards 1 and 2 (products 0 ... 13) are finished; the folder that holds them."""
    with pytest.raises(Stopped):
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

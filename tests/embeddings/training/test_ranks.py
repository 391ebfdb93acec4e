"""Two ranks against one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.training.ranks import (
    Ranks,
    decided_by_first,
    failing_together,
    gather_objects,
    gather_rows,
    gather_rows_with_gradient,
    join_ranks,
    sum_over_ranks,
)
from tests.embeddings.small_catalog import write_small_catalog
from tests.embeddings.small_encoders import build_small_tuples
from tests.embeddings.training.training_child import train_both_stages


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one rank and what two ranks wrote."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("ranks")
    data = write_small_catalog(root / "catalogue", products=24, without_image={4}, without_title={7})
    (data / "images" / "106.png").write_bytes(b"no picture")
    one, two = root / "one", root / "two"
    one.mkdir()
    tuples = build_small_tuples(data, two / "tuples")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "tests.embeddings.training.training_child", "ranks"]
    child = subprocess.run(
        [*command, str(data), str(two), str(port)],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout == "[0, 0]", child.stderr
    train_both_stages(data, tuples, one, Ranks())
    return one, two


def read(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{stage}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_two_ranks_train_as_one_does_on_the_same_global_batches(
    folders: tuple[Path, Path], stage: str
) -> None:
    one, two = (read(folder, stage) for folder in folders)
    for name in ("losses", "history"):
        assert len(one[name]) == len(two[name]) >= 2
        for alone, shared in zip(one[name], two[name], strict=True):
            assert shared == pytest.approx(alone, rel=1e-6)
    weights = load_file(folders[0] / f"{stage}-0.safetensors")
    for rank in range(2):
        shared_weights = load_file(folders[1] / f"{stage}-{rank}.safetensors")
        assert shared_weights.keys() == weights.keys()
        for name, value in weights.items():
            torch.testing.assert_close(shared_weights[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_the_first_rank_alone_writes_the_run_and_both_open_it(folders: tuple[Path, Path]) -> None:
    _, two = folders
    loaded = DashClipEncoder.load(two / "stage" / "encoder")
    ids = {(two / f"id-{rank}.txt").read_text(encoding="utf-8") for rank in range(2)}
    assert ids == {loaded.encoder_id}
    assert loaded.trained_on is not None
    assert loaded.trained_on["settings"]["ranks"] == 2
    assert sorted(path.name for path in (two / "stage").iterdir()) == [
        "encoder",
        "tensorboard",
        "training.json",
    ]


def test_a_loss_that_is_no_number_on_one_rank_stops_all(folders: tuple[Path, Path]) -> None:
    _, two = folders
    for rank in range(2):
        assert "the loss of step 2 is nan" in (two / f"diverged-{rank}.txt").read_text(encoding="utf-8")


def test_one_process_stands_alone_without_a_process_group() -> None:
    ranks = join_ranks("cpu")
    assert (ranks.rank, ranks.count, ranks.first) == (0, 1, True)
    rows = torch.ones(3, 2, requires_grad=True)
    assert not gather_rows(rows, ranks).requires_grad
    assert gather_rows_with_gradient(rows, ranks) is rows
    assert sum_over_ranks(rows, ranks).equal(rows)


def test_each_rank_has_an_equal_part_of_the_rows() -> None:
    parts = [Ranks(rank, 3).slice_of(12) for rank in range(3)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    with pytest.raises(ValueError, match="10 rows cannot be divided among 3 ranks; choose a multiple"):
        Ranks(0, 3).slice_of(10)


@pytest.mark.parametrize("rows", [1, 3, 10, 12, 13])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_covers_are_equally_long_and_leave_no_row_out(rows: int, count: int) -> None:
    parts = [list(range(rows)[Ranks(rank, count).cover_of(rows)]) for rank in range(count)]
    assert {len(part) for part in parts} == {-(-rows // count)}
    assert {row for part in parts for row in part} == set(range(rows))


def test_alone_a_rank_decides_and_fails_by_itself() -> None:
    assert decided_by_first(Ranks(), lambda: 3) == 3
    assert gather_objects("a", Ranks()) == ["a"]
    with pytest.raises(KeyError), failing_together(Ranks()):
        decided_by_first(Ranks(), lambda: {}["nothing"])

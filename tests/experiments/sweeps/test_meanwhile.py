"""Runs that train beside other work: the runs of the sweep to the bit, and nothing left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch

import experiments.sweeps.meanwhile
import experiments.sweeps.sweep
from experiments.sweeps.meanwhile import trained_meanwhile
from experiments.sweeps.sweep import PlannedRun, execute_sweep, plan
from tests.experiments.sweeps.small_sweeps import HISTORY, TRAINING, sweep_config, write_inputs

ENDLESS = {**TRAINING, "max_epochs": 100_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("meanwhile"))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (experiments.sweeps.sweep, experiments.sweeps.meanwhile):
        monkeypatch.setattr(module, "usable_cores", lambda: 2)


def wait_for(path: Path, *, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.05)


def children() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in " ".join(child.cmdline())
    ]


def test_what_trained_meanwhile_is_the_sweeps_own_run_to_the_bit(folder: Path, tmp_path: Path) -> None:
    config = sweep_config(folder, seeds=[1])
    execute_sweep(config, tmp_path / "alone", processes=2)
    early = [run for run in plan(config, tmp_path / "beside") if run.config.variant == "dcn"]
    with trained_meanwhile(early, processes=2, log=tmp_path / "log") as training:
        assert training == early
        wait_for(early[0].folder / "run.json")
    finished = (early[0].folder / "run.json").stat().st_mtime_ns
    outcomes = execute_sweep(config, tmp_path / "beside", processes=2)
    assert list(outcomes.values()) == [None, None]
    assert (early[0].folder / "run.json").stat().st_mtime_ns == finished, "the sweep trained it again"
    for run in plan(config, Path()):
        alone, beside = tmp_path / "alone" / run.folder, tmp_path / "beside" / run.folder
        for name in ("config.json", "inputs.json", "metrics.json", "best/model.safetensors"):
            assert (alone / name).read_bytes() == (beside / name).read_bytes(), (run.folder, name)
        first, second = (pq.read_table(made / "predictions" / "test.parquet") for made in (alone, beside))
        assert first.num_rows > 50
        assert first.equals(second)


def test_a_run_that_fails_is_logged_and_left_to_the_sweep(folder: Path, tmp_path: Path, capfd) -> None:
    missing = folder / "nowhere"
    variants = {"broken": {"product_table": missing, "ranker": {"semantic": HISTORY}}, "dcn": {}}
    broken, dcn = plan(sweep_config(folder, seeds=[1], variants=variants), tmp_path)
    with trained_meanwhile([broken, dcn], processes=None, log=tmp_path / "log"):
        wait_for(dcn.folder / "run.json")
    assert f"{broken.folder}: ValueError: {missing}" in (tmp_path / "log").read_text()
    assert str(missing) in (broken.folder / "failure.txt").read_text()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_end_of_the_block_is_the_end_of_the_training(
    folder: Path, tmp_path: Path, error: type[BaseException] | None
) -> None:
    runs = plan(sweep_config(folder, seeds=[1], training=ENDLESS), tmp_path)

    def leave_when_it_trains() -> None:
        with trained_meanwhile(runs, processes=2, log=tmp_path / "log"):
            wait_for(runs[0].folder / "best")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            leave_when_it_trains()
    else:
        leave_when_it_trains()
    assert not children()
    assert not (runs[0].folder / "run.json").exists()


def test_a_killed_training_is_no_error(folder: Path, tmp_path: Path) -> None:
    runs = plan(sweep_config(folder, seeds=[1], training=ENDLESS), tmp_path)
    with trained_meanwhile(runs, processes=2, log=tmp_path / "log"):
        wait_for(runs[0].folder / "config.json")
        [process] = children()
        process.kill()
    assert not children()


def test_this_process_leaves_the_core_that_trains(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, threads = plan(sweep_config(folder, seeds=[1]), tmp_path), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with trained_meanwhile(runs, processes=2, log=tmp_path / "log"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def refuse(*_: object) -> None:
    raise AssertionError("a process is started")


@pytest.mark.parametrize(("cores", "processes"), [(1, None), (1, 2), (2, 1), (8, 1)])
def test_nothing_trains_without_a_second_core_and_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, processes: int | None
) -> None:
    monkeypatch.setattr(experiments.sweeps.meanwhile.multiprocessing, "get_context", refuse)
    for module in (experiments.sweeps.sweep, experiments.sweeps.meanwhile):
        monkeypatch.setattr(module, "usable_cores", lambda: cores)
    with trained_meanwhile(plan(sweep_config(), tmp_path), processes=processes, log=tmp_path / "log") as runs:
        assert runs == []


def test_finished_runs_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments.sweeps.meanwhile.multiprocessing, "get_context", refuse)
    runs: list[PlannedRun] = plan(sweep_config(), tmp_path)
    for run in runs:
        run.folder.mkdir(parents=True)
        (run.folder / "run.json").write_text("{}")
    with trained_meanwhile(runs, processes=2, log=tmp_path / "log") as training:
        assert training == []


_PARENT = """
import sys, time
from pathlib import Path
import experiments.sweeps.meanwhile, experiments.sweeps.sweep
from experiments.sweeps.sweep import plan
from tests.experiments.sweeps.test_meanwhile import ENDLESS, children, sweep_config, wait_for
if __name__ == "__main__":
    for module in (experiments.sweeps.sweep, experiments.sweeps.meanwhile):
        module.usable_cores = lambda: 2
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    runs = plan(sweep_config(folder, seeds=[1], training=ENDLESS), out)
    with experiments.sweeps.meanwhile.trained_meanwhile(runs, processes=2, log=out / "log"):
        wait_for(runs[0].folder / "config.json")
        [process] = children()
        print(process.pid, flush=True)
        time.sleep(600)
"""


def test_the_training_ends_with_a_killed_parent(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    command = [sys.executable, "-W", "ignore", str(script), str(folder), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        training = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([training], timeout=30)
    assert not alive

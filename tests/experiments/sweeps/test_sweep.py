"""A sweep: planned seed by seed, run once each, whatever fails or stops, on however many processes."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

import experiments.sweeps.sweep
from experiments.config import ConfigError
from experiments.runtime.job_pool import BUSY, DIED, Job, JobProgress, run_job
from experiments.runtime.parts import Part
from experiments.sweeps.sweep import execute_sweep, job_of, plan
from experiments.sweeps.table2 import build_report
from features.progress import silent
from ranking.run import run_lock
from tests.experiments.sweeps.small_sweeps import HISTORY, TRAINING, sweep_config, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, dict[Path, str | None], list[JobProgress]]:
    """A sweep in two processes of one thread each, what it returned, and what it said meanwhile."""
    said: list[JobProgress] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.sweeps.sweep, "usable_cores", lambda: 2)
        outcomes = execute_sweep(
            sweep_config(folder), folder / "two", processes=2, command="as typed", on_progress=said.append
        )
    return folder / "two", outcomes, said


def test_runs_are_planned_seed_by_seed_so_that_an_early_stop_still_compares():
    planned = plan(sweep_config(), Path("out"))
    assert [(run.config.seed, run.config.variant) for run in planned] == [
        (3, "dcn"),
        (3, "dcn_p_sim_history"),
        (1, "dcn"),
        (1, "dcn_p_sim_history"),
    ]
    assert planned[3].folder == Path("out/dcn_p_sim_history/seed-1")


def test_settings_of_a_variant_go_over_those_of_the_sweep_key_by_key():
    own = {
        "ranker": {"cross_layers": 2, "semantic": {"entities": ["product"]}},
        "training": {"optimizer": {"weight_decay": 0.1}},
        "product_table": "other/products",
    }
    dcn, changed = (
        run.config for run in plan(sweep_config(seeds=[1], variants={"dcn": {}, "b": own}), Path())
    )
    assert (dcn.ranker.cross_layers, changed.ranker.cross_layers) == (1, 2)
    assert dcn.ranker.embedding_dim == changed.ranker.embedding_dim == 4
    assert dcn.ranker.semantic is None
    assert changed.ranker.semantic is not None
    assert changed.ranker.semantic.entities == ("product",)
    optimizer = changed.training.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.01, 0.1)
    assert dcn.training.optimizer.weight_decay == 0
    assert (dcn.product_table, changed.product_table) == (Path("data/products"), Path("other/products"))


def test_an_unknown_key_inside_a_variant_names_the_variant():
    config = sweep_config(variants={"dcn": {}, "wide": {"ranker": {"deep_width": [8]}}})
    with pytest.raises(ConfigError) as caught:
        plan(config, Path("out"))
    assert str(caught.value) == (
        "variant 'wide' of sweep 'small': unknown key 'ranker.deep_width'; did you mean 'deep_widths'?"
    )


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"baseline": "base"}, r"baseline 'base' is not one of the variants \['dcn', 'dcn_p_sim_history'\]"),
        ({"seeds": [1, 2, 1]}, r"seeds must differ from each other, got \(1, 2, 1\)"),
        ({"seeds": []}, "at least 1 item"),
        ({"variants": {}}, "at least 1 item"),
    ],
)
def test_a_sweep_that_cannot_be_compared_is_refused(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep_config(**changed)


def test_every_run_of_a_sweep_ends_and_is_recorded(finished):
    out, outcomes, said = finished
    assert outcomes == {run.folder: None for run in plan(sweep_config(), out)}
    record = json.loads((out / "sweep.json").read_text())
    assert record["variants"] == ["dcn", "dcn_p_sim_history"]
    assert record["titles"] == {"dcn_p_sim_history": "With history"}
    assert record["seeds"] == [3, 1]
    assert record["command"] == "as typed"
    assert record["simulated"] is False
    assert record["constructed"] is False
    for run in plan(sweep_config(), out):
        assert json.loads((run.folder / "run.json").read_text())["seed"] == run.config.seed
        assert not (run.folder / "failure.txt").exists()
    ended = [progress.name for progress in said if progress.ended]
    assert sorted(ended) == [
        "dcn seed 1",
        "dcn seed 3",
        "dcn_p_sim_history seed 1",
        "dcn_p_sim_history seed 3",
    ]
    assert all(0 < progress.done <= progress.total for progress in said if not progress.ended)


def test_a_finished_sweep_is_not_run_again(finished, folder, monkeypatch):
    out, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in sorted(out.glob("*/*/*")) if path.is_file()}
    assert len(before) >= 4 * 4

    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a worker is started although nothing is left to do")

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", no_pool)
    outcomes = execute_sweep(sweep_config(folder), out, processes=2)
    assert list(outcomes.values()) == [None] * 4
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_seeds_added_later_leave_the_finished_runs_alone(folder, tmp_path, monkeypatch):
    started = []

    def only_note(jobs: list[Job], **_: object) -> dict[str, None]:
        started.extend(job.name for job in jobs)
        return dict.fromkeys(job.name for job in jobs)

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", only_note)
    run = tmp_path / "dcn" / "seed-1"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    execute_sweep(sweep_config(folder, seeds=[1, 2]), tmp_path, processes=1)
    assert started == ["dcn_p_sim_history seed 1", "dcn seed 2", "dcn_p_sim_history seed 2"]


def test_parts_of_a_sweep_train_their_own_runs_and_leave_the_others_alone(folder, tmp_path, monkeypatch):
    trained: list[list[str]] = []

    def only_finish(jobs: list[Job], **_: object) -> dict[str, None]:
        trained.append([job.name for job in jobs])
        for job in jobs:
            job.folder.mkdir(parents=True)
            (job.folder / "run.json").write_text("{}")
        return dict.fromkeys(job.name for job in jobs)

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", only_finish)
    config = sweep_config(folder, seeds=[1, 2, 3])
    outcomes = [execute_sweep(config, tmp_path, part=Part(number, 4)) for number in (4, 2, 1, 3)]
    assert trained == [
        ["dcn_p_sim_history seed 2"],
        ["dcn_p_sim_history seed 1", "dcn_p_sim_history seed 3"],
        ["dcn seed 1", "dcn seed 3"],
        ["dcn seed 2"],
    ]
    assert sorted(run for part in outcomes for run in part) == sorted(
        run.folder for run in plan(config, tmp_path)
    )
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["seeds"] == [1, 2, 3], "every part records the whole sweep"
    assert execute_sweep(config, tmp_path, part=Part(7, 7)) == {}, "more parts than runs"


_SHARED = """
import sys
from pathlib import Path
from experiments.sweeps.sweep import execute_sweep
from tests.experiments.sweeps.small_sweeps import sweep_config
def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    def say(progress):
        if progress.ended:
            print(progress.name, progress.error, sep=": ", flush=True)
    outcomes = execute_sweep(sweep_config(folder), out, processes=1, on_progress=say)
    assert list(outcomes.values()) == [None] * 4, outcomes
if __name__ == "__main__":
    main()
"""


def test_two_processes_on_one_sweep_share_its_runs(finished, folder: Path, tmp_path: Path) -> None:
    """Each run is trained once, by one of them, to the same numbers; none is marked as failed."""
    script, out = tmp_path / "sweep_script.py", tmp_path / "out"
    script.write_text(_SHARED)
    command = [sys.executable, "-W", "ignore", str(script), str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    runs = plan(sweep_config(folder), out)
    assert {line for lines in said for line in lines} <= {
        f"{run.name}: {error}" for run in runs for error in (None, BUSY)
    }
    assert not list(out.rglob("failure.txt"))
    for run in runs:
        alone = finished[0] / run.folder.relative_to(out)
        assert len(list(run.folder.glob("**/events.out.*"))) == len(list(alone.glob("**/events.out.*")))
        one, two = (pq.read_table(at / "predictions" / "test.parquet") for at in (run.folder, alone))
        assert one.equals(two)


def test_numbers_do_not_depend_on_how_many_processes_share_the_work_and_a_failed_run_fails_alone(
    finished, folder, monkeypatch
):
    """One sweep shows both, as starting workers is what takes the time here."""
    out, _, _ = finished
    monkeypatch.setattr(experiments.sweeps.sweep, "usable_cores", lambda: 8)
    too_fast = {"optimizer": {"learning_rate": 1e18, "warmup_steps": 0}}
    variants = {
        "dcn": {},
        "broken": {"training": too_fast},
        "dcn_p_sim_history": {"ranker": {"semantic": HISTORY}},
    }
    config = sweep_config(folder, seeds=[1], variants=variants)
    said: list[JobProgress] = []
    outcomes = {
        run.parent.name: error
        for run, error in execute_sweep(config, folder / "one", processes=1, on_progress=said.append).items()
    }

    assert outcomes.keys() == set(variants)
    assert outcomes["dcn"] is outcomes["dcn_p_sim_history"] is None
    assert outcomes["broken"] is not None
    assert "the weights have diverged" in outcomes["broken"]
    assert "the weights have diverged" in (folder / "one" / "broken" / "seed-1" / "failure.txt").read_text()
    ended = {progress.name: progress.error for progress in said if progress.ended}
    assert ended == {f"{variant} seed 1": error for variant, error in outcomes.items()}
    last = [progress.name for progress in said]
    assert last.index("dcn_p_sim_history seed 1") > last.index("broken seed 1"), "said when it happened"

    for variant in ("dcn", "dcn_p_sim_history"):
        for sweep in (folder / "one", out):
            run = json.loads((sweep / variant / "seed-1" / "run.json").read_text())
            assert run["threads"] == 1, "a run has one thread, however few share the cores"
        one, two = (
            pq.read_table(sweep / variant / "seed-1" / "predictions" / "test.parquet")
            for sweep in (folder / "one", out)
        )
        assert one.num_rows > 50
        assert one.equals(two)

    table = build_report(folder / "one", bootstrap_resamples=20)
    assert list(table.variants) == ["dcn", "dcn_p_sim_history"]
    [unusable] = table.missing
    assert (unusable.variant, unusable.seed) == ("broken", 1)
    assert "the weights have diverged" in unusable.reason


def test_every_variant_that_cannot_open_its_inputs_is_named_before_anything_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a run is trained although another cannot be")

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", no_pool)
    semantic = {"ranker": {"semantic": HISTORY}}
    variants = {
        "dcn": {},
        "gone": {"product_table": folder / "nowhere", **semantic},
        "other": {"product_table": folder / "features", **semantic},
        "no_query": {"ranker": {"semantic": {"entities": ["query"], "widths": [8]}}},
    }
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="nothing was trained") as refusal:
        execute_sweep(sweep_config(folder, variants=variants), out, processes=1)
    sentence = str(refusal.value)
    assert f"variant 'gone': {folder / 'nowhere'} is not an embedding table" in sentence
    assert f"variant 'other': {folder / 'features'}" in sentence
    assert "variant 'no_query': " in sentence
    assert "'dcn'" not in sentence
    assert not out.exists()


def test_begun_runs_of_another_config_are_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a run is trained although another cannot be")

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", no_pool)
    [run] = plan(sweep_config(folder, seeds=[1], variants={"dcn": {}}), tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(run.config.model_copy(update={"seed": 2}).model_dump_json())
    with pytest.raises(ValueError, match=r"config\.json differs .* or delete .*seed-1 to train it anew"):
        execute_sweep(sweep_config(folder, seeds=[1]), tmp_path, processes=1)


def files_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_that_another_process_trains_is_left_to_it_and_waited_for(
    finished, folder: Path, tmp_path: Path, finishes: bool
) -> None:
    """The other process ends while this one waits, with the run finished or not."""
    config = sweep_config(folder, seeds=[1])
    taken, other = plan(config, tmp_path)
    waited: list[float] = []
    with ExitStack() as elsewhere:
        elsewhere.enter_context(run_lock(taken.folder))
        (taken.folder / "failure.txt").write_text("of an earlier attempt")
        before = files_of(taken.folder)

        def wait(seconds: float) -> None:
            waited.append(seconds)
            assert (other.folder / "run.json").exists(), "what is free is trained before it waits"
            assert files_of(taken.folder) == before, "the folder is the other process's"
            if len(waited) == 3:
                if finishes:
                    shutil.copytree(finished[0] / "dcn" / "seed-1", taken.folder, dirs_exist_ok=True)
                elsewhere.close()

        said: list[JobProgress] = []
        outcomes = execute_sweep(config, tmp_path, processes=1, on_progress=said.append, sleep=wait)
    assert len(waited) == 3
    assert list(outcomes.values()) == [None, None]
    assert [one.error for one in said if one.name == taken.name and one.ended] == [BUSY, None]
    run = json.loads((taken.folder / "run.json").read_text())
    theirs = json.loads((finished[0] / "dcn" / "seed-1" / "run.json").read_text())
    assert (run == theirs) == finishes, "trained by the other process or, if that left it, by this one"


def test_a_run_that_failed_before_is_tried_again(folder, tmp_path):
    """In this process: the worker's function is the unit that clears the record of an earlier failure."""
    [run] = plan(sweep_config(folder, seeds=[1], variants={"dcn": {}}), tmp_path)
    run.folder.mkdir(parents=True)
    (run.folder / "failure.txt").write_text("out of memory")
    assert run_job(job_of(run), silent) is None
    assert not (run.folder / "failure.txt").exists()
    assert (run.folder / "run.json").exists()


def test_finished_runs_of_another_config_are_refused_before_anything_is_written(folder, finished) -> None:
    out = finished[0]
    record = (out / "sweep.json").read_bytes()
    changed = sweep_config(folder, training={**TRAINING, "batch_size": 60})
    with pytest.raises(ValueError, match=r"config\.json differs from the config given"):
        execute_sweep(changed, out, processes=1)
    assert (out / "sweep.json").read_bytes() == record


_SWEEP = """
import sys
from pathlib import Path
from experiments.sweeps.sweep import execute_sweep
from features.progress import silent
from tests.experiments.sweeps.small_sweeps import TRAINING, sweep_config
def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = sweep_config(folder, seeds=[1], training={**TRAINING, "max_epochs": 2000})
    def say(progress):
        print(progress.done, flush=True)
    execute_sweep(config, out, processes=1, on_progress=say)
if __name__ == "__main__":
    main()
"""


def test_workers_end_with_a_killed_sweep(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "sweep_script.py"
    script.write_text(_SWEEP)
    command = [sys.executable, "-W", "ignore", str(script), str(folder), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as sweep:
        assert sweep.stdout is not None
        for line in sweep.stdout:
            if int(line) >= 20:
                break
        family = psutil.Process(sweep.pid).children(recursive=True)
        assert family
        sweep.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_a_worker_that_dies_takes_no_other_run_along(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """The processes die in the first round; the second one trains what is left."""
    rounds: list[int] = []
    whole = experiments.sweeps.sweep.run_jobs

    def die_in_the_first(jobs, **settings):
        rounds.append(len(jobs))
        if len(rounds) == 1:
            return {job.name: DIED for job in jobs}
        return whole(jobs, **settings)

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", die_in_the_first)
    outcomes = execute_sweep(sweep_config(folder, seeds=[1]), tmp_path / "out", processes=1)
    assert rounds == [2, 2]
    assert list(outcomes.values()) == [None, None]

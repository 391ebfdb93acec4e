"""What the whole way costs: its steps, their record, and how it goes on after a cut."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.benchmarks.measure import BenchmarkError, Measurement
from experiments.benchmarks.scale import QUICK, run_scale_benchmark, steps_of
from experiments.benchmarks.scale_report import scale_png, scale_tables
from experiments.config import config_file
from features.progress import silent

VARIANTS = ["dcn_pq_sim_history", "dcn_pq_sim_history_dashclip", "dcn"]
WITH_ENCODERS = replace(QUICK, encoders=Path("encoders_large"))


class Commands:
    """Stands for `measure_module`: writes what the steps would leave, and fails once at `breaks`."""

    def __init__(self, breaks=None):
        self.called = []
        self.breaks = breaks

    def __call__(self, module, *arguments, watched):
        assert module == "experiments"
        two_words = arguments[0] in ("features", "embed", "encode")
        name = " ".join(arguments[:2]) if two_words else arguments[0]
        if name == self.breaks:
            self.breaks = None
            raise BenchmarkError(f"{name} ended with exit code 2")
        self.called.append(name)
        if name == "generate":
            (watched / "data").mkdir()
            summary = {"impressions": 12_000, "purchases": 9_000, "products": 300, "users": 480}
            summary |= {"queries": 600, "labels": 4_800}
            (watched / "data" / "marketplace.json").write_text(json.dumps({"summary": summary}))
        if name == "sweep":
            part, parts = (int(number) for number in arguments[-1].split("/"))
            seed, variant = divmod(part - 1, parts // 2)
            names = VARIANTS[::2] if parts == 4 else VARIANTS
            run = watched / "sweep" / names[variant] / f"seed-{1 + seed}"
            run.mkdir(parents=True)
            (run / "metrics.json").write_text(json.dumps({"test": {"auc": 0.7}}))
        if name == "encode align":
            for folder, rows in (
                ("encoders/warmup/text", "training_products"),
                ("encoders", "training_tuples"),
            ):
                (watched / folder).mkdir(parents=True, exist_ok=True)
                record = {
                    "settings": {"config": {"batch_size": 16}},
                    "counts": {rows: 640},
                    "outcome": {"steps": 10, "rows_per_cpu_second": 2.0, "best": {"loss": 0.5}},
                }
                (watched / folder / "training.json").write_text(json.dumps(record))
        return Measurement(cpu_s=2.0, wall_s=3.0, peak_mib=100.0, output="", scratch_mib=5.0)


def test_what_is_served_is_trained_first_and_every_ranker_is_one_part(tmp_path):
    names = [step.name for step in steps_of(QUICK, 12_000, tmp_path)]
    assert names == [
        "generate",
        "validate",
        "features build",
        "embed lsa",
        "train dcn_pq_sim_history, seed 1",
        "package",
        "one request",
        "train dcn, seed 1",
        "train dcn_pq_sim_history, seed 2",
        "train dcn, seed 2",
        "table 2",
    ]
    parts = [step.arguments[-1] for step in steps_of(QUICK, 12_000, tmp_path) if step.arguments[0] == "sweep"]
    assert parts == ["1/4", "2/4", "3/4", "4/4"]


def test_a_measurement_that_was_cut_off_takes_no_step_twice(tmp_path):
    commands = Commands(breaks="package")

    def measured():
        return run_scale_benchmark(
            QUICK, work=tmp_path / "work", out=tmp_path, progress=silent, measure=commands
        )

    with pytest.raises(BenchmarkError, match="package ended"):
        measured()
    so_far = json.loads((tmp_path / "scale.json").read_text())["sizes"]["12000"]
    assert list(so_far["steps"])[-1] == "train dcn_pq_sim_history, seed 1"
    found = measured()
    assert commands.called.count("generate") == commands.called.count("embed lsa") == 1
    assert commands.called.count("sweep") == 4
    assert len(found["sizes"]["12000"]["steps"]) == 11
    assert len(found["sizes"]["12000"]["test_auc"]) == 4
    assert not list((tmp_path / "work").iterdir())  # what the steps wrote is gone


def test_sizes_measured_before_are_kept_unless_the_settings_differ(tmp_path):
    earlier = {"settings": {}, "sizes": {"5": {}}}
    (tmp_path / "scale.json").write_text(json.dumps(earlier))

    def measured():
        return run_scale_benchmark(
            QUICK, work=tmp_path / "work", out=tmp_path, progress=silent, measure=Commands()
        )

    found = measured()
    assert list(found["sizes"]) == ["12000"]
    (tmp_path / "scale.json").write_text(json.dumps({**found, "sizes": {"5": found["sizes"]["12000"]}}))
    assert list(measured()["sizes"]) == ["5", "12000"]


def test_tables_and_picture_have_every_step_also_where_a_size_lacks_it(tmp_path):
    found = run_scale_benchmark(
        QUICK, work=tmp_path / "work", out=tmp_path, progress=silent, measure=Commands()
    )
    cut = json.loads(json.dumps(found["sizes"]["12000"])) | {"impressions": 5_000_000}
    del cut["steps"]["package"]
    found = {"command": "dashclip bench scale", **found}
    found["sizes"]["5000000"] = cut
    costs, rates, disk = scale_tables(found)
    assert costs.columns == (
        "step",
        "CPU s, 0.012 M",
        "CPU s, 5 M",
        "peak MiB, 0.012 M",
        "peak MiB, 5 M",
    )
    assert {row[0]: row[1:] for row in costs.rows}["package"] == ("2", "-", "100", "-")
    assert costs.rows[-1] == ("all steps", "22", "-", "100", "-")
    # 2 s for 5 M impressions are 0.4 s a million, and 0.11 hours for 10^9.
    assert rates.rows[0] == ("validate", "166.7", "0.4", "0.1", "0.00")
    assert {row[0] for row in disk.rows} >= {"generate", "features build"}
    assert scale_png(found).startswith(b"\x89PNG")


def test_encoders_are_trained_before_the_rankers_on_their_vectors_and_served_beside_lsa(tmp_path):
    steps = {step.name: step.arguments for step in steps_of(WITH_ENCODERS, 12_000, tmp_path)}
    assert list(steps)[3:12] == [
        "embed lsa",
        "encode align",
        "encode run",
        "train dcn_pq_sim_history, seed 1",
        "package",
        "one request",
        "train dcn_pq_sim_history_dashclip, seed 1",
        "package, encoder",
        "one request, encoder",
    ]
    assert set(steps) > {step.name for step in steps_of(QUICK, 12_000, tmp_path)}
    parts = {name: arguments[-1] for name, arguments in steps.items() if arguments[0] == "sweep"}
    assert parts["train dcn_pq_sim_history_dashclip, seed 1"] == "2/6"
    assert sorted(parts.values()) == [f"{number}/6" for number in range(1, 7)]
    assert steps["package, encoder"][-2:] == ("--encoder", str(tmp_path / "encoders"))


def test_a_size_with_encoders_says_what_they_saw_and_what_an_epoch_would_cost(tmp_path):
    commands = Commands()
    options = {"work": tmp_path / "work", "out": tmp_path, "progress": silent, "measure": commands}
    run_scale_benchmark(replace(QUICK, rows=(5_000_000,)), **options)
    assert "encode align" not in commands.called
    found = run_scale_benchmark(WITH_ENCODERS, **options)
    assert list(found["sizes"]) == ["12000", "5000000"]  # the size without encoders is kept
    measured = found["sizes"]["12000"]
    assert set(measured["encoders"]) == {"text warm-up", "stage 2"}
    assert len(measured["test_auc"]) == 6
    costs, _, _, encoders = scale_tables({"command": "dashclip bench scale", **found})
    rows = {row[0]: row[1:] for row in costs.rows}
    assert rows["encode run"] == ("2", "-", "100", "-")
    # 11 steps of 2 s each without encoders, and 17 with them.
    assert rows["all steps without encoders"] == ("22", "22", "100", "100")
    assert rows["all steps with encoders"] == ("34", "-", "100", "-")
    # 10 steps of 16 are a quarter of 640 tuples; at 2 a second 640 take 320 s, 0.09 hours.
    assert encoders.rows[1] == ("stage 2, tuples", "10 x 16", "25.0%", "640", "2", "0.09", "0.004")
    # 300 products and 600 queries in the 2 s of the step.
    assert encoders.rows[2][3:5] == ("900", "450")
    assert scale_png({"command": "dashclip bench scale", **found}).startswith(b"\x89PNG")


def test_encoders_of_images_are_refused_before_anything_is_measured(tmp_path):
    commands = Commands()
    with pytest.raises(BenchmarkError, match=r'have no images, got .* set modalities = \["text"\]'):
        run_scale_benchmark(
            replace(QUICK, encoders=Path("encoders_tiny")),
            work=tmp_path / "work",
            out=tmp_path,
            progress=silent,
            measure=commands,
        )
    assert not commands.called


def test_a_measurement_does_not_go_on_with_another_config_of_encoders(tmp_path):
    config = tmp_path / "mine.toml"
    shipped = config_file(Path("encoders_large")).read_text()
    config.write_text(shipped)
    commands = Commands(breaks="encode run")
    options = {"work": tmp_path / "work", "out": tmp_path, "progress": silent, "measure": commands}
    mine = replace(QUICK, encoders=config)
    with pytest.raises(BenchmarkError, match="encode run ended"):
        run_scale_benchmark(mine, **options)
    config.write_text(shipped.replace("kept_dims = 64", "kept_dims = 32"))
    with pytest.raises(BenchmarkError, match="was begun with another config of encoders"):
        run_scale_benchmark(mine, **options)
    config.write_text(shipped)
    assert "table 2" in run_scale_benchmark(mine, **options)["sizes"]["12000"]["steps"]
    assert commands.called.count("encode align") == 1

"""What the whole way costs: its steps, their record, and how it goes on after a cut."""

import json

import pytest

from experiments.benchmarks.measure import BenchmarkError, Measurement
from experiments.benchmarks.scale import QUICK, run_scale_benchmark, steps_of
from experiments.benchmarks.scale_report import scale_png, scale_tables
from features.progress import silent


class Commands:
    """Stands for `measure_module`: writes what the steps would leave, and fails once at `breaks`."""

    def __init__(self, breaks=None):
        self.called = []
        self.breaks = breaks

    def __call__(self, module, *arguments, watched):
        assert module == "experiments"
        name = " ".join(arguments[:2]) if arguments[0] in ("features", "embed") else arguments[0]
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
            part = int(arguments[-1].split("/")[0]) - 1
            run = watched / "sweep" / ("dcn_pq_sim_history", "dcn")[part % 2] / f"seed-{1 + part // 2}"
            run.mkdir(parents=True)
            (run / "metrics.json").write_text(json.dumps({"test": {"auc": 0.7}}))
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

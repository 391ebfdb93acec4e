"""The evidence page: what exists is shown with what made it, what does not is named with its command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embeddings.evaluation.probes import ProbeConfig, run_probes
from experiments.cli import app
from experiments.encoders.retrieval_rows import RandomRow
from experiments.encoders.table1 import evaluate_rows
from experiments.reports.evidence import gather
from experiments.reports.importance import page as importance_report_page
from experiments.reports.page import Absent, Origin, Section, listed, png_source
from experiments.reports.records import EvidenceError
from experiments.reports.sections import plots as evidence_plots
from experiments.reports.sections.latency import ServingRecord, ladder, latency_section
from experiments.reports.sections.probes import probes_section
from experiments.reports.sections.retrieval import retrieval_section
from experiments.reports.table2 import plots
from experiments.reports.table2.page import to_html
from experiments.sweeps.table2 import build_report
from tests.experiments.encoders.test_pictures import small_world
from tests.experiments.encoders.test_table1 import MEASURE, shop, vector_row
from tests.experiments.reports.importance_reports import made_report
from tests.experiments.reports.page_reader import assert_whole_and_self_contained
from tests.experiments.sweeps.sweep_folders import write_sweep

PNG = b"\x89PNG made up"
MADE = {
    "command": "dashclip made this",
    "environment": {"commit": "feed123", "created": "2026-11-20T10:00:00+00:00"},
}
SERVING = {
    "command": "dashclip bench serving",
    "machine": {"commit": "beef456", "date": "2026-11-21", "processor": "Example CPU"},
    "added_p99_ms": {"1": 0.1, "20": 0.2, "100": 0.62, "300": 1.4},
    "model_p50_ms": {"1": 0.3, "20": 0.5, "100": 1.3, "300": 3.4},
    "end_to_end_p50_ms": 3.0,
    "end_to_end_p99_ms": 4.6,
    "noop_p50_ms": 0.55,
    "fetch_p99_over_fused_p99": {"100": 7.2},
    "extra_worker_pss_share": 0.031,
    "fastapi_p50_ms": 2.2,
    "onnxruntime_p50_ms": 1.1,
    "json_vs_arrow": {"p50_json_ms": 4.4, "p50_arrow_ms": 3.0, "p99_json_ms": None},
    "what_a_later_version_adds": [1, 2],
}
SOAK = {"requests": 90_000, "wrong_scores": 0, "unexplained_5xx": 2}
EVIDENCE = {
    "table1.json": "retrieval",
    "probes.json": "probes",
    "importance.json": "importance",
    "serving.json": "latency",
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """A sweep folder in which everything was measured."""
    folder = write_sweep(tmp_path_factory.mktemp("evidence") / "sweep")
    rows = {"random": RandomRow(), "dashclip": vector_row(folder / "tables")}
    table = evaluate_rows(rows, shop(), query_slices={"milk": shop().start_Q[:-1] < 1}, **MEASURE)
    table.model_copy(update=MADE).write(folder / "table1.json")
    before, after, labels = small_world()
    report = run_probes(before, after, labels, config=ProbeConfig(seeds=(0, 1), hidden_dim=4, max_epochs=1))
    kept = {name: report.probes[name] for name in ("aisle", "relevance")}
    report.model_copy(update={"probes": kept, **MADE}).write(folder / "probes.json")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "tsne_by_aisle.png").write_bytes(PNG)
    few = ("product embedding", "price", "position")
    made_report(features=few, groups={}, slices={}).write(folder / "importance.json")
    write(folder / "serving.json", SERVING)
    write(folder / "soak.json", SOAK)
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of the time; the pictures of importance have tests of their own."""
    monkeypatch.setattr(importance_report_page, "png_of", lambda figure: PNG)
    monkeypatch.setattr(evidence_plots, "svg_of", lambda figure: "<svg/>")
    monkeypatch.setattr(plots, "svg_of", lambda figure: "<svg/>")


@pytest.fixture
def copied(sweep, tmp_path, undrawn) -> Path:
    return shutil.copytree(sweep, tmp_path / "copy")


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content))


def found(folder: Path, anchor: str, **options) -> Section | Absent:
    (part,) = (part for part in gather(folder, **options) if part.anchor == anchor)
    return part


def test_the_page_joins_everything_each_with_command_commit_and_time(sweep):
    page = to_html(build_report(sweep, bootstrap_resamples=20), gather(sweep))
    reader = assert_whole_and_self_contained(page)
    anchors = {"table2", "slices", "calibration", "learning", *EVIDENCE.values()}
    assert anchors <= reader.anchors
    assert {f"#{anchor}" for anchor in anchors} == set(reader.links)
    for made in (
        "Made by dashclip sweep example.toml , commit abc1234",
        "Made by dashclip made this , commit feed123, 2026-11-20 10:00 UTC",
        "Made by dashclip importance runs/demo , commit abc1234, 2026-11-23 05:00 UTC",
        "Made by dashclip bench serving , commit beef456, 2026-11-21.",
    ):
        assert made in reader.text
    assert "Not measured yet" not in reader.text
    assert png_source(PNG) in reader.sources


def test_what_was_not_measured_is_named_with_the_command_that_makes_it(tmp_path, undrawn):
    sweep = write_sweep(tmp_path / "bare", variants=("dcn", "dcn_pq_sim_history"), seeds=(1, 2))
    parts = gather(sweep)
    assert [part.anchor for part in parts if isinstance(part, Absent)] == list(
        dict.fromkeys(part.anchor for part in parts)
    )
    text = assert_whole_and_self_contained(to_html(build_report(sweep, bootstrap_resamples=20), parts)).text
    for command in (
        f"dashclip importance {sweep}/dcn_pq_sim_history",
        f"dashclip encode evaluate DATA {sweep} --row dashclip=TABLES",
        f"dashclip encode probe DATA TABLES_BEFORE TABLES_AFTER {sweep}",
        "make bench-serving",
    ):
        assert text.count(command) == 2  # at a glance, and in its own place


def test_importance_is_advised_for_the_finished_variant_that_reads_most_whatever_its_name(tmp_path, undrawn):
    sweep = write_sweep(tmp_path / "own", variants=("dcn", "dcn_pq", "dcn_pq_sim_history"), seeds=(1,))
    (sweep / "dcn_pq").rename(sweep / "mine")
    assert found(sweep, "importance").command == f"dashclip importance {sweep}/dcn_pq_sim_history"
    (sweep / "dcn_pq_sim_history" / "seed-1" / "run.json").unlink()  # still trains
    assert found(sweep, "importance").command == f"dashclip importance {sweep}/mine"


def test_latency_says_that_it_is_not_of_the_sweeps_rankers_and_what_measures_those(copied):
    assert any("not a ranker of this sweep" in note for note in found(copied, "latency").notes)
    (copied / "serving.json").unlink()
    absent = found(copied, "latency")
    assert absent.command == "make bench-serving"
    assert "`dashclip loadtest` measures it" in absent.reason


def test_a_log_without_queries_is_not_asked_to_retrieve(tmp_path, undrawn):
    sweep = write_sweep(tmp_path / "log", queries=False, seeds=(1, 2))
    result = CliRunner().invoke(app, ["report", str(sweep), "--resamples", "200"])
    assert result.exit_code == 0, result.output
    text = assert_whole_and_self_contained((sweep / "report.html").read_text()).text
    assert text.count("These impressions have no queries") == 4
    assert "encode evaluate" not in text
    assert "dashclip importance" in text


@pytest.mark.parametrize(("name", "anchor"), EVIDENCE.items())
@pytest.mark.parametrize(
    "content", ['{"rows"', "[]", '{"added_p99_ms": "fast"}', '{"rows": {"a": {"b": "c"}}}']
)
def test_a_broken_result_is_named_and_does_not_take_the_page_with_it(copied, name, anchor, content):
    (copied / name).write_text(content)
    part = found(copied, anchor)
    if name == "serving.json" and content.startswith('{"rows": '):
        assert isinstance(part, Section)  # a benchmark of which nothing is known is no error
        return
    assert isinstance(part, Absent)
    assert str(copied / name) in part.reason
    others = [other for other in gather(copied) if other.anchor != anchor]
    assert all(isinstance(other, Section) for other in others)


def test_a_time_that_was_not_recorded_is_that_of_the_file_and_a_command_is_called_missing(copied):
    record = json.loads((copied / "probes.json").read_text())
    write(copied / "probes.json", {key: record[key] for key in record.keys() - MADE.keys()})
    origin = found(copied, "probes").origin
    assert (origin.command, origin.commits) == (None, ())
    assert origin.created is not None
    assert origin.made.startswith("commit not recorded, 20")
    page = to_html(build_report(copied, bootstrap_resamples=20), gather(copied))
    assert "The command was not recorded" in page


def test_the_variant_that_reads_most_is_named_for_importance(tmp_path):
    pretrained = {"entities": ["product", "history"], "initialisation": "pretrained"}
    random = {"entities": ["product", "query", "history"], "initialisation": "random"}
    one = {"entities": ["product"], "initialisation": "pretrained"}
    for name, semantic in (
        ("dcn", None),
        ("dcn_p", one),
        ("dcn_p_sim_history", pretrained),
        ("dcn_p_sim_history_random", random),
        ("mine_own_odd_name", one),
    ):
        run = tmp_path / name / "seed-1"
        run.mkdir(parents=True)
        write(run / "run.json", {})
        write(run / "config.json", {"ranker": {"semantic": semantic}})
    assert found(tmp_path, "importance").command == f"dashclip importance {tmp_path}/dcn_p_sim_history"


def test_an_origin_says_what_is_not_recorded():
    assert Origin("x", ("a", "b"), None).made == "commits a and b, time not recorded"
    assert Origin(None, (), None).made == "commit not recorded, time not recorded"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.3, "Yes: DashCLIP"),
        (-0.3, -0.1, "Not better than BM25"),
        (-0.1, 0.1, "cannot be told from BM25"),
    ],
)
def test_the_answer_on_retrieval_follows_the_interval(tmp_path, undrawn, low, high, verdict):
    difference = {"graded_rel": (low + high) / 2, "graded_rel_low": low, "graded_rel_high": high}
    table = {
        "simulated": True,
        "k": 10,
        "pool": "catalogue",
        "candidate": "dashclip",
        "queries": 5,
        "products": 9,
        "rows": {
            "random": {"graded_rel": 0.1},
            "bm25": {"graded_rel": 0.5},
            "dashclip": {"graded_rel": 0.5 + (low + high) / 2, "mrr": None},
        },
        "differences": {"bm25": difference, "random": difference},
    }
    write(tmp_path / "table1.json", table)
    section = retrieval_section(tmp_path)
    assert section is not None
    assert verdict in section.answer
    assert section.grids[0].rows[2][-1] == "–"


def test_retrieval_shows_the_numbers_of_the_table(sweep, undrawn):
    table = json.loads((sweep / "table1.json").read_text())
    grid = found(sweep, "retrieval").grids[0]
    assert [row[0] for row in grid.rows] == ["Random", "DashCLIP", "Best possible order"]
    assert grid.rows[1][1].startswith(f"{table['rows']['dashclip']['graded_rel']:.3f} (")
    assert {row for row, _ in grid.bold} == {1}


def test_probes_count_what_improves_and_name_pictures_that_are_not_there(sweep):
    section = probes_section(sweep)
    assert section is not None
    assert "of 2 probes improve" in section.answer
    assert [plot.source for plot in section.plots] == [png_source(PNG)]
    assert "recall_by_aisle.png" in section.notes[0]


def test_latency_is_answered_at_a_hundred_candidates(sweep, undrawn):
    section = latency_section(sweep)
    assert section is not None
    assert section.answer.startswith("Yes: with 100 candidates the embeddings add 0.62 ms at p99")
    assert "99 of 100 requests within 4.6 ms" in section.answer
    said = " ".join(section.sentences)
    for needed in ("7.2 times as long", "3.1 % of the tables", "90,000 requests", "2 unexplained"):
        assert needed in said
    by_candidates, others = section.grids
    assert by_candidates.columns == ("", "1", "20", "100", "300")
    assert ("Fetching over fused, p99, times", "–", "–", "7.20", "–") in by_candidates.rows
    assert ("Bodies of requests: p50 Arrow", "3.00") in others.rows


def test_latency_beyond_the_papers_budget_is_not_called_within_it(tmp_path, undrawn):
    write(tmp_path / "serving.json", {"added_p99_ms": {"100": 4.2}})
    section = latency_section(tmp_path)
    assert section is not None
    assert section.answer.startswith("Not within the paper's budget")
    assert "no long load was measured" in section.notes[-1]


def test_a_measurement_at_several_sizes_counts_at_a_hundred_candidates():
    record = ServingRecord(
        noop_p50_ms={"20": 0.4, "100": 0.5}, fastapi_p50_ms=2.0, onnxruntime_p50_ms={"1": 9}
    )
    assert [(way.title, way.value_ms) for way in ladder(record)] == [
        ("TorchServe, no model, p50", 0.5),
        ("FastAPI, p50", 2.0),
    ]


def test_latency_is_looked_for_in_the_sweep_then_in_bench_beside_it_then_where_it_is_said_to_be(copied):
    beside, elsewhere = copied.parent / "bench" / "serving.json", copied.parent / "elsewhere.json"
    for path, added in ((beside, 2.0), (elsewhere, 3.0)):
        path.parent.mkdir(exist_ok=True)
        write(path, {"added_p99_ms": {"100": added}})
    assert "add 0.62 ms" in found(copied, "latency").answer
    (copied / "serving.json").unlink()
    assert "add 2.00 ms" in found(copied, "latency").answer
    assert "add 3.00 ms" in found(copied, "latency", latency=elsewhere).answer


def test_importance_of_one_run_is_shown_where_the_sweep_has_none(copied):
    run = copied / "dcn_pq_sim" / "seed-2"
    (copied / "importance.json").rename(run / "importance.json")
    section = found(copied, "importance")
    assert isinstance(section, Section)
    assert "dcn_pq_sim/seed-2/importance.html" in section.notes[0]
    assert "position (0.04" in section.answer


@pytest.mark.parametrize(
    ("trained", "stale"), [("2026-11-23T04:00:00+00:00", 0), ("2026-11-24T04:00:00+00:00", 1)]
)
def test_importance_of_models_that_were_trained_again_is_called_out_of_date(copied, trained, stale):
    report = json.loads((copied / "importance.json").read_text())
    write(copied / "importance.json", report | {"variant": "dcn_pq_sim"})
    run = copied / "dcn_pq_sim" / "seed-1" / "run.json"
    write(run, json.loads(run.read_text()) | {"created": trained})
    notes = found(copied, "importance").notes
    assert sum("measure again" in note for note in notes) == stale


def test_the_command_ends_with_the_path_of_the_page_and_names_what_is_not_on_it(copied):
    for name in ("probes.json", "serving.json"):
        (copied / name).unlink()
    result = CliRunner().invoke(app, ["report", str(copied), "--resamples", "200"])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"evidence page: {copied / 'report.html'}"
    said = " ".join(result.output.split())
    assert "not on the page: What the vectors know" in said
    assert "make bench-serving" in said
    assert "not on the page: Table 1" not in said


def test_the_command_refuses_a_latency_file_that_does_not_exist(copied):
    result = CliRunner().invoke(app, ["report", str(copied), "--latency", str(copied / "no.json")])
    assert isinstance(result.exception, FileNotFoundError)
    assert "make bench-serving" in str(result.exception)


def test_a_broken_file_is_an_error_of_its_reader(tmp_path):
    write(tmp_path / "table1.json", {"simulated": True})
    with pytest.raises(EvidenceError, match=r"table1\.json cannot be shown: .*: Field required"):
        retrieval_section(tmp_path)


@pytest.mark.parametrize(
    ("names", "words"), [((), ""), (("a",), "a"), (("a", "b"), "a and b"), (("a", "b", "c"), "a, b and c")]
)
def test_names_are_listed_as_in_a_sentence(names, words):
    assert listed(names) == words


def test_intervals_over_whole_intents_are_called_so(tmp_path, undrawn):
    graded = shop()
    rows = {"random": RandomRow(), "dashclip": vector_row(tmp_path / "tables")}
    for intents_Q, drawn in ((None, "queries"), (np.arange(len(graded)), "intents")):
        evaluate_rows(rows, graded, intents_Q=intents_Q, **MEASURE).write(tmp_path / "table1.json")
        section = retrieval_section(tmp_path)
        assert f"interval over {drawn}" in section.plots[0].caption
        assert f"(95 % interval over {drawn}" in section.grids[0].caption

"""The ablation of the encoders: what is planned and shared, what a run leaves, what the report says."""

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import experiments.ablation.plan as encoder_ablation
import experiments.ablation.run as encoder_ablation_run
from embeddings.catalog.holdout import VALIDATION
from embeddings.embedding_table import EmbeddingTable
from embeddings.encoders.config import EncoderConfig
from experiments.ablation.plan import AblationConfig, execute_ablation, plan
from experiments.ablation.report import AblationReport, build_report
from experiments.ablation.run import SpentSeconds
from experiments.ablation.text import console_table, to_markdown
from experiments.cli import app
from experiments.config import ConfigError, load_config, parse_config
from experiments.datasets.home_depot_relevance import Vectors, evaluate_home_depot
from experiments.encoders.config import EncodersConfig
from experiments.encoders.pipeline import measure_retrieval, run_align
from experiments.runtime.job_pool import Job
from experiments.statistics.intervals import Interval, verdict
from features.artifacts import BusyError, folder_lock
from tests.embeddings.small_catalog import write_small_catalog
from tests.experiments.datasets.test_encoder_runs import two_aisles
from tests.experiments.datasets.test_home_depot import HOLDOUT as PAIR_HOLDOUT
from tests.experiments.datasets.test_home_depot import graded

OPTIMIZER = {"epochs": 1, "batch_size": 16, "learning_rate": 0.002}
BASE: dict[str, Any] = {
    "size": "tiny",
    "holdout": {"test_query_share": 0.3, "validation_query_share": 0.3, "test_product_share": 0.1},
    "tuples": {"max_positives": 2, "negatives": 3},
    "pretrain": OPTIMIZER,
    "align": OPTIMIZER,
}
VARIANTS: dict[str, Any] = {
    "default": {"title": "Default"},
    "image_only": {"title": "Image only", "settings": {"modalities": ["image"]}},
    "without_stage1": {"title": "Without stage 1", "seeds": [1], "settings": {"pretrain": False}},
    "nested": {
        "title": "Nested",
        "seeds": [2],
        "settings": {"architecture": {"embedding_dim": 24}},
    },
}


def ablation(**changed: Any) -> AblationConfig:
    content = {"base": BASE, "seeds": [1, 2], "widths": [8, 16, 24], "variants": VARIANTS}
    return AblationConfig.model_validate(content | changed)


def run_here(jobs: Sequence[Job], **_: object) -> dict[str, str | None]:
    """The jobs in this process: starting others is tested where they are started."""
    for job in jobs:
        job.run(lambda *_: None)
    return {job.name: None for job in jobs}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_catalog(tmp_path_factory.mktemp("data"), products=30)


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ablation."""
    out = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_ablation, "run_jobs", run_here)
        errors = execute_ablation(ablation(), data, out, processes=1)
    assert len(errors) == 3 + 6
    return out


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that would run."""
    jobs: list[Job] = []
    monkeypatch.setattr(encoder_ablation, "run_jobs", lambda given, **_: jobs.extend(given) or {})
    return jobs


def test_runs_are_planned_seed_by_seed_and_each_variant_has_its_own_seeds() -> None:
    planned = plan(ablation(), Path("out"))
    assert [run.name for run in planned] == [
        "default seed 1",
        "image_only seed 1",
        "without_stage1 seed 1",
        "default seed 2",
        "image_only seed 2",
        "nested seed 2",
    ]
    assert planned[0].folder == Path("out/default/seed-1")
    config = planned[3].config
    assert config.pretrain is not None
    assert (config.seed, config.pretrain.seed, config.align.seed) == (2, 2, 2)
    assert config.holdout.seed == 0


def test_variants_share_stage_1_unless_it_depends_on_what_they_change() -> None:
    folder = {run.name: run.stage_1_folder for run in plan(ablation(), Path("out"))}
    assert folder["default seed 1"] == folder["image_only seed 1"]
    assert folder["without_stage1 seed 1"] is None
    assert len({folder["default seed 1"], folder["default seed 2"], folder["nested seed 2"]}) == 3


@pytest.mark.parametrize(
    "settings, shares",
    [
        ({"modalities": ["text"]}, True),
        ({"align": {"temperature": 0.1}}, True),
        ({"tuples": {"proxy_negatives": False}}, True),
        ({"sources": ["human"]}, True),
        ({"pretrain": {"temperature": 0.1}}, False),
        ({"text_columns": ["title", "aisle"]}, False),
        ({"holdout": {"seed": 1}}, False),
        ({"warmup": OPTIMIZER}, False),
        ({"warmup": OPTIMIZER, "image_warmup": OPTIMIZER}, False),
        ({"vocab_size": 200}, False),
        ({"align": {"whitening": False}}, True),
    ],
)
def test_what_stage_1_depends_on(settings: dict[str, Any], shares: bool) -> None:
    variants = {"default": {"title": "a"}, "other": {"title": "b", "settings": settings}}
    default, other = plan(ablation(variants=variants, seeds=[1]), Path())
    assert (default.stage_1_folder == other.stage_1_folder) is shares


def test_without_stage_1_variants_share_their_warm_ups(data: Path, tmp_path: Path) -> None:
    """And stage 2 has the encoder that it would have warmed up itself."""
    base = BASE | {"pretrain": None, "warmup": OPTIMIZER, "modalities": ["text"]}
    variants = {
        "default": {"title": "a"},
        "other": {"title": "b", "settings": {"align": {"temperature": 0.1}}},
        "longer": {"title": "c", "settings": {"warmup": {"epochs": 2}}},
        "images": {"title": "d", "settings": {"modalities": ["image", "text"]}},
        "no_grades": {"title": "e", "settings": {"align": False}},
    }
    config = ablation(base=base, variants=variants, seeds=[1])
    default, other, longer, images, none = plan(config, tmp_path)
    assert default.stage_1_folder == other.stage_1_folder == none.stage_1_folder
    assert len({run.stage_1_folder for run in (default, longer, images)}) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_ablation, "run_jobs", run_here)
        kept = {name: variants[name] for name in ("default", "no_grades")}
        done = execute_ablation(ablation(base=base, variants=kept, seeds=[1]), data, tmp_path, processes=1)
    assert len(done) == 3
    assert all(error is None for error in done.values())
    alone = run_align(data, tmp_path / "alone", default.config).encoder
    found = json.loads(default.metrics.read_text())
    assert found["encoder_id"] == alone.encoder_id
    assert "stage_1" in found["seconds"]
    without = json.loads(none.metrics.read_text())
    assert without["encoder_id"].startswith("dashclip-initial-")
    assert "stage_2" not in without["seconds"]
    assert without["test"]["metrics"] != found["test"]["metrics"]


def test_a_variant_that_trains_nothing_is_refused() -> None:
    variants = VARIANTS | {"none": {"title": "x", "settings": {"align": False, "pretrain": False}}}
    with pytest.raises(ConfigError, match=r"variant 'none' must train something"):
        plan(ablation(variants=variants), Path())


def test_each_stage_1_comes_once_and_before_those_that_need_it(
    tmp_path: Path, data: Path, submitted: list[Job]
) -> None:
    execute_ablation(ablation(), data, tmp_path, processes=1)
    names = [job.name for job in submitted]
    assert len(set(names)) == len(names) == 3 + 6
    for number, job in enumerate(submitted):
        assert set(job.needs) <= set(names[:number])
    assert {job.name: len(job.needs) for job in submitted}["without_stage1 seed 1"] == 0


def test_the_base_may_be_a_shipped_config_with_settings_over_it() -> None:
    settings = {"size": "tiny", "align": {"epochs": 7, "kept_dims": 0}}
    config = ablation(base="encoders_small", settings=settings, widths=[])
    shipped = load_config(Path("encoders_small"), EncodersConfig)
    changed = plan(config, Path())[0].config
    assert (changed.size, changed.align.epochs) == ("tiny", 7)
    assert changed.align.batch_size == shipped.align.batch_size


def test_in_the_shipped_ablation_each_variant_but_the_default_changes_something() -> None:
    config = load_config(Path("encoder_ablation"), AblationConfig)
    runs = plan(config, Path())
    assert config.variants["default"].settings == {}
    assert len({run.config.model_dump_json() for run in runs}) == len(runs)
    for variant in config.variants:
        assert set(config.seeds_of(variant)) <= set(config.seeds_of("default"))


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"default": "defaults"}, "default 'defaults' is not one of the variants"),
        ({"variants": VARIANTS | {"pretrain": {"title": "x"}}}, "may not be named 'pretrain'"),
        ({"variants": VARIANTS | {"a/b": {"title": "x"}}}, "should match pattern"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"seeds": []}, "at least 1 item"),
    ],
)
def test_an_ablation_that_cannot_be_compared_is_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ablation(**changed)


def test_a_mistake_in_a_variant_names_the_variant_and_the_key() -> None:
    variants = VARIANTS | {"cold": {"title": "x", "settings": {"align": {"temprature": 1}}}}
    with pytest.raises(ConfigError, match=r"variant 'cold': unknown key 'align.temprature'; did you mean"):
        plan(ablation(variants=variants), Path())


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"architecture": {"embedding_dm": 24}}, "architecture.embedding_dm .* did you mean 'embedding_dim'"),
        ({"architecture": {"vocab_size": 24}}, "architecture.vocab_size is not a part of an encoder; there"),
        ({"architecture": {"embedding_dim": 25}}, "architecture.embedding_dim: .* multiple of 4"),
        ({"architecture": {"text_heads": 3}}, "text_hidden_dim must be a multiple of text_heads"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused_before_training(
    changed: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config(BASE | changed, EncodersConfig, where="here")


def test_images_that_would_learn_from_titles_unread_are_refused_before_training() -> None:
    variants = VARIANTS | {"cold": {"title": "x", "settings": {"image_warmup": OPTIMIZER}}}
    with pytest.raises(ConfigError, match=r"variant 'cold': \[image_warmup\] needs a \[warmup\] section"):
        plan(ablation(variants=variants), Path())


def test_a_run_leaves_its_metrics_with_what_they_depend_on(out: Path, data: Path) -> None:
    for run in plan(ablation(), out):
        found = json.loads(run.metrics.read_text())
        assert (found["variant"], found["seed"]) == (run.variant, run.seed)
        assert EncodersConfig.model_validate(found["config"]) == run.config
        assert (found["stage_1"] is None) == (run.variant == "without_stage1")
        assert set(found["seconds"]) >= {"stage_2", "encode", "measure"}
        assert ("stage_1" in found["seconds"]) == (run.variant != "without_stage1")
        wide = str(found["config"]["architecture"].get("embedding_dim", 16))
        assert found["test"]["metrics"] == found["widths"][wide]["metrics"]
        assert all(0 <= value <= 1 for value in found["validation"]["metrics"].values())


def test_metrics_are_those_of_table_1_on_the_same_tables(out: Path, data: Path) -> None:
    [run] = [run for run in plan(ablation(), out) if run.name == "default seed 1"]
    table = measure_retrieval(data, {"dashclip": run.folder / "tables"}, holdout=run.config.holdout)
    found = json.loads(run.metrics.read_text())
    rows = table.rows
    assert set(rows) == {"random", "bm25", "bm25_stemmed", "char_tfidf", "fusion", "dashclip"}
    assert found["test"]["metrics"]["graded_rel"] == rows["dashclip"]["graded_rel"].mean
    assert found["test"]["metrics"]["ndcg_at_10"] == rows["dashclip"]["ndcg_at_10"].mean
    assert found["test"]["queries"] == table.queries
    aside = measure_retrieval(
        data,
        {"dashclip": run.folder / "tables"},
        holdout=run.config.holdout,
        role=VALIDATION,
        baselines=False,
    )
    assert set(aside.rows) == {"dashclip"}
    assert found["validation"]["metrics"]["mrr"] == aside.rows["dashclip"]["mrr"].mean
    assert found["validation"]["metrics"] != found["test"]["metrics"]


def test_the_first_coordinates_are_measured_at_every_width_that_a_variant_has(out: Path) -> None:
    widths = {run.name: json.loads(run.metrics.read_text())["widths"] for run in plan(ablation(), out)}
    assert {name: list(found) for name, found in widths.items()} == {
        name: ["8", "16", "24"] if name == "nested seed 2" else ["8", "16"] for name in widths
    }
    assert widths["nested seed 2"]["8"]["bytes_per_vector"] == 16
    narrow = EmbeddingTable.load(out / "nested" / "seed-2" / "tables" / "first-8" / "queries")
    assert narrow.dim == 8


def test_a_finished_ablation_is_not_run_again_and_an_unfinished_run_is(
    out: Path, data: Path, submitted: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute_ablation(ablation(), data, out, processes=1)
    assert submitted == []
    [run] = [run for run in plan(ablation(), out) if run.name == "default seed 2"]
    content = run.metrics.read_bytes()
    run.metrics.unlink()
    execute_ablation(ablation(), data, out, processes=1)
    assert [job.name for job in submitted[1:]] == ["default seed 2"]
    assert submitted[1].needs == (submitted[0].name,)
    run_here(submitted)
    again = json.loads(run.metrics.read_text())
    assert again["test"] == json.loads(content)["test"]


def test_two_ablations_at_once_in_one_folder_are_refused(out: Path, data: Path) -> None:
    with folder_lock(out), pytest.raises(BusyError, match="another process is at work in"):
        execute_ablation(ablation(), data, out, processes=1)


def test_results_of_other_settings_or_other_data_are_refused(
    out: Path, data: Path, tmp_path: Path, submitted: list[Job]
) -> None:
    with pytest.raises(ValueError, match=r"default.seed-1 holds a finished run of other settings"):
        execute_ablation(ablation(settings={"align": {"epochs": 2}}), data, out, processes=1)
    other = write_small_catalog(tmp_path, products=29)
    with pytest.raises(ValueError, match=r"default.seed-1 holds a finished run of other data"):
        execute_ablation(ablation(), other, out, processes=1)


def test_the_report_has_means_spreads_and_paired_differences(out: Path) -> None:
    report = build_report(ablation(), out)
    values = {
        run.name: json.loads(run.metrics.read_text())["test"]["metrics"]["graded_rel"]
        for run in plan(ablation(), out)
    }
    default = report.variants["default"].metrics["graded_rel"]
    first, second = values["default seed 1"], values["default seed 2"]
    assert default.mean == pytest.approx((first + second) / 2)
    assert default.sd == pytest.approx(abs(first - second) / math.sqrt(2))
    assert report.variants["default"].differences == {}
    image = report.variants["image_only"]
    assert image.shared_seeds == 2
    mean = (values["image_only seed 1"] + values["image_only seed 2"] - first - second) / 2
    assert image.differences["graded_rel"].mean == pytest.approx(mean)
    single = report.variants["without_stage1"]
    assert single.differences["graded_rel"].low is None
    assert single.metrics["graded_rel"].sd is None
    assert report.missing == ()


def test_the_report_is_json_markdown_and_a_table(out: Path, tmp_path: Path) -> None:
    report = build_report(ablation(), out, command="as typed")
    report.write(tmp_path / "ablation.json")
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert AblationReport.model_validate(content) == report
    difference = content["variants"]["without_stage1"]["differences"]["mrr"]
    assert difference["verdict"] == "not told apart"
    assert (difference["seeds"], difference["low"]) == (1, None)
    assert content["variants"]["nested"]["widths"]["8"]["bytes_per_vector"] == 16
    markdown = to_markdown(report)
    assert '## Minus "Default"' in markdown
    assert markdown.count("| Image only |") == 7
    tables = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert {count for count in tables if count < 6} == {3}  # that of the one slice, "intent_unseen"
    shown = StringIO()
    Console(file=shown, width=100).print(console_table(report))
    assert "Without stage 1" in shown.getvalue()
    assert f"1 seed, {report.variants['without_stage1'].training_minutes:.1f} min" in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= 100


def test_an_unfinished_ablation_is_reported_with_what_is_missing(out: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run of the ablation .* is finished"):
        build_report(ablation(), tmp_path)
    later = ablation(seeds=[1, 2, 3])
    report = build_report(later, out)
    assert report.missing == ("default seed 3", "image_only seed 3")
    assert "Without a result: default seed 3, image_only seed 3." in to_markdown(report)


@pytest.mark.parametrize(
    "difference, word",
    [
        (Interval(0.2, 0.1, 0.3), "above"),
        (Interval(-0.2, -0.3, -0.1), "below"),
        (Interval(0.1, -0.1, 0.3), "not told apart"),
        (Interval(0.2, None, None), "not told apart"),
        (Interval(0.0, 0.0, 0.0), "not told apart"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(difference: Interval, word: str) -> None:
    assert verdict(difference) == word


def test_the_command_reports_what_is_finished(out: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(
        'base = "unused"\nseeds = [1]\n[variants.default]\ntitle = "Default"\n'.replace(
            '"unused"', json.dumps(BASE).replace('": ', '" = ')
        )
    )
    result = CliRunner().invoke(
        app, ["encode", "ablate", str(data), str(out), "--config", str(config), "--report-only"]
    )
    assert result.exit_code == 0, result.output
    assert list(json.loads((out / "ablation.json").read_text())["variants"]) == ["default"]
    assert (out / "ablation.md").read_text().startswith("# Ablation of the encoders")


def test_seconds_add_up_over_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 4.0, 15.0, 15.0, 20.0])
    monkeypatch.setattr(encoder_ablation_run.time, "perf_counter", lambda: next(clock))
    with SpentSeconds(tmp_path / "seconds.json").on("stage_2"):
        pass
    again = SpentSeconds(tmp_path / "seconds.json")
    with again.on("stage_2") as tick:
        tick()
        assert json.loads((tmp_path / "seconds.json").read_text()) == {"stage_2": 15.0}
    assert again.spent == {"stage_2": 20.0}


def test_an_architecture_changes_the_size(out: Path) -> None:
    saved = EncoderConfig.model_validate_json(
        (out / "nested" / "seed-2" / "align" / "encoder" / "config.json").read_text()
    )
    assert saved.embedding_dim == 24
    assert saved.text_hidden_dim == EncoderConfig.preset("tiny").text_hidden_dim


def test_real_pairs_have_figures_over_seeds_and_intervals_over_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders from scratch on pairs whose titles name their query, with and without stage 2."""
    data = two_aisles(graded(tmp_path / "data", np.random.default_rng(0)))
    relevance = pq.read_table(data / "relevance.parquet")
    disputed = np.where(np.arange(len(relevance)) % 3, relevance["grade"].to_numpy(), 1)
    disputed[::7] = 2 - disputed[::7]
    pq.write_table(relevance.set_column(2, "grade", pa.array(disputed)), data / "relevance.parquet")
    content = {
        "base": {
            "size": "tiny",
            "vocab_size": 300,
            "modalities": ["text"],
            "holdout": PAIR_HOLDOUT.model_dump(),
            "warmup": {**OPTIMIZER, "batch_size": 64},
            "align": {**OPTIMIZER, "batch_size": 64, "in_batch_negatives": True},
        },
        "default": "aligned",
        "seeds": [1, 2],
        "variants": {
            "aligned": {"title": "Aligned"},
            "start": {"title": "Start", "settings": {"align": False}},
        },
    }
    config = AblationConfig.model_validate(content)
    monkeypatch.setattr(encoder_ablation, "run_jobs", run_here)
    execute_ablation(config, data, tmp_path / "out", processes=1)
    report = build_report(config, tmp_path / "out")
    assert not report.simulated
    expected = []
    for seed in (1, 2):
        folder = tmp_path / "out" / "start" / f"seed-{seed}" / "tables"
        tables = Vectors(*(EmbeddingTable.load(folder / kind) for kind in ("products", "queries")))
        found = evaluate_home_depot(data, {"start": tables}, holdout=PAIR_HOLDOUT, resamples=5)
        expected.append((found.auc_high_vs_irrelevant["start"].mean, found.macro_f1_of_cutoffs["start"].mean))
    auc, macro_f1 = np.mean(expected, axis=0)
    start, aligned = report.variants["start"], report.variants["aligned"]
    assert start.pairs["pair_auc"].sd == pytest.approx(np.std([one for one, _ in expected], ddof=1))
    assert start.pairs["pair_auc"].mean == pytest.approx(auc)
    assert start.pairs["pair_macro_f1"].mean == pytest.approx(macro_f1)
    assert start.pairs["pair_auc"].low < auc < start.pairs["pair_auc"].high
    difference = start.pair_differences["pair_auc"]
    assert difference.mean == pytest.approx(auc - aligned.pairs["pair_auc"].mean)
    assert difference.low < difference.mean < difference.high
    assert aligned.pair_differences == {}
    assert AblationReport.model_validate_json(report.model_dump_json()) == report
    page = to_markdown(report)
    assert "## The test queries' pairs" in page
    assert 'Macro F1 minus "Aligned"' in page

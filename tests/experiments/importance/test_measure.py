"""From run folders to importance.json: seeds combined, stopped and resumed, retrained without features."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from embeddings.embedding_table import EmbeddingTable
from experiments.cli import app
from experiments.importance.captum_comparison import compare_with_captum
from experiments.importance.measure import measure, measure_parts
from experiments.importance.model_features import features_of
from experiments.importance.result import ImportanceReport
from experiments.importance.run_parts import MeasureOptions
from experiments.importance.selection import dispensable, narrow_manifest, select_and_retrain, write_narrow
from experiments.importance.split_rows import open_split
from features.feature_set import FeatureSet
from features.offline.build import build
from features.schema import SparseFeature, SplitConfig
from ranking.model import RankerConfig
from ranking.run import RunConfig, execute_run, load_run
from tests.features.small_logs import CONFIG, random_tables, write_tables
from tests.ranking.small_runs import run_config

OPTIONS = MeasureOptions(repeats=2, slice_repeats=1, pairs=2)
FEATURES = CONFIG.model_copy(
    update={
        "sparse": (
            *CONFIG.sparse,
            SparseFeature(name="aisle", source="products", column="aisle", min_count=1),
        ),
        "split": SplitConfig(validation_days=2, test_days=2),
    }
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished seeds of one small variant, in the folder of a sweep."""
    folder = tmp_path_factory.mktemp("importance")
    tables = random_tables(5, impressions=1500)
    aisles = ["dairy", "fruit"] * 4
    tables["products"] = tables["products"].set_column(2, "aisle", [aisles[: len(tables["products"])]])
    data = write_tables(folder / "data", tables)
    build(data, folder / "features", FEATURES, buckets=1, threads=1, memory_limit="200MB")
    feature_set = FeatureSet.open(folder / "features")
    rng = np.random.default_rng(0)
    for kind, name, ids in (
        ("product", "products", feature_set.catalog_ids()),
        ("query", "queries", feature_set.queries()),
    ):
        vectors = rng.normal(size=(len(ids), 8)).astype(np.float32)
        EmbeddingTable.write(
            folder / name, ids=ids, vectors_ND=vectors, encoder_id="random", kind=kind, normalised=False
        )
    folders = [folder / "sweep" / "small" / f"seed-{seed}" for seed in (1, 2)]
    for seed, run in zip((1, 2), folders, strict=True):
        config = run_config(folder, seed=seed, max_epochs=1, evaluations_per_epoch=1)
        execute_run(config, run, environment={})
    (folder / "sweep" / "sweep.json").write_text('{"name": "small", "simulated": true}')
    return folders


@pytest.fixture(scope="module")
def report(runs: list[Path]) -> ImportanceReport:
    return measure(runs, OPTIONS, command="as typed", parts=runs[0].parents[2] / "parts")


def comparable(report: ImportanceReport) -> dict:
    content = report.model_dump()
    for key in ("created", "environment", "command", "commit"):
        del content[key]
    return content


def test_seeds_measured_at_the_same_time_give_the_same_report(
    runs: list[Path], report: ImportanceReport, tmp_path: Path
) -> None:
    parts, said = tmp_path / "parts", set[str]()
    measure_parts(
        runs,
        OPTIONS,
        parts=parts,
        scratch=tmp_path,
        processes=2,
        threads=torch.get_num_threads(),
        progress=lambda stage, done, total: said.add(stage),
    )
    assert {"seed 1: ablation", "seed 2: ablation"} <= said
    made = {path: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert made
    stages: set[str] = set()
    again = measure(
        runs,
        OPTIONS,
        command="as typed",
        parts=parts,
        progress=lambda stage, done, total: stages.add(stage),
    )
    assert comparable(again) == comparable(report)
    assert stages == {"seed 1: correlated pairs", "seed 2: correlated pairs"}, "a part is measured twice"
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_every_feature_and_group_has_every_method(runs: list[Path], report: ImportanceReport) -> None:
    config = RunConfig.model_validate_json((runs[0] / "config.json").read_text())
    manifest = FeatureSet.open(config.features).manifest
    names = {feature.name for feature in features_of(manifest, config.ranker)}
    for method, metric in (
        ("permutation", "auc"),
        ("permutation", "logloss"),
        ("ablation", "auc"),
        ("integrated_gradients", "logit"),
    ):
        assert {entry.name for entry in report.ranked(method=method, metric=metric)} == names
        assert len(report.ranked(method=method, metric=metric, kind="group")) == 13
    assert (report.seeds, report.simulated, report.data) == ((1, 2), True, "small")
    assert set(report.baselines) == names
    assert report.baselines["price"] == "training mean, marked as missing"
    assert report.baselines["hour"] == "training mean"


def test_the_base_is_what_the_runs_reported(runs: list[Path], report: ImportanceReport) -> None:
    aucs = [json.loads((run / "metrics.json").read_text())["test"]["auc"] for run in runs]
    assert report.base["auc"].mean == pytest.approx(np.mean(aucs), abs=1e-5)
    assert report.base["auc"].sd == pytest.approx(np.std(aucs, ddof=1), abs=1e-5)


def test_slices_are_those_of_the_contract(report: ImportanceReport) -> None:
    assert {"all", "aisle: dairy", "aisle: fruit"} <= set(report.slices)
    assert any(note.startswith("Left out for fewer than 20 clicks") for note in report.notes)
    halves = [report.slices[name].rows for name in ("aisle: dairy", "aisle: fruit")]
    assert sum(halves) == report.slices["all"].rows == report.rows
    aisle = [entry for entry in report.ranked(slice="aisle: dairy") if entry.name == "aisle"]
    assert aisle[0].mean == 0.0, "within an aisle, the aisle says nothing"


def test_runs_are_combined_by_their_mean_and_spread(runs: list[Path], report: ImportanceReport) -> None:
    single = [measure([run], OPTIONS, command="", parts=runs[0].parents[2] / "parts") for run in runs]
    for entry in report.ranked():
        values = [next(e.mean for e in one.ranked() if e.name == entry.name) for one in single]
        assert entry.mean == pytest.approx(np.mean(values), abs=1e-12)
        assert entry.sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert (entry.runs, single[0].ranked()[0].runs) == (2, 1)


def test_a_stopped_measurement_goes_on_to_the_same_numbers(
    runs: list[Path], report: ImportanceReport, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage.startswith("seed 2: ablation"):
            raise StoppedError

    with pytest.raises(StoppedError):
        measure(runs, OPTIONS, command="", parts=tmp_path, progress=stop)
    stages: list[str] = []
    again = measure(
        runs, OPTIONS, command="", parts=tmp_path, progress=lambda stage, *_: stages.append(stage)
    )
    assert comparable(again) == comparable(report)
    assert set(stages) == {
        "seed 2: ablation",
        "seed 2: integrated gradients",
        "seed 1: correlated pairs",
        "seed 2: correlated pairs",
    }


def test_nothing_is_left_of_the_decoded_columns(runs: list[Path], tmp_path: Path) -> None:
    quick = MeasureOptions(repeats=1, methods=("permutation",), slices=False, pairs=0)
    found = measure(runs[:1], quick, command="", scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert found.agreement.methods == ()
    assert found.convergence_delta is None


def test_rows_are_those_of_the_loader_and_lie_on_disk(runs: list[Path], tmp_path: Path) -> None:
    run = load_run(runs[0])
    with open_split(run.feature_set, "test", scratch=tmp_path) as rows:
        assert all(isinstance(matrix, np.memmap) for matrix in (rows.dense_NF, rows.sparse_NS, rows.index_N4))
        assert run.semantic is not None
        for expected in run.loader("test", batch_size=100):
            found = rows.batch(expected.row_B.numpy(), run.semantic.rows)
            assert torch.equal(found.dense_BF, expected.dense_BF)
            assert torch.equal(found.clicked_B, expected.clicked_B)
            for name in ("sparse", "semantic"):
                ours, theirs = getattr(found, name), getattr(expected, name)
                assert ours.keys() == theirs.keys()
                assert torch.equal(ours.values(), theirs.values().to(ours.values().dtype))
                assert torch.equal(ours.lengths(), theirs.lengths())


def test_runs_of_different_variants_are_not_combined(runs: list[Path], tmp_path: Path) -> None:
    config = RunConfig.model_validate_json((runs[0] / "config.json").read_text())
    other = config.model_copy(update={"ranker": RankerConfig(embedding_dim=4, deep_widths=(8,))})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.json").write_text(other.model_dump_json())
    with pytest.raises(ValueError, match="differ in more than their seed"):
        measure([runs[0], tmp_path], OPTIONS, command="")


def test_an_unfinished_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((runs[0] / "config.json").read_text())
    with pytest.raises(ValueError, match="is not finished"):
        measure([tmp_path], OPTIONS, command="")
    with pytest.raises(ValueError, match="needs at least one run folder"):
        measure([], OPTIONS, command="")


def test_captum_on_the_trained_ranker_gives_the_same_numbers(runs: list[Path]) -> None:
    found = compare_with_captum(runs[0])
    assert found["largest_difference"] < 1e-4  # a swapped pair among few rows; logloss is compared elsewhere
    assert found["speedup"] > 0


def test_a_narrowed_feature_set_has_the_other_columns_and_the_same_rows(
    runs: list[Path], tmp_path: Path
) -> None:
    config = RunConfig.model_validate_json((runs[0] / "config.json").read_text())
    feature_set = FeatureSet.open(config.features)
    features = {feature.name: feature for feature in features_of(feature_set.manifest, config.ranker)}
    dropped = [features[name] for name in ("price", "brand", "query_ctr_1d")]
    narrow = write_narrow(feature_set, dropped, tmp_path / "narrow")
    gone = set(feature_set.manifest.dense_columns) - set(narrow.manifest.dense_columns)
    assert gone == {"price", "price_missing", "query_ctr_1d"}
    assert "brand" not in [column.name for column in narrow.manifest.sparse_columns]
    assert "brand" not in [feature.name for feature in narrow.manifest.config.sparse]
    assert not (tmp_path / "narrow" / "vocabularies" / "brand.parquet").exists()
    assert narrow.manifest.splits == feature_set.manifest.splits
    counters = [f for name, f in features.items() if name.startswith("query_product_")]
    narrower = narrow_manifest(feature_set.manifest, counters)
    assert narrower.config.counters is not None
    assert narrower.config.counters.keys == ("query", "product", "user")
    with pytest.raises(ValueError, match="at least one id feature"):
        narrow_manifest(feature_set.manifest, [f for f in features.values() if f.sparse])


def test_the_best_id_and_ids_with_a_serving_value_are_never_dropped(runs: list[Path]) -> None:
    config = RunConfig.model_validate_json((runs[0] / "config.json").read_text())
    manifest = FeatureSet.open(config.features).manifest
    fixed = tuple(
        f.model_copy(update={"serving_value": 1}) if f.name == "store" else f for f in manifest.config.sparse
    )
    manifest = manifest.model_copy(update={"config": manifest.config.model_copy(update={"sparse": fixed})})
    importance = {feature.name: 0.0 for feature in features_of(manifest, config.ranker)} | {"store": -1.0}
    names = {f.name for f in dispensable(manifest, config.ranker, importance, threshold=0.1)}
    assert "store" not in names
    assert not any("similarity" in name for name in names)
    ids = {column.name for column in manifest.sparse_columns}
    assert ids - names == {"store"}


def test_the_retrained_model_lacks_the_useless_features(runs: list[Path], tmp_path: Path) -> None:
    found = select_and_retrain(runs, OPTIONS, threshold=0.002, out=tmp_path)
    assert found.dropped
    assert not set(found.dropped) & set(found.kept)
    assert found.after.features == len(found.kept) < found.before.features
    assert found.after.parameters < found.before.parameters
    assert found.auc_difference == pytest.approx(found.after.auc - found.before.auc)
    assert found.auc_low is not None
    assert found.chosen_on == "validation"
    (folder,) = tmp_path.glob("without-*")
    assert load_run(folder / "seed-2").config.variant == "small_selected"
    assert select_and_retrain(runs, OPTIONS, threshold=0.002, out=tmp_path).after.auc == found.after.auc
    with pytest.raises(ValueError, match="no feature costs less than -10 AUC"):
        select_and_retrain(runs, OPTIONS, threshold=-10, out=tmp_path)


def test_the_command_writes_the_file_beside_the_sweep(runs: list[Path]) -> None:
    asked = ["importance", str(runs[0].parent), "--repeats", "1", "--no-slices", "--methods", "permutation"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    sweep = runs[0].parents[1]
    written = ImportanceReport.read(sweep / "importance.json")
    assert (len(written.runs), written.repeats, written.slices.keys()) == (2, 1, {"all"})
    assert "What AUC loses without a feature" in done.output
    assert (sweep / "importance_parts").is_dir()

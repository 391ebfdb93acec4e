"""A package scores what its run predicted, holds all it needs, and is refused when anything in it changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from features.feature_set import FeatureSet
from features.inputs.tables import InputTables
from features.online.request import RequestError
from ranking.model import SemanticConfig
from ranking.run import load_run
from serving.package.generations import current_generation, generation_folder
from serving.package.manifest import PackageManifest
from serving.package.parity import read_scores
from serving.package.sealed_folder import PackageError
from serving.packaging.build_package import build_package
from serving.packaging.logged_requests import LoggedImpressions
from serving.scoring.predictor import Predictor
from serving.wire.reply import ScoreReply
from tests.serving.small_packages import AS_OF_US, package_small, train_small

VARIANTS = {
    "DCN": ({"semantic": None}, {}),
    "product and query": ({"semantic": SemanticConfig(entities=("query", "product"), widths=(8,))}, {}),
    "history": ({"semantic": SemanticConfig(widths=(8,), cross_layers=0)}, {"tables": "float32"}),
    "history tiers": ({"semantic": SemanticConfig(widths=(8,), history_tiers=9)}, {}),
    "similarity": ({"semantic": SemanticConfig(reads="similarity")}, {}),
    "random": ({"semantic": SemanticConfig(widths=(8,), initialisation="random")}, {}),
    "int8": ({"semantic": SemanticConfig(widths=(8,))}, {"tables": "int8", "context": ()}),
    "projected": ({"semantic": SemanticConfig(widths=(8,))}, {"tables": "int8", "projected": True}),
    "text ids": ({"semantic": SemanticConfig(widths=(8,)), "text_ids": True}, {}),
    "nobody": ({"semantic": SemanticConfig(widths=(8,)), "nobody": 0.4}, {}),
}


def logged(folder: Path, context: tuple[str, ...]) -> LoggedImpressions:
    feature_set = FeatureSet.open(folder / "features")
    return LoggedImpressions(feature_set, InputTables.open(folder / "data"), context=context)


def served(package: Path, impressions: LoggedImpressions, *, together: int) -> np.ndarray:
    predictor = Predictor.load(package)
    scores_M = np.full(len(impressions), np.nan)
    groups = impressions.groups()
    for start in range(0, len(groups), together):
        batch = groups[start : start + together]
        for rows_N, reply in zip(
            batch, predictor.score_many([impressions.request(rows) for rows in batch]), strict=True
        ):
            assert isinstance(reply, ScoreReply), reply
            scores_M[rows_N] = reply.scores_N
    return scores_M


@pytest.mark.parametrize("name", VARIANTS)
def test_served_scores_are_the_run_s_own_predictions(tmp_path: Path, name: str) -> None:
    run, options = VARIANTS[name]
    train_small(tmp_path, **run)
    package = package_small(tmp_path, **options)
    manifest = PackageManifest.read(package)
    impressions = logged(tmp_path, manifest.context)
    offline_M = impressions.offline_probabilities(tmp_path / "run")
    allowed = {"float32": 1e-5, "float16": 1e-3, "int8": 1e-2}[manifest.tables]
    np.testing.assert_allclose(served(package, impressions, together=5), offline_M, atol=allowed, rtol=0)
    users = [request.request.user_id for request in impressions.requests()]
    assert (None in users) == (name == "nobody")


def test_requests_scored_together_get_what_each_gets_alone(small_run: Path) -> None:
    impressions = logged(small_run, ("store_id",))
    together, alone = (served(small_run / "package", impressions, together=n) for n in (40, 1))
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)


def test_the_package_needs_neither_the_run_nor_its_inputs(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "copy")
    package = shutil.move(tmp_path / "copy" / "package", tmp_path / "package")
    shutil.rmtree(tmp_path / "copy")
    assert Predictor.load(Path(package)).facts()["generation"] == "000001"


def test_its_manifest_says_what_it_is(small_run: Path) -> None:
    manifest = PackageManifest.read(small_run / "package")
    assert manifest.model_version.startswith("small-seed1-")
    assert manifest.context == ("store_id",)
    assert {"user", "query", "store", "hour", "day_of_week"} <= set(manifest.request_columns)
    assert not {"product", "price", "weight", "brand"} & set(manifest.request_columns)
    rows = load_run(small_run / "run").feature_set.manifest.splits["test"].rows
    assert manifest.training_record is not None
    assert manifest.training_record.candidates == rows
    assert manifest.vectors["product"].encoder_id == "random"
    assert manifest.parity.requests == 12


def test_a_run_with_a_metric_that_its_test_days_leave_undefined_is_packaged(tmp_path: Path) -> None:
    """As that of a log without queries, where no AUC by query exists."""
    train_small(tmp_path, semantic=None)
    path = tmp_path / "run" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    reasons = {"gauc_query": "no row has a query"}
    metrics["test"] |= {"gauc_query": None, "undefined": reasons}
    path.write_text(json.dumps(metrics), encoding="utf-8")
    manifest = PackageManifest.read(package_small(tmp_path))
    assert manifest.test_metrics["gauc_query"] is None
    assert manifest.test_metrics["undefined"] == reasons
    assert manifest.test_metrics["auc"] == metrics["test"]["auc"]


def test_no_user_id_of_the_feature_set_is_copied(small_run: Path) -> None:
    assert len(FeatureSet.open(small_run / "package" / "schema", verify=False).user_ids()) == 0


def every_file() -> list[str]:
    """Names that every package of the fixture has, one of each kind."""
    return [
        "manifest.json",
        "model/weights.safetensors",
        "model/shape.json",
        "model/tables/user.npy",
        "parity/requests.jsonl",
        "schema/manifest.json",
        "generations/000001/manifest.json",
        "generations/000001/parity_scores.npy",
        "generations/000001/vectors/product/vectors.npy",
        "generations/000001/vectors/product/rows.npy",
        "generations/000001/vectors/query/ids/key.npy",
        "generations/000001/snapshot/manifest.json",
        "generations/000001/snapshot/counters/product.npy",
    ]


@pytest.mark.parametrize("name", every_file())
def test_a_changed_byte_is_refused_naming_the_file(package: Path, name: str) -> None:
    path = package / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackageError, match=name):
        Predictor.load(package)


@pytest.mark.parametrize("name", every_file())
def test_a_truncated_file_is_refused_naming_the_file(package: Path, name: str) -> None:
    path = package / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackageError, match=name):
        Predictor.load(package)


def test_every_file_of_a_package_is_accounted_for(small_run: Path) -> None:
    package = small_run / "package"
    generation = generation_folder(package, current_generation(package))
    listed = {package / name for name in PackageManifest.read(package).files}
    listed |= {generation / name for name in json.loads((generation / "manifest.json").read_text())["files"]}
    listed |= {
        package / "manifest.json",
        generation / "manifest.json",
        package / "CURRENT",
        package / "gate.toml",
        package / "serving.toml",
    }
    found = {path for path in package.rglob("*") if path.is_file() and path.name != ".lock"}
    assert found == listed


def test_scores_that_do_not_come_out_are_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose program computes something else must not serve."""
    monkeypatch.setattr("serving.scoring.predictor.read_scores", lambda folder: read_scores(folder) + 0.01)
    with pytest.raises(PackageError, match=r"up to 0\.01 away"):
        Predictor.load(package)
    Predictor.load(package, verify=False)


def test_an_unfinished_run_is_not_packaged(small_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run / "run", tmp_path / "run"))
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match="not a finished run"):
        build_package(run, tmp_path / "package", log=small_run / "data", as_of_us=AS_OF_US)
    assert not (tmp_path / "package").exists()


def test_a_folder_of_another_kind_is_not_replaced(small_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="another kind"):
        build_package(small_run / "run", tmp_path, log=small_run / "data", as_of_us=AS_OF_US)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_query_encoder_of_another_space_is_refused(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"query encoder is other-encoder, but small-seed1-.* of random"):
        build_package(
            small_run / "run",
            tmp_path / "package",
            log=small_run / "data",
            as_of_us=AS_OF_US,
            export_encoder=lambda folder: "other-encoder",
        )
    assert not (tmp_path / "package").exists()


def test_a_bad_request_does_not_fail_its_neighbours(small_run: Path) -> None:
    impressions = logged(small_run, ("store_id",))
    good = impressions.request(impressions.groups()[0])
    bad = type(good)(user_id=1, query=None, candidates=good.candidates, context={"colour": "red"})
    predictor = Predictor.load(small_run / "package")
    first, refused, last = predictor.score_many([good, bad, good])
    assert isinstance(refused, RequestError)
    assert "colour" in refused.field
    assert isinstance(first, ScoreReply)
    assert isinstance(last, ScoreReply)
    np.testing.assert_array_equal(first.scores_N, last.scores_N)
    with pytest.raises(RequestError):
        predictor.score(bad)

"""`dashclip grade` divides queries as the encoders' records say, or as a config does."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embeddings.catalog.holdout import TEST, TRAIN, VALIDATION, HoldoutConfig
from embeddings.grading.graders import FeatureGrader
from embeddings.grading.language_models.prompt import TEMPLATE
from embeddings.grading.pairs import Catalogue, read_graded_pairs
from embeddings.grading.run import read_manifest
from tests.embeddings.grading.small_world import write_small_world
from tests.embeddings.grading.word_bags import WordBags
from tests.experiments.commands.test_grade import call

OTHER = HoldoutConfig(test_query_share=0.3, validation_query_share=0.3, seed=3)
ALONE = ("--lexical", 0, "--random", 0, "--coverage", 0.05, "--people")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_world(tmp_path_factory.mktemp("held out") / "data")


@pytest.fixture(scope="module")
def config(data: Path) -> Path:
    path = data.parent / "other.toml"
    path.write_text("[holdout]\ntest_query_share = 0.3\nvalidation_query_share = 0.3\nseed = 3\n")
    return path


def tables_of(data: Path, folder: Path, holdout: HoldoutConfig) -> Path:
    """Tables of an encoder that was trained with a hold-out."""
    catalogue = Catalogue.read(data)
    graded = read_graded_pairs(data, holdout, catalogue=catalogue)
    WordBags(catalogue).write(folder, catalogue, sorted({*graded.pairs.queries}))
    for kind in ("products", "queries"):
        manifest = json.loads((folder / kind / "manifest.json").read_text())
        manifest["holdout"] = holdout.model_dump(mode="json")
        (folder / kind / "manifest.json").write_text(json.dumps(manifest))
    return folder


def queries_of(data: Path, *roles: int) -> set[str]:
    graded = read_graded_pairs(data, OTHER, catalogue=Catalogue.read(data))
    return {query for role in roles for query in graded.of_role(role).pairs.queries}


def refused(*words: object) -> str:
    return " ".join(call(*words, fails=True).split())


def test_a_grader_is_kept_from_what_the_encoder_of_its_tables_was_kept_from(
    data: Path, config: Path, tmp_path: Path
) -> None:
    aligned = tables_of(data, tmp_path / "tables", OTHER)
    asked = ["train", data, tmp_path / "aligned", "--grader", "overlap", "--aligned", f"own={aligned}"]
    said = refused(*asked, "--config", "encoders_small")
    for words in ("own/products", "kept from its training", "seed = 3", "but the config says", "seed = 0"):
        assert words in said
    call(*asked)
    grader = FeatureGrader.load(tmp_path / "aligned")
    assert grader.holdout == OTHER
    graded = read_graded_pairs(data, OTHER, catalogue=Catalogue.read(data))
    assert grader.manifest.train_pairs == len(graded.of_role(TRAIN))
    other = tables_of(data, tmp_path / "others", HoldoutConfig())
    said = refused(*asked, "--aligned", f"others={other}")
    assert "one hold-out" in said
    assert "leave one of them out" in said
    call("train", data, tmp_path / "alone", "--grader", "overlap", "--config", config)
    assert FeatureGrader.load(tmp_path / "alone").holdout == OTHER


def test_graders_are_measured_on_what_was_kept_from_them_and_nothing_else(
    data: Path, config: Path, tmp_path: Path
) -> None:
    for name, more in (("default", ()), ("other", ("--config", config))):
        call("train", data, tmp_path / name, "--grader", "overlap", *more)
    rows = {name: f"{name}={tmp_path / name}" for name in ("default", "other")}
    call("choose", data, tmp_path / "out", rows["other"])
    found = json.loads((tmp_path / "out" / "choice.json").read_text())
    assert found["queries"] == len(queries_of(data, VALIDATION))
    assert found["holdout"] == OTHER.model_dump(mode="json")
    for command in ("choose", "report"):
        said = refused(command, data, tmp_path / "out", *rows.values())
        assert "other was trained with" in said
        assert "seed = 3" in said
        assert "train them with one" in said
        said = refused(command, data, tmp_path / "out", rows["default"], "--config", config)
        assert "default must be measured on what was kept from its training" in said
    tables_of(data, tmp_path / "tables", HoldoutConfig())
    call("train", data, tmp_path / "changed", "--grader", "vectors", "--tables", f"own={tmp_path / 'tables'}")
    tables_of(data, tmp_path / "tables", OTHER)
    said = refused("choose", data, tmp_path / "out", f"changed={tmp_path / 'changed'}")
    assert "own of changed/products was trained with" in said


def test_a_run_remembers_what_was_kept_from_its_grader(data: Path, config: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.parquet"
    assert "--people alone asks" in refused("pairs", data, pairs, "--config", config)
    call("pairs", data, pairs, *ALONE, "held-out", "--config", config)
    assert {*pq.read_table(pairs)["query"].to_pylist()} >= queries_of(data, VALIDATION, TEST)
    call("train", data, tmp_path / "other", "--grader", "overlap", "--config", config)
    call("train", data, tmp_path / "default", "--grader", "overlap")
    call("run", pairs, tmp_path / "run", "--grader", tmp_path / "other")
    manifest = read_manifest(tmp_path / "run")
    assert manifest is not None
    assert manifest.holdout == OTHER
    rows = f"default={tmp_path / 'default'}", f"run={tmp_path / 'run'}"
    assert "run was trained with" in refused("choose", data, tmp_path / "out", *rows)
    said = refused("report", data, tmp_path / "out", rows[0], "--graded", tmp_path / "run")
    assert f"{tmp_path / 'run'} was trained with" in said
    call("choose", data, tmp_path / "out", rows[1])
    assert json.loads((tmp_path / "out" / "choice.json").read_text())["graders"]["run"]["unanswered"] == 0


def test_chats_and_examples_come_from_the_queries_that_the_config_trains_on(
    data: Path, config: Path, tmp_path: Path
) -> None:
    prompt = tmp_path / "prompt.toml"
    call("prompt", prompt)
    call("export", data, tmp_path / "chats", "--prompt", prompt, "--config", config)
    for name, role in (("train", TRAIN), ("validation", VALIDATION)):
        lines = (tmp_path / "chats" / f"{name}.jsonl").read_text().splitlines()
        asked = [json.loads(line)["messages"][1]["content"] for line in lines]
        assert {text.split("Query: ")[1].split("\n")[0] for text in asked} == queries_of(data, role)
    prompt.write_text(TEMPLATE.replace("# examples_from", "examples_from"))
    call("pairs", data, tmp_path / "pairs.parquet", "--lexical", 1, "--random", 0, "--coverage", 0.05)
    run = ["run", tmp_path / "pairs.parquet", tmp_path / "graded", "--batch-file", "--model", "m"]
    run += ["--prompt", prompt, "--config", config]
    assert "needs --examples DATA" in refused(*run)
    call(*run, "--examples", data)
    manifest = read_manifest(tmp_path / "graded")
    assert manifest is not None
    assert manifest.holdout == OTHER
    results = tmp_path / "results.jsonl"
    results.write_text("")
    collect = ["collect", tmp_path / "graded", results, "--model", "m", "--prompt", prompt]
    said = refused(*collect, "--examples", data)
    assert "another folder" in said, "other examples are another prompt"
    assert "have none yet" in call(*collect, "--examples", data, "--config", config)


def test_graders_and_runs_of_before_there_was_a_record_still_open(data: Path, tmp_path: Path) -> None:
    call("train", data, tmp_path / "old", "--grader", "overlap")
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["holdout"], manifest["read_anew"], manifest["calibration_stuffed"]
    path.write_text(json.dumps(manifest))
    assert FeatureGrader.load(tmp_path / "old").holdout == HoldoutConfig()
    call("pairs", data, tmp_path / "pairs.parquet", *ALONE, "held-out")
    call("run", tmp_path / "pairs.parquet", tmp_path / "run", "--grader", tmp_path / "old")
    path = tmp_path / "run" / "grading.json"
    manifest = json.loads(path.read_text())
    del manifest["holdout"]
    path.write_text(json.dumps(manifest))
    call("choose", data, tmp_path / "out", f"old={tmp_path / 'old'}", f"run={tmp_path / 'run'}")

"""The demo from nothing to its table, in the smallest world, and a second call with nothing left to do."""

import json
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import experiments.sweeps.meanwhile
import experiments.sweeps.sweep
from embeddings.encoders.config import EncoderConfig
from experiments.commands.demo import (
    ENCODER_RESULTS,
    delete_demo,
    demo,
    refuse_another_demo,
    sweep_config,
)
from experiments.config import load_config
from experiments.encoders.config import EncodersConfig
from experiments.marketplace.config import MarketplaceConfig
from experiments.sweeps.sweep import PlannedRun, plan, tables_read
from experiments.worlds.parts import DIM
from tests.experiments.sweeps.sweep_folders import PAPER_VARIANTS

DEMO_VARIANTS = (
    "dcn",
    "dcn_lexical",
    *PAPER_VARIANTS[1:],
    "dcn_pq_sim_history_lsa",
    "dcn_pq_sim_history_tiers",
    "dcn_pq_sim_history_tiers_lsa",
    "dcn_pq_sim_history_oracle",
    "dcn_pq_sim_history_tiers_oracle",
)
CEILINGS = DEMO_VARIANTS[-2:]
MEASURED = (
    "auc_mean",
    "auc_sd",
    "norm_logloss_mean",
    "norm_logloss_sd",
    "calibration_mean",
)
COMPARED = ("auc_diff_mean", "auc_diff_low", "auc_diff_high", "gain_share")


#: The runs that the demo hands to the second core, one list for each time it does.
HANDED_OVER: list[list[PlannedRun]] = []


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo"
    trained_meanwhile = experiments.sweeps.meanwhile.trained_meanwhile

    def noted(runs: Sequence[PlannedRun], **more: Any) -> AbstractContextManager[list[PlannedRun]]:
        HANDED_OVER.append(list(runs))
        return trained_meanwhile(runs, **more)

    with pytest.MonkeyPatch.context() as patch:
        for module in (experiments.sweeps.sweep, experiments.sweeps.meanwhile):
            patch.setattr(module, "usable_cores", lambda: 2)  # one thread a process
        patch.setattr(experiments.sweeps.meanwhile, "trained_meanwhile", noted)
        demo(out, size="tiny", seeds=2, processes=2)
    return out


@pytest.mark.slow
def test_the_table_has_what_its_readers_look_up(out: Path) -> None:
    table = json.loads((out / "table2.json").read_text())
    assert table["simulated"] is True
    assert table["seeds"] == 2
    assert table["missing_runs"] == []
    assert 0.5 < table["best_auc"] < 1
    assert tuple(table["variants"]) == DEMO_VARIANTS
    for name, variant in table["variants"].items():
        expected = MEASURED if name == "dcn" else MEASURED + COMPARED
        for key in expected:
            assert math.isfinite(variant[key]), (name, key)
        assert 0 < variant["auc_mean"] < 1
        assert {"all", "has_purchases", "no_purchases"} <= set(variant["slices"])
    assert "auc_diff_mean" not in table["variants"]["dcn"]
    assert (table["second_baseline"], table["ceilings"]) == ("dcn_lexical", list(CEILINGS))
    assert "auc_diff_mean" in table["variants"]["dcn_pq_sim"]["over_second_baseline"]
    assert (table["share_of_ceiling"] or {}).get("variant") not in (*CEILINGS, "dcn", "dcn_lexical")


@pytest.mark.slow
def test_the_numbers_of_the_table_agree_with_each_other(out: Path) -> None:
    table = json.loads((out / "table2.json").read_text())
    dcn = table["variants"]["dcn"]
    reachable = table["best_auc"] - dcn["auc_mean"]
    for name, variant in table["variants"].items():
        if name == "dcn":
            continue
        assert variant["auc_diff_mean"] == pytest.approx(variant["auc_mean"] - dcn["auc_mean"])
        assert variant["auc_diff_low"] <= variant["auc_diff_mean"] <= variant["auc_diff_high"]
        assert variant["gain_share"] == pytest.approx(variant["auc_diff_mean"] / reachable)
        runs = [
            json.loads((out / name / f"seed-{seed}" / "metrics.json").read_text())["test"]["auc"]
            for seed in (1, 2)
        ]
        assert variant["auc_mean"] == pytest.approx(sum(runs) / 2)


@pytest.mark.slow
def test_the_encoders_leave_what_their_readers_look_up(out: Path) -> None:
    table = json.loads((out / "table1.json").read_text())
    assert table["simulated"] is True
    assert table["queries"] > 0
    assert list(table["rows"]) == [
        *("random", "bm25", "bm25_stemmed", "char_tfidf", "fusion"),
        *("lsa", "stage1", "dashclip"),
    ]
    assert table["slices"]["intent_unseen"]["queries"] == table["queries"]
    assert "misspelt" in table["slices"]
    for row in table["rows"].values():
        for measure in ("graded_rel", "recall_at_10", "precision_at_10", "ndcg_at_10", "mrr"):
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
    assert set(json.loads((out / "probes.json").read_text())["probes"]) >= {"aisle", "relevance"}
    assert (out / "pictures" / "tsne_by_aisle.png").stat().st_size > 0


@pytest.mark.slow
def test_each_ranker_read_the_tables_that_its_title_names(out: Path) -> None:
    for variant, tables in (("dcn_pq_sim_history", "embeddings"), ("dcn_pq_sim_history_lsa", "lsa")):
        config = json.loads((out / variant / "seed-1" / "config.json").read_text())
        assert Path(config["product_table"]) == out / tables / "products"


@pytest.mark.slow
def test_rankers_train_beside_the_encoders_as_soon_as_their_vectors_are_there(out: Path) -> None:
    before, after = ({run.config.variant for run in runs} for runs in HANDED_OVER)
    of_lsa = {"dcn_pq_sim_history_lsa", "dcn_pq_sim_history_tiers_lsa"}
    assert before == {"dcn", "dcn_lexical", "dcn_pq_sim_history_random", *of_lsa, *CEILINGS}
    assert after == set(DEMO_VARIANTS)
    assert {run.config.seed for runs in HANDED_OVER for run in runs} == {1, 2}


@pytest.mark.slow
def test_the_page_and_the_markdown_say_that_the_data_are_simulated(out: Path) -> None:
    for name in ("report.html", "table2.md"):
        text = (out / name).read_text()
        assert "simulated" in text.lower(), name
        assert "purchase history" in text, name


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_gives_the_same_table(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pool(*_: object, **__: object) -> None:
        raise AssertionError("a run is started although all are finished")

    def parts() -> dict[Path, int]:
        kept = [*out.glob("data/*"), *out.glob("features/*"), *out.glob("embeddings/*/*")]
        kept += out.glob("dcn*/seed-*/*.json")
        kept += [*out.glob("encoders/*/*"), *(out / name for name in ENCODER_RESULTS)]
        return {path: path.stat().st_mtime_ns for path in kept}

    monkeypatch.setattr(experiments.sweeps.sweep, "run_jobs", no_pool)
    before, first = parts(), json.loads((out / "table2.json").read_text())
    assert len(before) > 30
    demo(out, size="tiny", seeds=2, processes=2)
    assert parts() == before
    second = json.loads((out / "table2.json").read_text())
    assert second["variants"] == first["variants"]


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """What tells the parts of a finished tiny demo, each written a second after what it is made from."""
    config = MarketplaceConfig.preset("tiny").model_dump(mode="json")
    contents = {
        "data/marketplace.json": {"simulated": True, "config": config},
        "features/manifest.json": {"dense_columns": []},
        "lsa/products/manifest.json": {"zero_vectors": 0},
        "tfidf/products/manifest.json": {"zero_vectors": 0},
        "oracle/products/manifest.json": {"zero_vectors": 0},
        "dcn/seed-1/run.json": {},
        "dcn_lsa/seed-1/run.json": {},
        "dcn_oracle/seed-1/run.json": {},
        "encoders/pretrain/training.json": {},
        "encoders/align/training.json": {},
        "embeddings/products/manifest.json": {"zero_vectors": 0},
        "embeddings/queries/manifest.json": {"zero_vectors": 0},
        "dcn_pq/seed-1/run.json": {},
        "table1.json": {},
        "probes.json": {},
        "table2.json": {},
        "sweep.json": {},
    }
    for second, (name, content) in enumerate(contents.items()):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        os.utime(path, (second, second))
    return tmp_path


def skeleton_tables(out: Path) -> dict[str, Path | None]:
    tables = {"dcn_lsa": "lsa", "dcn_oracle": "oracle", "dcn_pq": "embeddings"}
    return {"dcn": None, **{variant: out / name for variant, name in tables.items()}}


def described(out: Path, config: dict[str, Any]) -> None:
    """Replace the settings of the marketplace in `out`, as old as it was."""
    path = out / "data" / "marketplace.json"
    path.write_text(json.dumps({"simulated": True, "config": config}))
    os.utime(path, (0, 0))


def test_a_finished_demo_is_resumed(skeleton: Path) -> None:
    """Though rankers that read no DashCLIP vectors are older than these."""
    refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="mixed")


def test_the_demo_knows_which_tables_each_variant_reads(tmp_path: Path) -> None:
    assert tables_read(plan(sweep_config(tmp_path, seeds=2), tmp_path)) == {
        "dcn": None,
        "dcn_lexical": tmp_path / "tfidf",
        "dcn_pq_sim": tmp_path / "embeddings",
        "dcn_pq_sim_history": tmp_path / "embeddings",
        "dcn_pq_sim_history_random": tmp_path / "lsa",
        "dcn_pq_sim_history_lsa": tmp_path / "lsa",
        "dcn_pq_sim_history_tiers": tmp_path / "embeddings",
        "dcn_pq_sim_history_tiers_lsa": tmp_path / "lsa",
        "dcn_pq_sim_history_oracle": tmp_path / "oracle",
        "dcn_pq_sim_history_tiers_oracle": tmp_path / "oracle",
    }


def test_the_demo_names_its_ceilings_and_its_second_baseline(tmp_path: Path) -> None:
    config = sweep_config(tmp_path, seeds=2)
    assert (config.second_baseline, tuple(config.ceilings)) == ("dcn_lexical", CEILINGS)
    for name, variant in config.variants.items():
        reads_truth = variant.product_table == tmp_path / "oracle" / "products"
        assert variant.ceiling == reads_truth, name


def test_random_tables_are_as_wide_as_the_vectors_that_they_stand_beside() -> None:
    config = load_config(Path("encoders_small"), EncodersConfig)
    encoder = EncoderConfig.preset(config.size, vocab_size=1000, **config.architecture)
    assert config.align is not None
    assert (config.align.kept_dims or encoder.embedding_dim) == DIM


def test_fresh_deletes_the_parts_of_the_demo_and_nothing_else(skeleton: Path) -> None:
    for name in ("notes.txt", "dcn/notes.txt"):
        (skeleton / name).write_text("mine")
    (skeleton / "rankers.log").write_text("finished")
    delete_demo(skeleton, skeleton_tables(skeleton))
    left = [path.relative_to(skeleton).as_posix() for path in skeleton.rglob("*")]
    assert sorted(left) == ["dcn", "dcn/notes.txt", "notes.txt"]


def test_neither_deletes_nor_resumes_over_data_of_another_kind(skeleton: Path) -> None:
    (skeleton / "data" / "marketplace.json").rename(skeleton / "data" / "thesis.txt")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        delete_demo(skeleton, skeleton_tables(skeleton))
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="mixed")
    assert (skeleton / "features").exists()


def test_a_demo_of_another_size_is_not_resumed(skeleton: Path) -> None:
    with pytest.raises(ValueError, match="of size tiny, not small; use --fresh or another --out"):
        refuse_another_demo(skeleton, skeleton_tables(skeleton), size="small", preset="mixed")


def test_a_demo_of_another_preset_is_not_resumed(skeleton: Path) -> None:
    sentence = "is a marketplace of preset mixed, not retrieval; use --fresh or another --out"
    with pytest.raises(ValueError, match=sentence):
        refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="retrieval")


def test_a_demo_of_the_preset_that_is_asked_for_is_resumed(skeleton: Path) -> None:
    described(skeleton, MarketplaceConfig.preset("tiny", "retrieval").model_dump(mode="json"))
    refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="retrieval")


def test_a_demo_from_before_there_were_presets_is_one_of_mixed_ads(skeleton: Path) -> None:
    config = MarketplaceConfig.preset("tiny").model_dump(mode="json")
    del config["candidates"]
    described(skeleton, config)
    refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="mixed")


@pytest.mark.parametrize("changed", [{"users": 999}, {"unheard_of": 1}])
def test_a_marketplace_with_settings_of_its_own_is_not_the_demos(
    skeleton: Path, changed: dict[str, int]
) -> None:
    described(skeleton, MarketplaceConfig.preset("tiny").model_dump(mode="json") | changed)
    with pytest.raises(ValueError, match="with other settings than the demo's; use --fresh"):
        refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="mixed")


@pytest.mark.parametrize(
    ("newer", "stale"),
    [
        ("data/marketplace.json", "features"),
        ("features/manifest.json", "dcn/seed-1/run.json"),
        ("lsa/products/manifest.json", "dcn_lsa/seed-1/run.json"),
        ("oracle/products/manifest.json", "dcn_oracle/seed-1/run.json"),
        ("encoders/align/training.json", "embeddings"),
        ("embeddings/queries/manifest.json", "dcn_pq/seed-1/run.json"),
    ],
)
def test_parts_older_than_what_they_are_made_from_are_not_reused(
    skeleton: Path, newer: str, stale: str
) -> None:
    os.utime(skeleton / newer, (99, 99))
    with pytest.raises(ValueError, match=f"{stale} was made from an earlier .*use --fresh"):
        refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="mixed")


def test_parts_whose_source_was_deleted_are_not_reused(skeleton: Path) -> None:
    (skeleton / "data" / "marketplace.json").unlink()
    with pytest.raises(ValueError, match="features was made from an earlier"):
        refuse_another_demo(skeleton, skeleton_tables(skeleton), size="tiny", preset="mixed")

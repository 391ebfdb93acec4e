"""Tables over worlds from made-up runs: against loops over the same files, and what is said of gaps."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from experiments.config import load_config
from experiments.encoders.config import EncodersConfig
from experiments.encoders.table1 import SliceResult, Table1
from experiments.runtime.environment import environment
from experiments.statistics.intervals import Interval
from experiments.sweeps.sweep import SweepConfig
from experiments.worlds.plan import WorldsConfig, plan, table1_files
from experiments.worlds.report import publish_worlds, write_report
from experiments.worlds.table1 import build_table1
from experiments.worlds.table2 import Table2OverWorlds, build_table2
from experiments.worlds.text import table2_markdown, worlds_summary
from features.schema import FeatureConfig
from ranking.metrics import roc_auc
from tests.experiments.sweeps.sweep_folders import write_sweep

VARIANTS = (
    "dcn",
    "dcn_lexical",
    "dcn_pq_sim",
    "dcn_pq_sim_history",
    "dcn_pq_sim_history_lsa",
    "dcn_pq_sim_history_oracle",
)


def worlds(**changes: Any) -> WorldsConfig:
    sweep = load_config(Path("demo"), SweepConfig)
    return WorldsConfig(
        **{
            "size": "tiny",
            "worlds": (3, 4, 9),
            "presets": ("mixed",),
            "ranker_seeds": 2,
            "encoder_seeds": 2,
            "encoders": load_config(Path("encoders_tiny"), EncodersConfig),
            "features": load_config(Path("marketplace_features"), FeatureConfig),
            "sweep": sweep.model_copy(update={"variants": {name: sweep.variants[name] for name in VARIANTS}}),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three worlds of made-up runs."""
    out = tmp_path_factory.mktemp("worlds") / "out"
    for sweep in plan(worlds(), out):
        variants = tuple(sweep.config.variants)
        write_sweep(sweep.folder, variants=variants, seeds=sweep.config.seeds, rng_seed=sweep.world)
    return out


@pytest.fixture(scope="module")
def table(out: Path) -> Table2OverWorlds:
    found = build_table2(worlds(), out, "mixed")
    assert found is not None
    return found


def auc_of(run: Path, *, slice_name: str | None = None) -> float:
    rows = pq.read_table(run / "predictions" / "test.parquet").to_pandas()
    if slice_name is not None:
        bought = rows["slice_has_purchases"]
        rows = rows[bought if slice_name == "has_purchases" else ~bought]
    return roc_auc(rows["clicked"].to_numpy(), rows["logit"].to_numpy().astype(np.float64))


def gains_of(out: Path, variant: str, against: str, slice_name: str | None = None) -> list[float]:
    """By loops over the files: the mean difference in each world."""
    found = []
    for sweep in plan(worlds(), out):
        differences = []
        for encoder in range(2):
            for seed in sweep.config.seeds:
                names = (sweep.variants[name] for name in (variant, against))
                aucs = [
                    auc_of(
                        sweep.folder / name[min(encoder, len(name) - 1)] / f"seed-{seed}",
                        slice_name=slice_name,
                    )
                    for name in names
                ]
                differences.append(aucs[0] - aucs[1])
        found.append(sum(differences) / len(differences))
    return found


@pytest.mark.parametrize("variant", ["dcn_lexical", "dcn_pq_sim_history", "dcn_pq_sim_history_lsa"])
def test_a_difference_to_the_baseline_is_that_of_loops_over_the_runs(
    out: Path, table: Table2OverWorlds, variant: str
) -> None:
    gains = gains_of(out, variant, "dcn")
    found = table.variants[variant].auc_diff
    assert found is not None
    assert list(found.by_world.values()) == pytest.approx(gains)
    low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(gains), low, high))
    pair = table.pair(variant, "dcn")
    assert pair is not None
    assert (pair.mean, pair.low, pair.high) == (found.mean, found.low, found.high)


def test_what_the_history_brings_is_measured_against_the_same_vectors_without_it(
    out: Path, table: Table2OverWorlds
) -> None:
    history = table.variants["dcn_pq_sim_history"]
    assert history.history_against == "dcn_pq_sim"
    assert history.history_gain is not None
    gains = gains_of(out, "dcn_pq_sim_history", "dcn_pq_sim")
    assert list(history.history_gain.by_world.values()) == pytest.approx(gains)
    lsa = table.variants["dcn_pq_sim_history_lsa"]  # no variant has LSA vectors and no history
    assert (lsa.history_against, lsa.history_gain) == (None, None)


def test_seeds_that_were_not_trained_are_missing_and_those_not_asked_for_take_no_part(
    out: Path, table: Table2OverWorlds
) -> None:
    more = build_table2(worlds(ranker_seeds=3), out, "mixed")
    assert more is not None
    trained_of_each = 4 + 2 * 2  # two variants read the vectors of two encoders
    assert len(more.missing) == 3 * trained_of_each
    assert all("not trained yet" in sentence for sentence in more.missing)
    fewer = build_table2(worlds(ranker_seeds=1), out, "mixed")
    assert fewer is not None
    assert fewer.missing == table.missing == ()
    assert (table.variants["dcn"].runs, fewer.variants["dcn"].runs) == (3 * 2, 3)
    assert table.variants["dcn_pq_sim"].runs == 3 * 2 * 2


def test_shares_are_those_of_the_means_over_worlds(out: Path, table: Table2OverWorlds) -> None:
    assert table.ceiling == "dcn_pq_sim_history_oracle"
    part, whole = (gains_of(out, name, "dcn") for name in ("dcn_pq_sim", "dcn_pq_sim_history_oracle"))
    found = table.variants["dcn_pq_sim"]
    assert found.ceiling_share is not None
    assert found.ceiling_share.mean == pytest.approx(sum(part) / sum(whole))
    assert table.variants["dcn_pq_sim_history_oracle"].ceiling_share is None
    assert found.reachable_share is not None
    reachable = table.best_auc.mean - table.variants["dcn"].auc.mean
    assert found.reachable_share.mean == pytest.approx(np.mean(part) / reachable)


def test_the_second_baseline_has_differences_of_its_own(out: Path, table: Table2OverWorlds) -> None:
    found = table.variants["dcn_pq_sim"].second_diff
    assert found is not None
    assert list(found.by_world.values()) == pytest.approx(gains_of(out, "dcn_pq_sim", "dcn_lexical"))
    assert table.variants["dcn_lexical"].second_diff is None
    assert table.variants["dcn"].auc_diff is None


def test_the_gap_is_the_gain_with_purchases_minus_that_without(out: Path, table: Table2OverWorlds) -> None:
    with_purchases, without = (
        np.array(gains_of(out, "dcn_pq_sim_history", "dcn", part))
        for part in ("has_purchases", "no_purchases")
    )
    found = table.variants["dcn_pq_sim_history"].purchases_gap
    assert found is not None
    assert list(found.by_world.values()) == pytest.approx(list(with_purchases - without))


def test_a_world_with_a_missing_run_is_compared_by_the_seeds_that_are_left_and_named(
    out: Path, tmp_path: Path
) -> None:
    part = tmp_path / "out"
    shutil.copytree(out, part)
    sweep = plan(worlds(), part)[0]
    gone = f"seed-{sweep.config.seeds[0]}"
    shutil.rmtree(sweep.folder / "dcn_pq_sim_history_lsa" / gone)
    shutil.rmtree(part / "world-9")
    found = build_table2(worlds(), part, "mixed")
    assert found is not None
    assert set(found.variants["dcn_pq_sim"].auc.by_world) == {3, 4}
    difference = found.variants["dcn_pq_sim_history_lsa"].auc_diff
    assert difference is not None
    kept = f"seed-{sweep.config.seeds[1]}"
    lsa, dcn = (auc_of(sweep.folder / name / kept) for name in ("dcn_pq_sim_history_lsa", "dcn"))
    assert difference.by_world[3] == pytest.approx(lsa - dcn)
    assert found.missing == (
        f"world 3 mixed: dcn_pq_sim_history_lsa seed {sweep.config.seeds[0]}: was not run",
        "world 9 mixed: nothing is finished",
    )
    assert "preliminary" in table2_markdown(found)


def test_nothing_finished_gives_no_table(tmp_path: Path) -> None:
    assert build_table2(worlds(), tmp_path, "mixed") is None
    assert build_table1(worlds(), tmp_path) is None
    assert write_report(worlds(), tmp_path) == []


def test_table_1_is_the_mean_of_the_worlds_tables_and_pairs_its_differences(tmp_path: Path) -> None:
    config, generator = worlds(), np.random.default_rng(5)
    means: dict[str, dict[int, list[float]]] = {"bm25": {}, "dashclip": {}}
    for world in config.worlds:
        for path in table1_files(config, tmp_path, world):
            values = {"bm25": 0.3 + generator.normal() / 10, "dashclip": 0.5 + generator.normal() / 10}
            part = SliceResult(
                queries=10 + world,
                products=5,
                rows={row: {"mrr": Interval(value, 0.0, 1.0)} for row, value in values.items()},
            )
            made = environment()
            shared = {"simulated": True, "k": 10, "pool": "catalogue", "candidate": "dashclip"}
            table = Table1(**dict(part), **shared, slices={"misspelt": part}, environment=made)
            path.parent.mkdir(parents=True, exist_ok=True)
            table.write(path)
            for row, value in values.items():
                means[row].setdefault(world, []).append(value)
    found = build_table1(config, tmp_path)
    assert found is not None
    for name in ("all", "misspelt"):
        part_found = found.slices[name]
        assert part_found.queries == 13 + 14 + 19
        theirs, ours = ([np.mean(of[world]) for world in config.worlds] for of in means.values())
        gains = np.subtract(ours, theirs)
        low, high = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
        difference = part_found.differences["bm25"]["mrr"]
        assert (difference.mean, difference.low, difference.high) == pytest.approx(
            (np.mean(gains), low, high)
        )
        assert part_found.rows["bm25"]["mrr"].by_world[4] == pytest.approx(np.mean(means["bm25"][4]))
    assert worlds_summary(found.model_dump(mode="json"), "worlds_table1").count("| DashCLIP") == 2


def test_published_files_are_those_of_the_report(out: Path, tmp_path: Path) -> None:
    part = tmp_path / "out"
    shutil.copytree(out, part)
    written = write_report(worlds(), part, command="dashclip proofs worlds OUT")
    assert [path.name for path in written] == ["worlds_mixed.json", "worlds_mixed.md", "worlds_mixed.png"]
    results, readme = tmp_path / "results", tmp_path / "results.md"
    readme.write_text("before\n<!-- results:begin -->\n<!-- results:end -->\nafter\n")
    *published, page = publish_worlds(part, results=results, readme=readme)
    assert [path.read_bytes() for path in published] == [path.read_bytes() for path in written]
    assert page == readme
    assert "**Table 2 over 3 worlds, preset mixed** (**simulated data**" in readme.read_text()
    assert "`dashclip proofs worlds OUT`, commit abc1234, 2026-01-02" in readme.read_text()
    content = json.loads((results / "worlds_mixed.json").read_text())
    assert content["simulated"] is True
    diff = content["variants"]["dcn_pq_sim"]["auc_diff"]
    assert diff["low"] <= diff["mean"] <= diff["high"]


def test_a_report_with_gaps_is_not_published(out: Path, tmp_path: Path) -> None:
    part = tmp_path / "out"
    shutil.copytree(out, part)
    shutil.rmtree(part / "world-9")
    write_report(worlds(), part)
    with pytest.raises(ValueError, match=r"worlds_mixed.json lacks 1 part"):
        publish_worlds(part, results=tmp_path / "results", readme=tmp_path / "page.md")
    with pytest.raises(FileNotFoundError, match="proofs worlds"):
        publish_worlds(tmp_path / "empty", results=tmp_path / "results", readme=tmp_path / "page.md")
    assert not (tmp_path / "results").exists()

"""The second baseline and the ceilings of table 2: compared with, shown, never taken for the best variant."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.config import ConfigError, parse_config
from experiments.reports.table2 import sections as evidence_table2
from experiments.reports.table2.page import to_html
from experiments.reports.table2.plots import _look
from experiments.reports.table2.sections import table2_sections
from experiments.reports.table2.text import findings, to_markdown
from experiments.statistics.intervals import paired_difference, paired_share, percentile_interval
from experiments.sweeps.sweep import SweepConfig
from experiments.sweeps.table2 import Table2, build_report, to_json
from ranking.metrics import roc_auc
from tests.experiments.sweeps.sweep_folders import write_sweep

SEEDS, RESAMPLES = (1, 2, 3), 20
#: What each made-up variant knows: nothing, relevance, relevance, relevance and taste.
BASELINE, SECOND, OURS, CEILING = VARIANTS = ("dcn", "dcn_q_sim", "dcn_pq_sim", "dcn_pq_sim_history")
MARK = "[ceiling: knows the simulated truth]"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(
        tmp_path_factory.mktemp("yardsticks") / "sweep",
        rows=1500,
        variants=VARIANTS,
        seeds=SEEDS,
        second_baseline=SECOND,
        ceilings=[CEILING],
        titles={SECOND: "DCN + one cosine"},
    )


@pytest.fixture(scope="module")
def table(sweep: Path) -> Table2:
    return build_report(sweep, bootstrap_resamples=RESAMPLES)


@pytest.fixture(scope="module")
def content(table: Table2) -> dict[str, Any]:
    return json.loads(json.dumps(to_json(table), allow_nan=False))


def predictions(sweep: Path, variant: str, seed: int) -> dict[str, np.ndarray]:
    found = pq.read_table(sweep / variant / f"seed-{seed}" / "predictions" / "test.parquet")
    return {name: found[name].to_numpy() for name in ("clicked", "logit", "user_index")}


def auc(run: dict[str, np.ndarray], rows: np.ndarray | slice = slice(None)) -> float:
    return roc_auc(run["clicked"][rows], run["logit"][rows].astype(np.float64))


def test_the_ceiling_is_not_the_best_variant_though_it_gains_most(
    table: Table2, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {name: found.get("auc_diff_mean", 0) for name, found in content["variants"].items()}
    assert max(gains, key=gains.__getitem__) == CEILING
    names = ("forest", "slice_bars", "calibration", "learning_curves")
    drawn = SimpleNamespace(**dict.fromkeys(names, lambda table: "<svg/>"))
    monkeypatch.setattr(evidence_table2, "plots", drawn)
    lift, slices, *_ = table2_sections(table)
    assert f"The most gains {table.variants[OURS].title}:" in lift.answer
    assert lift.answer.startswith("Yes: 1 of 1 variants gains AUC")
    assert slices.answer.startswith(table.variants[OURS].title)
    assert MARK not in slices.answer


def test_the_ceiling_is_called_one_wherever_it_is_named(table: Table2, content: dict[str, Any]) -> None:
    assert content["ceilings"] == [CEILING]
    assert [name for name, found in content["variants"].items() if found.get("is_ceiling")] == [CEILING]
    assert table.variants[CEILING].title.endswith(MARK)
    title = table.variants[CEILING].title.removesuffix(MARK)
    for text in (to_markdown(table), to_html(table)):
        assert text.count(MARK) >= len(table.slices)
        assert text.count(title) == text.count(title + MARK)
    assert MARK not in "".join(table.variants[name].title for name in (BASELINE, SECOND, OURS))


def test_the_share_of_the_ceiling_is_paired_by_seed(sweep: Path, content: dict[str, Any]) -> None:
    by_seed = {
        name: np.array([auc(predictions(sweep, name, seed)) for seed in SEEDS])
        for name in (BASELINE, OURS, CEILING)
    }
    expected = paired_share(by_seed[OURS] - by_seed[BASELINE], by_seed[CEILING] - by_seed[BASELINE])
    assert expected is not None
    found = content["share_of_ceiling"]
    assert (found["variant"], found["ceiling"]) == (OURS, CEILING)
    limits = [found[f"share_{name}"] for name in ("mean", "low", "high")]
    assert limits == pytest.approx([expected.mean, expected.low, expected.high], abs=1e-9)
    assert 0 < found["share_low"] < found["share_high"] < 1
    assert content["variants"][OURS]["share_of_ceiling"][CEILING]["share_mean"] == found["share_mean"]
    assert "share_of_ceiling" not in content["variants"][CEILING]
    assert "share_of_ceiling" not in content["variants"][BASELINE]


def test_its_interval_over_users_is_that_of_whole_users_drawn_again(
    sweep: Path, content: dict[str, Any]
) -> None:
    runs = {
        (name, seed): predictions(sweep, name, seed) for name in (BASELINE, OURS, CEILING) for seed in SEEDS
    }
    user_N = runs[BASELINE, 1]["user_index"]
    users, rng, shares = np.unique(user_N), np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = users[rng.integers(0, len(users), size=len(users))]
        rows = np.concatenate([np.flatnonzero(user_N == user) for user in drawn])
        mean = {
            name: np.mean([auc(runs[name, seed], rows) for seed in SEEDS])
            for name in (BASELINE, OURS, CEILING)
        }
        shares.append((mean[OURS] - mean[BASELINE]) / (mean[CEILING] - mean[BASELINE]))
    expected = percentile_interval(0, shares)
    found = content["share_of_ceiling"]
    assert (found["share_users_low"], found["share_users_high"]) == pytest.approx(
        (expected.low, expected.high), abs=1e-9
    )


def test_differences_to_the_second_baseline_stand_beside_those_to_the_first(
    sweep: Path, content: dict[str, Any]
) -> None:
    assert content["second_baseline"] == SECOND
    one, other = ([auc(predictions(sweep, name, seed)) for seed in SEEDS] for name in (CEILING, SECOND))
    expected = paired_difference(one, other)
    found = content["variants"][CEILING]["over_second_baseline"]
    assert [found[f"auc_diff_{name}"] for name in ("mean", "low", "high")] == pytest.approx(
        [expected.mean, expected.low, expected.high], abs=1e-9
    )
    for name in (BASELINE, SECOND):
        assert "over_second_baseline" not in content["variants"][name]
    assert set(content["variants"][OURS]["slices"]) == {
        key for key, one in content["variants"][OURS]["slices"].items() if "over_second_baseline" in one
    }


def test_findings_end_with_both_yardsticks(table: Table2, content: dict[str, Any]) -> None:
    *_, over_second, share = findings(table)
    mean = content["variants"][OURS]["over_second_baseline"]["auc_diff_mean"]
    assert over_second.startswith(
        f"Over the second baseline, DCN + one cosine: {mean:+.4f} AUC of {table.variants[OURS].title} (95 %"
    )
    assert "0 of 1 variants surely gain over it." in over_second, "it knows no more"
    found = content["share_of_ceiling"]
    assert f"reaches {100 * found['share_mean']:.0f} % of what" in share
    assert (
        f"(95 % interval {100 * found['share_low']:.0f} … {100 * found['share_high']:.0f} % over seeds"
        in share
    )


def test_the_table_has_a_column_for_the_second_baseline(table: Table2) -> None:
    text = to_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    heading = next(line for line in lines if "Share of gain" in line)
    assert "Over DCN + one cosine (95 % over seeds)" in heading
    of_second = next(line for line in lines if line.startswith("| DCN + one cosine"))
    assert heading.count("|") == of_second.count("|")
    assert "Over DCN + one cosine (95 % over seeds)</th>" in to_html(table)


def test_a_sweep_without_yardsticks_says_nothing_of_them(tmp_path: Path) -> None:
    table = build_report(write_sweep(tmp_path / "sweep", seeds=(1, 2)), bootstrap_resamples=2)
    content = to_json(table)
    assert (content["second_baseline"], content["ceilings"], content["share_of_ceiling"]) == (None, [], None)
    text = to_markdown(table) + " ".join(findings(table))
    assert "second baseline" not in text
    assert "ceiling" not in text


def test_ten_variants_look_different(tmp_path: Path) -> None:
    names = ("dcn", *(f"dcn_{i}" for i in range(9)))
    table = build_report(write_sweep(tmp_path / "sweep", variants=names, seeds=(1,)), bootstrap_resamples=2)
    assert len({_look(table, name)[0] for name in names}) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second_baseline": "dcn_lexical"}, "one of the variants besides the baseline, .*got 'dcn_lexical'"),
        ({"second_baseline": "dcn"}, "one of the variants besides the baseline"),
        ({"variants": {"dcn": {"ceiling": True}}}, "'dcn' is a baseline"),
        (
            {"simulated": False, "variants": {"dcn": {}, "true": {"ceiling": True}}},
            "the sweep is not simulated",
        ),
    ],
)
def test_yardsticks_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    content = {"name": "s", "features": "f", "simulated": True, "variants": {"dcn": {}, "b": {}}, **changes}
    with pytest.raises(ConfigError, match=message):
        parse_config(content, SweepConfig, where="a test")

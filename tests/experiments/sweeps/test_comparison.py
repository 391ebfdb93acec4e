"""Intervals over users are those of whole users drawn again, row by row, slice by slice, run by run."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from experiments.reports.table2.text import power_sentences, to_markdown
from experiments.statistics.intervals import percentile_interval
from experiments.sweeps.table2 import Table2, build_report, to_json
from ranking.metrics import evaluate, roc_auc
from tests.experiments.sweeps.sweep_folders import write_sweep

RESAMPLES, SEEDS, VARIANTS = 12, (1, 2), ("dcn", "dcn_pq_sim_history")
#: Slices by column and value.
SLICES = {
    "all": None,
    "has_purchases": ("slice_has_purchases", True),
    "no_purchases": ("slice_has_purchases", False),
    "seen_product": ("slice_seen_product", True),
    "unseen_product": ("slice_seen_product", False),
    "head_query": ("slice_query_frequency", 2),
    "torso_query": ("slice_query_frequency", 1),
    "tail_query": ("slice_query_frequency", 0),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(
        tmp_path_factory.mktemp("comparison") / "sweep", rows=500, users=40, seeds=SEEDS, variants=VARIANTS
    )


@pytest.fixture(scope="module")
def table(sweep: Path) -> Table2:
    return build_report(sweep, bootstrap_resamples=RESAMPLES, rng_seed=3)


def columns(sweep: Path, variant: str, seed: int) -> dict[str, np.ndarray]:
    found = pq.read_table(sweep / variant / f"seed-{seed}" / "predictions" / "test.parquet")
    return {name: found[name].to_numpy() for name in found.column_names}


def kept(run: dict[str, np.ndarray], slice_: str) -> dict[str, np.ndarray]:
    where = SLICES[slice_]
    mask_N = np.ones(len(run["clicked"]), bool) if where is None else run[where[0]] == where[1]
    return {name: column[mask_N] for name, column in run.items()}


def gains_of_resampled_users(sweep: Path, slice_: str) -> np.ndarray:
    """Seed-averaged gain in AUC when the rows of the drawn users are repeated, by resample."""
    users = np.unique(columns(sweep, "dcn", 1)["user_index"])
    draws, gains = np.random.default_rng(3), []
    for _ in range(RESAMPLES):
        drawn = users[draws.integers(0, len(users), size=len(users))]
        by_seed = []
        for seed in SEEDS:
            aucs = []
            for variant in VARIANTS:
                run = kept(columns(sweep, variant, seed), slice_)
                rows = np.concatenate([np.flatnonzero(run["user_index"] == user) for user in drawn])
                aucs.append(roc_auc(run["clicked"][rows], run["logit"][rows].astype(np.float64)))
            by_seed.append(aucs[1] - aucs[0])
        gains.append(np.mean(by_seed))
    return np.array(gains)


@pytest.mark.parametrize("slice_", SLICES)
def test_the_interval_over_users_is_that_of_whole_users_drawn_again(
    sweep: Path, table: Table2, slice_: str
) -> None:
    difference = table.variants[VARIANTS[1]].slices[slice_].difference
    assert difference is not None
    expected = percentile_interval(difference.auc.mean, gains_of_resampled_users(sweep, slice_))
    found = difference.auc_users
    assert (found.mean, found.low, found.high) == pytest.approx(
        (expected.mean, expected.low, expected.high), abs=1e-9
    )


def test_the_page_says_how_many_clicks_there_are_and_which_difference_they_could_show(
    sweep: Path, table: Table2
) -> None:
    difference = table.variants[VARIANTS[1]].slices["all"].difference
    assert difference is not None
    gains = difference.auc_users
    assert gains.low is not None
    assert gains.high is not None
    shown = (gains.high - gains.low) / 2 / 1.959964 * (1.959964 + 0.841621)
    assert difference.detectable == pytest.approx(shown, rel=1e-6)
    [said] = power_sentences(table)
    clicks = int(columns(sweep, "dcn", 1)["clicked"].sum())
    assert said.startswith(f"{clicks} of the 500 test impressions were clicked")
    assert f"of {shown:.4f} or more" in said
    assert said in to_markdown(table)
    assert f"({clicks} clicks)" in to_markdown(table)
    written = to_json(table)["variants"][VARIANTS[1]]
    assert written["auc_diff_users_detectable"] == difference.detectable


def test_the_interval_of_the_purchases_gap_is_that_of_the_same_drawn_users(
    sweep: Path, table: Table2
) -> None:
    gap = table.variants[VARIANTS[1]].purchases_gap
    assert gap is not None
    gains = [gains_of_resampled_users(sweep, slice_) for slice_ in ("has_purchases", "no_purchases")]
    expected = percentile_interval(gap.auc.mean, gains[0] - gains[1])
    assert (gap.auc_users.low, gap.auc_users.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def with_column(folder: Path, name: str, value_N: np.ndarray) -> Path:
    """The same sweep with another column in its predictions."""
    write_sweep(folder, rows=500, users=40, seeds=SEEDS, variants=VARIANTS)
    for path in folder.glob("*/seed-*/predictions/test.parquet"):
        table = pq.read_table(path)
        place = table.schema.get_field_index(name)
        values = pa.array(value_N).cast(table.schema.field(name).type)
        pq.write_table(table.set_column(place, name, values), path)
    return folder


def test_a_test_without_purchases_says_that_every_history_is_empty(table: Table2, tmp_path: Path) -> None:
    folder = with_column(tmp_path / "sweep", "slice_has_purchases", np.zeros(500, bool))
    notes = build_report(folder, bootstrap_resamples=2, rng_seed=3).notes
    assert any("every history is empty" in note for note in notes)
    assert not any("every history is empty" in note for note in table.notes)


def test_impressions_of_nobody_are_drawn_one_by_one_like_those_of_strangers(
    sweep: Path, tmp_path: Path
) -> None:
    """Strangers with numbers of their own, in the order in which nobody's impressions are numbered."""
    user_N = columns(sweep, "dcn", 1)["user_index"].astype(np.int64)
    nobody_N = np.random.default_rng(0).random(500) < 0.4
    own_N = np.where(nobody_N, 500 - np.cumsum(nobody_N), 500 + user_N)
    options = {"bootstrap_resamples": RESAMPLES, "rng_seed": 3}
    nobody = build_report(
        with_column(tmp_path / "nobody", "user_index", np.where(nobody_N, -1, user_N)), **options
    )
    strangers = build_report(with_column(tmp_path / "strangers", "user_index", own_N), **options)
    for slice_ in SLICES:
        found, expected = (table.variants[VARIANTS[1]].slices[slice_] for table in (nobody, strangers))
        assert found == expected
        assert nobody.slices[slice_].users <= 40
    assert nobody.slices["all"].users == len(np.unique(user_N[~nobody_N]))
    assert f"{nobody_N.sum()} of 500 test impressions are without a user" in " ".join(nobody.notes)
    assert strangers.slices["all"].users == nobody.slices["all"].users + nobody_N.sum()


@pytest.mark.parametrize("slice_", SLICES)
def test_auc_within_users_and_queries_is_that_of_the_slices_own_rows(
    sweep: Path, table: Table2, slice_: str
) -> None:
    measured = table.variants[VARIANTS[1]].slices[slice_]
    metrics = []
    for seed in SEEDS:
        run = kept(columns(sweep, VARIANTS[1], seed), slice_)
        metrics.append(
            evaluate(run["clicked"], run["logit"], queries_N=run["query_index"], users_N=run["user_index"])
        )
    for found, name in (
        (measured.gauc_user_mean, "gauc_user"),
        (measured.gauc_query_mean, "gauc_query"),
        (measured.logloss_mean, "log_loss"),
    ):
        assert found == pytest.approx(np.mean([single.require(name) for single in metrics]))


@pytest.mark.parametrize("slice_", SLICES)
def test_differences_in_auc_and_log_loss_are_paired_by_seed(sweep: Path, table: Table2, slice_: str) -> None:
    difference = table.variants[VARIANTS[1]].slices[slice_].difference
    assert difference is not None
    assert difference.seeds == len(SEEDS)
    for found, name in ((difference.auc, "auc"), (difference.norm_logloss, "norm_log_loss")):
        levels = []
        for variant in VARIANTS:
            runs = [kept(columns(sweep, variant, seed), slice_) for seed in SEEDS]
            levels.append([evaluate(run["clicked"], run["logit"]).require(name) for run in runs])
        expected = stats.ttest_rel(levels[1], levels[0]).confidence_interval(0.95)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.mean == pytest.approx(np.mean(levels[1]) - np.mean(levels[0]))


def test_progress_counts_runs_and_resamples_to_their_ends(sweep: Path) -> None:
    said: list[tuple[str, int, int]] = []
    build_report(sweep, bootstrap_resamples=2, progress=lambda *told: said.append(told))
    runs = len(VARIANTS) * len(SEEDS)
    assert said == [
        *(("evaluate runs", done, runs) for done in range(1, runs + 1)),
        *(("bootstrap over users", done, 2) for done in (1, 2)),
    ]

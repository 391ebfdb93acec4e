"""The report of made-up sweeps whose truth is known: its numbers, its gaps, its page."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import stats
from typer.testing import CliRunner

from experiments.reports.table2 import plots
from experiments.reports.table2 import sections as evidence_table2
from experiments.reports.table2.page import to_html, write_report
from experiments.reports.table2.sections import table2_sections
from experiments.reports.table2.text import (
    console_table,
    findings,
    gap_sentences,
    rows_of_slice,
    to_markdown,
)
from experiments.statistics.intervals import Interval
from experiments.sweeps.comparison import Difference
from experiments.sweeps.results import SweepResultsError
from experiments.sweeps.table2 import build_report, to_json
from ranking.metrics import calibration, evaluate, normalized_log_loss, roc_auc
from tests.experiments.sweeps.sweep_folders import PAPER_VARIANTS, write_sweep

QUICK = 20  # bootstrap resamples


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("sweep") / "example", rows=1500)


@pytest.fixture(scope="module")
def table(sweep):
    return build_report(sweep, bootstrap_resamples=QUICK)


@pytest.fixture(scope="module")
def content(table):
    return json.loads(json.dumps(to_json(table), allow_nan=False))


@pytest.fixture
def without_plots(monkeypatch):
    """Plots take most of a page's time and are drawn by the tests about them."""
    names = ("forest", "slice_bars", "calibration", "learning_curves")
    drawn = SimpleNamespace(**dict.fromkeys(names, lambda table: "<svg/>"))
    monkeypatch.setattr(evidence_table2, "plots", drawn)


@pytest.fixture
def copied(sweep, tmp_path):
    return shutil.copytree(sweep, tmp_path / "copy")


def predictions(sweep, variant, seed):
    table = pq.read_table(sweep / variant / f"seed-{seed}" / "predictions" / "test.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def test_json_has_the_promised_keys(content):
    assert content["simulated"] is True
    assert content["seeds"] == 3
    assert 0.5 < content["best_auc"] < 1
    assert list(content["variants"]) == list(PAPER_VARIANTS)
    level = {"auc_mean", "auc_sd", "norm_logloss_mean", "norm_logloss_sd", "calibration_mean"}
    difference = {"auc_diff_mean", "auc_diff_low", "auc_diff_high", "gain_share"}
    difference |= {"auc_diff_users_low", "auc_diff_users_high", "norm_logloss_diff_mean"}
    for name, variant in content["variants"].items():
        for found in (variant, *variant["slices"].values()):
            assert level <= found.keys()
            assert (difference & found.keys()) == (set() if name == "dcn" else difference)
        assert list(variant["slices"]) == [
            "all",
            "has_purchases",
            "no_purchases",
            "seen_product",
            "unseen_product",
            "head_query",
            "torso_query",
            "tail_query",
        ]


def test_levels_equal_the_metrics_of_the_predictions(sweep, content):
    for name, variant in content["variants"].items():
        runs = [predictions(sweep, name, seed) for seed in (1, 2, 3)]
        for key, column, value in (
            ("all", "clicked", None),
            ("no_purchases", "slice_has_purchases", False),
            ("unseen_product", "slice_seen_product", False),
            ("head_query", "slice_query_frequency", 2),
            ("tail_query", "slice_query_frequency", 0),
        ):
            kept = [
                {c: v[run[column] == value] if value is not None else v for c, v in run.items()}
                for run in runs
            ]
            aucs = [roc_auc(run["clicked"], run["logit"]) for run in kept]
            losses = [normalized_log_loss(run["clicked"], run["logit"]) for run in kept]
            found = variant["slices"][key]
            assert found["rows"] == len(kept[0]["clicked"])
            assert found["auc_mean"] == pytest.approx(np.mean(aucs))
            assert found["auc_sd"] == pytest.approx(np.std(aucs, ddof=1))
            assert found["norm_logloss_mean"] == pytest.approx(np.mean(losses))
            assert found["norm_logloss_sd"] == pytest.approx(np.std(losses, ddof=1))
            assert found["calibration_mean"] == pytest.approx(
                np.mean([calibration(run["clicked"], run["logit"]) for run in kept])
            )
        alone = evaluate(
            runs[0]["clicked"],
            runs[0]["logit"],
            queries_N=runs[0]["query_index"],
            users_N=runs[0]["user_index"],
        )
        assert abs(variant["gauc_query_mean"] - alone.gauc_query) < 0.02
        assert abs(variant["gauc_user_mean"] - alone.gauc_user) < 0.02


def test_differences_are_paired_by_seed_with_a_student_interval(sweep, content):
    for name in PAPER_VARIANTS[1:]:
        aucs = {
            variant: [roc_auc(run["clicked"], run["logit"]) for run in runs]
            for variant in ("dcn", name)
            for runs in [[predictions(sweep, variant, seed) for seed in (1, 2, 3)]]
        }
        expected = stats.ttest_rel(aucs[name], aucs["dcn"]).confidence_interval(0.95)
        found = content["variants"][name]
        assert (found["auc_diff_low"], found["auc_diff_high"]) == pytest.approx((expected.low, expected.high))
        assert found["auc_diff_mean"] == pytest.approx(
            found["auc_mean"] - content["variants"]["dcn"]["auc_mean"]
        )


def test_the_share_of_gain_is_that_of_the_true_probabilities(sweep, content):
    truth = pq.read_table(sweep / "truth" / "impressions.parquet")
    run = predictions(sweep, "dcn", 1)
    place = pc.index_in(run["impression_id"], value_set=truth["impression_id"].combine_chunks()).to_numpy()
    best = roc_auc(run["clicked"], truth["click_probability"].to_numpy()[place])
    assert content["best_auc"] == pytest.approx(best)
    baseline = content["variants"]["dcn"]["auc_mean"]
    for name in PAPER_VARIANTS[1:]:
        found = content["variants"][name]
        assert found["gain_share"] == pytest.approx((found["auc_mean"] - baseline) / (best - baseline))


def test_expected_auc_differences_are_those_of_all_pairs_under_the_true_probabilities(sweep, content):
    truth = pq.read_table(sweep / "truth" / "impressions.parquet")
    ids, chances = (truth[name].to_pylist() for name in ("impression_id", "click_probability"))
    probability = dict(zip(ids, chances, strict=True))

    def expected_auc(variant, seed):
        run = predictions(sweep, variant, seed)
        clicked_N = np.array([probability[row] for row in run["impression_id"].tolist()])
        logit_N = run["logit"]
        chance_NN = np.outer(clicked_N, 1 - clicked_N)
        np.fill_diagonal(chance_NN, 0)
        won_NN = np.sign(logit_N[:, None] - logit_N) / 2 + 0.5
        return (chance_NN * won_NN).sum() / chance_NN.sum()

    one, other = "dcn_pq_sim_history", "dcn_pq_sim"
    by_seed = [[expected_auc(name, seed) for seed in (1, 2, 3)] for name in (one, other)]
    interval = stats.ttest_rel(*by_seed).confidence_interval(0.95)
    pair = next(pair for pair in content["pairs"] if (pair["variant"], pair["against"]) == (one, other))
    found = [pair[f"expected_auc_diff_{name}"] for name in ("low", "mean", "high")]
    assert found == pytest.approx(
        [interval.low, np.mean(by_seed[0]) - np.mean(by_seed[1]), interval.high], abs=1e-9
    )


def test_the_made_up_effects_are_found(content):
    variants = content["variants"]
    assert variants["dcn_pq_sim"]["auc_diff_low"] > 0
    assert variants["dcn_pq_sim_history"]["auc_diff_low"] > 0
    assert variants["dcn_pq_sim_history"]["auc_diff_users_low"] > 0
    assert abs(variants["dcn_pq_sim_history_random"]["gain_share"]) < 0.3
    assert variants["dcn_pq_sim_history"]["purchases_gap_low"] > 0
    pair = next(
        pair
        for pair in content["pairs"]
        if (pair["variant"], pair["against"]) == ("dcn_pq_sim_history", "dcn_pq_sim")
    )
    assert pair["auc_diff_low"] > 0


def difference(mean, seeds, users):
    """Of AUC, with its intervals over seeds and over users."""
    return Difference(
        seeds=3,
        auc=Interval(mean, *seeds),
        auc_users=Interval(mean, *users),
        norm_logloss=None,
        gain_share=mean / 0.1,
    )


GAIN = difference(0.02, (0.01, 0.03), (0.005, 0.035))
LOSS = difference(-0.02, (-0.03, -0.01), (-0.035, -0.005))
#: Sure over seeds, but the users drawn explain it; and the other way round.
ONLY_SEEDS = difference(0.03, (0.01, 0.05), (-0.01, 0.07))
ONLY_USERS = difference(-0.01, (-0.03, 0.01), (-0.015, -0.005))
FIRST, SECOND, THIRD = PAPER_VARIANTS[1:]


def with_differences(table, found, gaps=None):
    """The table with other differences: by variant, then by slice; those not named are not told apart."""
    variants = {}
    for name, variant in table.variants.items():
        if name != table.baseline:
            of_slice = found.get(name, {})
            slices = {
                key: replace(measured, difference=of_slice.get(key, ONLY_SEEDS))
                for key, measured in variant.slices.items()
            }
            gap = (gaps or {}).get(name, variant.purchases_gap)
            variant = replace(variant, slices=slices, purchases_gap=gap)
        variants[name] = variant
    return replace(table, variants=variants)


def test_a_gain_or_a_loss_is_what_both_intervals_agree_on(table):
    changed = with_differences(
        table, {FIRST: {"all": GAIN}, SECOND: {"all": LOSS}, THIRD: {"all": ONLY_SEEDS}}
    )
    gains, loses, neither = findings(changed)
    assert "gains 0.0200 AUC against DCN baseline (95 % interval over seeds 0.0100 … 0.0300, over" in gains
    assert "20 % of the reachable gain" in gains
    assert "loses 0.0200 AUC against DCN baseline" in loses
    assert "is not told apart from DCN baseline: +0.0300 AUC" in neither
    assert " gain" not in loses + neither
    [only_users] = findings(with_differences(table, {FIRST: {"all": ONLY_USERS}}))[:1]
    assert "is not told apart from DCN baseline: -0.0100 AUC" in only_users
    shares = {row.title: row.gain_share for row in rows_of_slice(changed, "all")}
    assert list(shares.values()) == ["", "20 %", "–", "–"]


def test_a_gain_is_green_and_a_loss_red_wherever_they_are_shown(table, without_plots):
    differences = {FIRST: {"all": GAIN}, SECOND: {"all": LOSS}, THIRD: {"all": ONLY_SEEDS}}
    changed = with_differences(table, differences)
    page = to_html(changed)
    assert page.count('<td class="number above">') == page.count('<td class="number above">+0.0200</td>') == 1
    assert page.count('<td class="number below">') == page.count('<td class="number below">-0.0200</td>') == 1
    shown = list(console_table(changed).columns[2].cells)
    assert shown[:4] == ["", "[bold green]+0.0200[/bold green]", "[bold red]-0.0200[/bold red]", "+0.0300"]


def test_the_answer_names_the_best_of_the_sure_gains_and_losses_where_nothing_gains(table, without_plots):
    def answer(found):
        return table2_sections(with_differences(table, found))[0].answer

    one = answer({FIRST: {"all": GAIN}, SECOND: {"all": LOSS}, THIRD: {"all": ONLY_SEEDS}})
    title = table.variants[FIRST].title
    assert one.startswith("Yes: 1 of 3 variants gains AUC against DCN baseline. ")
    assert f"The most gains {title}: +0.0200" in one
    none = answer({SECOND: {"all": LOSS}})
    assert none == (
        "No: none of 3 variants surely gains AUC against DCN baseline. "
        f"{table.variants[SECOND].title} loses some."
    )


def test_for_whom_names_sure_slices_only_and_how_few_impressions_one_has(table, without_plots):
    def answer(of_slice):
        found = {FIRST: {"all": GAIN, **of_slice}}
        return table2_sections(with_differences(table, found))[1].answer

    title = table.variants[FIRST].title
    few = f"products not seen in training (only {table.slices['unseen_product'].rows} impressions)"
    told = answer({"has_purchases": LOSS, "seen_product": GAIN})
    assert told.startswith(
        f"{title} gains for products seen in training +0.0200 (95 % interval over seeds 0.0100 … 0.0300, "
        "over users 0.0050 … 0.0350); it loses for users with purchases"
    )
    assert "; it is not told apart from the baseline for users without purchases" in told
    assert few in told
    nothing = answer({})
    assert nothing.startswith(f"{title} is not told apart from the baseline for users with purchases")
    assert "gains" not in nothing
    all_gain = answer(dict.fromkeys(table.slices, GAIN))
    assert "gains most for users with purchases" in all_gain
    assert "not told apart" not in all_gain


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (GAIN, "users with purchases gain 0.0200 AUC more than users without (95 % interval over seeds 0.01"),
        (LOSS, "users with purchases are worse off by 0.0200 AUC than users without (95 % interval"),
        (ONLY_SEEDS, "users with and without purchases are not told apart (+0.0300 AUC, 95 % interval over"),
        (ONLY_USERS, "users with and without purchases are not told apart (-0.0100 AUC, 95 % interval over"),
        (difference(0.01, (None, None), (0, 1)), "differ by +0.0100 AUC in what it does; one seed gives no"),
    ],
)
def test_users_with_purchases_gain_more_where_both_intervals_say_so(table, gap, said):
    sentence = gap_sentences(with_differences(table, {FIRST: {"has_purchases": GAIN}}, {FIRST: gap}))[0]
    assert said in sentence
    assert ("gain" in sentence) == (gap is GAIN)


def test_losing_less_is_no_gain(table):
    sentence = gap_sentences(with_differences(table, {FIRST: {"has_purchases": LOSS}}, {FIRST: GAIN}))[0]
    assert "users with purchases are better off by 0.0200 AUC than users without" in sentence


def test_a_slice_of_fewer_than_a_thousand_impressions_says_so(table, without_plots):
    few, many = table.slices["unseen_product"], table.slices["seen_product"]
    assert few.rows < 1_000 <= many.rows
    page, text = to_html(table), to_markdown(table)
    assert f"<h3>Products not seen in training (only {few.rows} impressions)</h3>" in page
    assert "<h3>Products seen in training</h3>" in page
    assert f"## Products not seen in training ({few.rows} impressions, which are few)" in text
    assert f"## Products seen in training ({many.rows:,} impressions)" in text


def test_the_same_folder_gives_the_same_numbers_again(sweep, content):
    again = to_json(build_report(sweep, bootstrap_resamples=QUICK))
    assert {**again, "created": None} == {**content, "created": None}


def test_another_rng_seed_moves_only_the_intervals_over_users(sweep, content):
    other = to_json(build_report(sweep, rng_seed=1, bootstrap_resamples=QUICK))["variants"]["dcn_pq_sim"]
    before = content["variants"]["dcn_pq_sim"]
    moved = {key for key in before if before[key] != other[key]} - {"slices"}
    assert moved
    assert all("users" in key for key in moved)


def test_missing_failed_and_broken_runs_are_named_and_the_rest_compared(copied, without_plots):
    shutil.rmtree(copied / "dcn_pq_sim" / "seed-1")
    (copied / "dcn_pq_sim" / "seed-2" / "run.json").unlink()
    (copied / "dcn_pq_sim_history" / "seed-2" / "run.json").unlink()
    (copied / "dcn_pq_sim_history" / "seed-2" / "failure.txt").write_text(
        "Traceback\nValueError: out of luck\n"
    )
    path = copied / "dcn" / "seed-3" / "predictions" / "test.parquet"
    path.write_bytes(path.read_bytes()[:200])
    broken = pq.read_table(copied / "dcn_pq_sim_history" / "seed-1" / "predictions" / "test.parquet")
    logits = broken["logit"].to_numpy().copy()
    logits[7] = np.nan
    broken = broken.drop_columns(["logit"]).append_column("logit", [logits])
    pq.write_table(broken, copied / "dcn_pq_sim_history" / "seed-1" / "predictions" / "test.parquet")

    table = build_report(copied, bootstrap_resamples=QUICK)
    reasons = {(run.variant, run.seed): run.reason for run in table.missing}
    assert reasons.pop(("dcn", 3)).startswith("predictions/test.parquet cannot be read")
    assert reasons == {
        ("dcn_pq_sim", 1): "was not run",
        ("dcn_pq_sim", 2): "did not finish (no run.json)",
        ("dcn_pq_sim_history", 1): "predictions/test.parquet has the logit nan in row 7",
        ("dcn_pq_sim_history", 2): "failed: ValueError: out of luck",
    }
    content = to_json(table)
    assert (content["seeds"], content["seeds_asked"]) == (1, 3)
    assert content["variants"]["dcn_pq_sim_history_random"]["diff_seeds"] == 2
    # Only seed 3 of dcn_pq_sim is left, and dcn has no seed 3: levels, but no difference.
    assert content["variants"]["dcn_pq_sim"]["seeds"] == [3]
    assert "auc_diff_mean" not in content["variants"]["dcn_pq_sim"]
    for text in (to_markdown(table), to_html(table)):
        assert "did not finish (no run.json)" in text
        assert "5 of 12 runs are missing" in text


def test_constructed_impressions_are_never_called_real(tmp_path):
    sweep = write_sweep(tmp_path, rows=200, seeds=(1, 2), simulated=False, truth=False, constructed=True)
    table = build_report(sweep, bootstrap_resamples=QUICK)
    assert to_json(table)["constructed"] is True
    for text in (to_markdown(table), to_html(table), console_table(table).title):
        assert "CONSTRUCTED impressions" in text
        assert not re.search("Real data|: real data", text)


def test_a_variant_without_any_run_is_named(copied):
    shutil.rmtree(copied / "dcn_pq_sim")
    content = to_json(build_report(copied, bootstrap_resamples=QUICK))
    assert "dcn_pq_sim" not in content["variants"]
    assert "The variant dcn_pq_sim has no finished run and is not in the table." in content["notes"]


def test_without_the_baseline_there_are_levels_and_pairs_but_no_differences(copied, without_plots):
    shutil.rmtree(copied / "dcn")
    table = build_report(copied, bootstrap_resamples=QUICK)
    assert to_json(table)["variants"]["dcn_pq_sim"].get("auc_diff_mean") is None
    assert ("dcn_pq_sim_history", "dcn_pq_sim") in table.pairs
    assert "The variant dcn has no finished run" in to_html(table)


def test_one_seed_gives_a_difference_without_an_interval_over_seeds(tmp_path, without_plots):
    table = build_report(write_sweep(tmp_path / "one", seeds=(4,)), bootstrap_resamples=QUICK)
    found = to_json(table)["variants"]["dcn_pq_sim"]
    assert found["auc_diff_mean"] is not None
    assert (found["auc_sd"], found["auc_diff_low"], found["auc_diff_high"]) == (None, None, None)
    assert found["auc_diff_users_low"] < found["auc_diff_mean"] < found["auc_diff_users_high"]
    assert "one seed gives no interval" in findings(table)[0]
    assert "one seed gives no interval" in to_html(table)


def test_without_truth_there_is_no_best_auc_and_the_note_says_so(tmp_path, without_plots):
    table = build_report(
        write_sweep(tmp_path / "real", truth=False, simulated=False), bootstrap_resamples=QUICK
    )
    content = to_json(table)
    assert content["best_auc"] is None
    assert content["variants"]["dcn_pq_sim"]["gain_share"] is None
    assert "true click probabilities are not known" in content["notes"][0]
    page = to_html(table)
    assert "Real data" in page
    assert "SIMULATED" not in page
    assert "reachable gain</th>" not in page


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "does not exist any more"),
        (
            lambda path: pq.write_table(pq.read_table(path).slice(300), path),
            "test impressions (the first is",
        ),
    ],
)
def test_truth_that_is_gone_or_incomplete_is_said(copied, damage, sentence):
    sweep = json.loads((copied / "sweep.json").read_text())
    sweep["truth"] = "truth/impressions.parquet"  # relative to the sweep folder
    (copied / "sweep.json").write_text(json.dumps(sweep))
    assert to_json(build_report(copied, bootstrap_resamples=QUICK))["best_auc"] is not None
    damage(copied / "truth" / "impressions.parquet")
    content = to_json(build_report(copied, bootstrap_resamples=QUICK))
    assert content["best_auc"] is None
    assert sentence in content["notes"][0]


def test_a_log_without_queries_has_no_query_slices_and_shows_its_floor(tmp_path, without_plots):
    sweep = write_sweep(
        tmp_path / "films",
        variants=("dcn", "dcn_p_history"),
        queries=False,
        truth=False,
        simulated=False,
        floor={"name": "item mean + user mean", "auc": 0.6975, "norm_logloss": 0.95},
    )
    table = build_report(sweep, bootstrap_resamples=QUICK)
    content = to_json(table)
    assert "head_query" not in content["slices"]
    assert content["variants"]["dcn"]["gauc_query_mean"] is None
    assert content["variants"]["dcn"]["undefined"] == {"gauc_query": "no row has a query"}
    assert content["floor"]["auc"] == 0.6975
    assert any("has no queries" in note for note in content["notes"])
    for text in (to_markdown(table), to_html(table)):
        assert "item mean + user mean" in text
        assert "0.6975" in text
        assert "0.7787" not in text  # the paper's variants are others


def test_a_slice_of_one_class_is_null_with_its_reason(copied, without_plots):
    _leave_no_click_on_new_products(copied)
    table = build_report(copied, bootstrap_resamples=QUICK)
    found = to_json(table)["variants"]["dcn_pq_sim"]["slices"]["unseen_product"]
    assert found["auc_mean"] is None
    assert "auc_diff_mean" not in found
    assert "no row was clicked" in found["undefined"]["auc"]
    assert "no row was clicked" in to_html(table)


def test_runs_tested_on_different_rows_are_refused(copied):
    path = copied / "dcn_pq_sim" / "seed-2" / "predictions" / "test.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(SweepResultsError, match="tested on different rows"):
        build_report(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist; give the folder that `dashclip sweep` wrote"),
        ("{", "Invalid JSON"),
        ('{"name": "x", "variants": ["a"], "seeds": [1], "simulated": true}', "baseline: Field required"),
        (
            '{"name": "x", "baseline": "b", "variants": ["a"], "seeds": [1], "simulated": true}',
            "the baseline 'b' must be one of the variants",
        ),
        (
            '{"name": "x", "baseline": "a", "variants": ["a"], "seeds": [1], "simulated": true}',
            r"has no finished run \(a, seed 1: was not run\)",
        ),
    ],
)
def test_a_folder_that_is_no_sweep_is_refused_in_a_sentence(tmp_path, text, message):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(SweepResultsError, match=message):
        build_report(tmp_path)


def _leave_no_click_on_new_products(sweep):
    for path in sweep.glob("*/seed-*/predictions/test.parquet"):
        table = pq.read_table(path)
        seen = pc.or_(table["slice_seen_product"], pc.equal(table["clicked"], 1))
        place = table.schema.get_field_index("slice_seen_product")
        pq.write_table(table.set_column(place, "slice_seen_product", seen), path)


def test_writing_leaves_the_three_files_and_nothing_else(table, content, tmp_path, without_plots):
    paths = write_report(table, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "table2.json",
        "table2.md",
    ]
    assert json.loads(paths["json"].read_text()) == content


def test_the_command_writes_the_report_into_the_sweep_folder(copied):
    from experiments.cli import app

    result = CliRunner().invoke(app, ["report", str(copied), "--resamples", "200"])
    assert result.exit_code == 0, result.output
    assert (copied / "report.html").exists()
    assert "SIMULATED" in result.output


def test_plots_are_drawn_from_little_too(copied):
    """One seed, no learning curve, a slice of one class."""
    for seed in (2, 3):
        for folder in copied.glob(f"*/seed-{seed}"):
            shutil.rmtree(folder)
    for path in copied.glob("*/seed-1/metrics.json"):
        path.write_text('{"history": []}')
    _leave_no_click_on_new_products(copied)
    table = build_report(copied, bootstrap_resamples=QUICK)
    for draw in (plots.forest, plots.slice_bars, plots.calibration):
        assert draw(table).rstrip().endswith("</svg>")
    assert plots.learning_curves(table) is None


def test_truth_is_looked_up_beside_the_sweep_and_not_in_the_current_folder(copied, tmp_path, monkeypatch):
    sweep = json.loads((copied / "sweep.json").read_text())
    sweep["truth"] = "truth/impressions.parquet"
    (copied / "sweep.json").write_text(json.dumps(sweep))
    (copied / "truth").rename(tmp_path / "truth")  # where a relative path would find it from here
    monkeypatch.chdir(tmp_path)
    assert to_json(build_report(copied, bootstrap_resamples=QUICK))["best_auc"] is None


def test_the_failure_of_an_earlier_attempt_does_not_hide_a_finished_run(copied):
    run = copied / "dcn" / "seed-1"
    (run / "failure.txt").write_text("Traceback\nRuntimeError: killed")
    assert build_report(copied, bootstrap_resamples=QUICK).missing == ()
    (run / "run.json").unlink()
    (missing,) = build_report(copied, bootstrap_resamples=QUICK).missing
    assert missing.reason == "failed: RuntimeError: killed"


def test_square_brackets_of_names_and_errors_are_printed_as_they_are(copied):
    from experiments.cli import app

    sweep = json.loads((copied / "sweep.json").read_text())
    sweep |= {"name": "mine [bold]", "titles": {"dcn_pq_sim": "DCN [x]"}}
    sweep["floor"] = {"name": "floor [/y]", "auc": 0.6}
    (copied / "sweep.json").write_text(json.dumps(sweep))
    (copied / "dcn_pq_sim" / "seed-1" / "run.json").unlink()
    (copied / "dcn_pq_sim" / "seed-1" / "failure.txt").write_text("IndexError: [/dim] row [3]")
    result = CliRunner().invoke(app, ["report", str(copied), "--resamples", "200"])
    assert result.exit_code == 0, result.output
    for text in ("mine [bold]", "DCN [x]", "floor [/y]", "IndexError: [/dim] row [3]"):
        assert text in result.output

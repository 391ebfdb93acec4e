"""The importance report of made-up measurements whose order is known: its words, pictures, page and CSV."""

import csv
import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.importance.result import (
    FeatureImportance,
    ImportanceFileError,
    Selection,
    SelectionSide,
    Spread,
)
from experiments.reports.importance import page as importance_page
from experiments.reports.importance import plots as pictures
from experiments.reports.importance.page import to_csv, to_html, write_importance_report
from experiments.reports.importance.text import (
    feature_title,
    group_sentences,
    leading_sentences,
    overlap,
    paper_sentence,
    slice_sentences,
    tiers,
    with_titles,
)
from experiments.reports.plot_style import png_of
from experiments.statistics.cells import with_limits
from experiments.statistics.intervals import surely_positive
from tests.experiments.reports.importance_reports import COUNTERS, SLICES, made_report
from tests.experiments.reports.page_reader import assert_whole_and_self_contained

FEW = ("product embedding", "query embedding", "position", "price", "user_clicks_28d")


@pytest.fixture(scope="module")
def report():
    return made_report()


@pytest.fixture(scope="module")
def page(report):
    return to_html(report)


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes nearly all of a page's time and is tested by the tests about pictures."""
    monkeypatch.setattr(importance_page, "png_of", lambda figure: b"")


def entry(name="position", mean=0.01, low=0.008, high=0.012, **changes):
    content = {
        "name": name,
        "kind": "feature",
        "members": (name,),
        "method": "permutation",
        "metric": "auc",
        "slice": "all",
        "mean": mean,
        "sd": 0.001,
        "low": low,
        "high": high,
        "runs": 5,
    }
    return FeatureImportance(**content | changes)


def words_of(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_the_page_is_whole_and_says_simulated_before_any_number(report, page):
    assert 0 < page.index("SIMULATED data") < page.index("<h1>")
    reader = assert_whole_and_self_contained(page)
    assert len(reader.sources) == 6
    for needed in (
        "dashclip importance runs/demo",
        "abc1234",
        "2026-11-23 05:00 UTC",
        "0.7989 ± 0.0012",
        "share credit",
        "Permutation and ablation agree",
        "1/4.2",
        "its mean over the training rows",
    ):
        assert needed in reader.text


def test_every_feature_and_group_stands_in_the_tables_with_its_numbers(report, page):
    text = assert_whole_and_self_contained(page).text
    for found in report.features:
        if found.slice == "all":
            assert with_limits(found) in text
            assert (feature_title(found.name) if found.kind == "feature" else found.name) in text


def test_the_words_name_the_planted_order(report):
    first, second, third, *_ = leading_sentences(report)
    assert first.startswith("Position matters most")
    assert second.startswith("Next comes product embedding")
    for name in ("purchase history", "query embedding", "product CTR, 28 d"):
        assert name in third
    assert "order among them is not certain" in third


def test_the_loss_in_words_goes_from_the_base_to_the_base_minus_the_mean():
    few = made_report(features=("position",), groups={}, slices={}, runs=1)
    mean = few.ranked()[0].mean
    assert f"from 0.7989 to {0.7989 - mean:.4f}" in leading_sentences(few)[0]


def test_what_reaches_zero_is_called_unclear_and_what_hurts_is_called_harmful(report):
    features = (
        entry("price", 0.01, 0.008, 0.012),
        entry("query", 0.001, -0.001, 0.003),
        entry("brand", 0.0, 0.0, 0.0),
        entry("user_clicks_28d", -0.002, -0.003, -0.001),
    )
    first, unclear, harmful = leading_sentences(report.model_copy(update={"features": features}))
    assert first.startswith("Price matters most")
    assert unclear.startswith("For 2 of 4 features nothing shows")
    assert unclear.endswith("(query and brand).")
    assert "rank better without what it reads in user clicks, 28 d" in harmful


def test_a_large_mean_with_a_wide_interval_is_named_first_but_not_called_sure(report):
    features = (
        entry("product embedding", 0.08, -0.05, 0.21),
        entry("position", 0.04, 0.03, 0.05),
        entry("price", 0.01, -0.01, 0.03),
    )
    two = report.model_copy(update={"features": features, "runs": report.runs[:2]})
    wide, sure, unclear, few = leading_sentences(two)
    assert wide.startswith("On average product embedding (0.0800, 95 % interval -0.0500 … 0.2100) costs most")
    assert "the 2 models differ too much to be sure" in wide
    assert sure.startswith("The largest loss that is sure is that of position")
    assert unclear.endswith("(price).")
    assert few.startswith("Intervals rest on 2 models only")


def test_names_in_sentences_become_titles_as_whole_words(report):
    said = with_titles(report, "query_product_ctr_7d and product_ctr_7d, not xproduct_ctr_7d")
    assert said == "query × product CTR, 7 d and product CTR, 7 d, not xproduct_ctr_7d"


def test_a_model_that_reads_nothing_has_no_leader(undrawn):
    report = made_report(features=FEW, groups={}, slices={}, truth={}, noise=0.0)
    (sentence,) = leading_sentences(report)
    assert sentence.startswith("For 5 of 5 features nothing shows")
    assert assert_whole_and_self_contained(to_html(report)).sources


@given(
    st.lists(
        st.tuples(st.floats(-0.1, 0.1), st.floats(0, 0.05)).map(lambda pair: (pair[0], abs(pair[1]))),
        min_size=1,
        max_size=12,
    )
)
def test_tiers_keep_everything_in_order_and_cut_only_between_disjoint_intervals(drawn):
    ranked = [
        entry(str(place), mean, mean - half, mean + half)
        for place, (mean, half) in enumerate(sorted(drawn, reverse=True))
    ]
    found = tiers(ranked)
    assert [one for tier in found for one in tier] == ranked
    for tier in found:
        assert all(overlap(tier[0], one) for one in tier)
    for above, below in itertools.pairwise(found):
        assert not overlap(above[0], below[0])


def test_entries_without_an_interval_are_never_told_apart_or_called_sure():
    alone = entry(mean=0.5, low=None, high=None)
    assert overlap(alone, entry(mean=-0.5, low=-0.6, high=-0.4))
    assert not surely_positive(alone)
    assert with_limits(alone) == "0.5000"
    assert with_limits(entry(mean=-0.00001, low=-0.00002, high=0.00001)) == "0.0000 (0.0000 … 0.0000)"


@pytest.mark.parametrize(
    ("truth", "verdict"),
    [
        ({"query embedding": 0.03, "product embedding": 0.02, "purchase history": 0.01}, "so they do here"),
        ({"price": 0.03, "query embedding": 0.02, "product embedding": 0.01}, "2 of the three do here"),
    ],
)
def test_the_papers_claim_is_held_against_what_was_found(truth, verdict):
    report = made_report(truth=truth, groups={}, slices={}, noise=0.0001)
    assert verdict in paper_sentence(report)


def test_a_model_without_embeddings_says_nothing_of_the_papers_leaders():
    assert paper_sentence(made_report(features=("price", "position"), groups={}, slices={})) is None


def test_purchase_history_is_found_to_matter_to_users_with_purchases_only(report):
    (sentence,) = slice_sentences(report)
    assert sentence.startswith("Purchase history matters more for users with purchases")
    assert sentence.endswith("than for users without, where nothing shows that it helps.")


def test_a_group_worth_more_than_its_features_is_said_to_hide_them(report):
    said = " ".join(group_sentences(report))
    assert "DCN tower 0.07" in said
    assert "stand in for each other" in said


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("query_product_ctr_7d", "query × product CTR, 7 d"),
        ("user_impressions_28d", "user impressions, 28 d"),
        ("user_id", "user id"),
        ("similarity product-query", "similarity product-query"),
        ("ctr_7d", "ctr 7d"),
    ],
)
def test_feature_names_read_as_titles(name, title):
    assert feature_title(name) == title


def test_the_csv_has_a_row_for_every_entry(report):
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(rows) == len(report.features)
    by_key = {(row["name"], row["kind"], row["method"], row["metric"], row["slice"]): row for row in rows}
    for found in report.features:
        row = by_key[found.name, found.kind, found.method, found.metric, found.slice]
        assert float(row["mean"]) == found.mean
        assert row["members"].split(";") == list(found.members)


def test_a_missing_limit_is_an_empty_cell():
    report = made_report().model_copy(update={"features": (entry(low=None, high=None, sd=None),)})
    (row,) = csv.DictReader(io.StringIO(to_csv(report)))
    assert (row["sd"], row["low"], row["high"]) == ("", "", "")


def test_bars_are_hollow_exactly_where_the_interval_reaches_zero(report):
    figure = pictures.bars(report, "permutation")
    axes = figure.axes[0]
    shown = report.ranked()[: pictures.MAX_BARS]
    assert [bar.get_width() for bar in axes.patches] == [found.mean for found in shown]
    filled = [bar.get_facecolor()[:3] != (1, 1, 1) for bar in axes.patches]
    assert filled == [surely_positive(found) for found in shown]
    assert f"Features, the first {len(shown)} of {len(report.ranked())}" in words_of(figure)


def test_cells_of_the_heat_map_are_coloured_only_where_they_are_sure(report):
    figure = pictures.slice_heat(report)
    image = figure.axes[0].images[0].get_array()
    leaders = report.ranked()[: pictures.MAX_HEAT_ROWS]
    columns = ["all", *SLICES]
    assert image.shape == (len(leaders), len(columns))
    for column, slice in enumerate(columns):
        there = {found.name: found for found in report.ranked(slice=slice)}
        for row, leader in enumerate(leaders):
            found = there[leader.name]
            sure = surely_positive(found) or (found.high is not None and found.high < 0)
            assert image[row, column] == pytest.approx(1000 * found.mean if sure else 0)


def test_the_agreement_picture_follows_the_leaders_of_every_method(report):
    words = words_of(pictures.agreement(report))
    for needed in ("Permutation", "Ablation", "Integrated gradients", "position  1", "1  position", "0.86"):
        assert needed in words
    assert "Two seeds, ablation" in words


def test_a_feature_that_one_method_puts_far_down_is_named_below_the_places():
    report = made_report()
    flipped = tuple(
        found.model_copy(update={"mean": 0.0})
        if (found.name, found.method) == ("position", "integrated_gradients")
        else found
        for found in report.features
    )
    words = words_of(pictures.agreement(report.model_copy(update={"features": flipped})))
    assert "beyond 20: position" in words
    assert "1  position" not in words


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ("permutation",), "runs": 1, "groups": {}, "slices": {}},
        {"methods": ("integrated_gradients",), "features": FEW},
        {"features": ("position",), "groups": {}},
        {"features": COUNTERS[:2], "groups": {}, "truth": {}, "noise": 0.0},
    ],
)
def test_little_is_reported_too(changes):
    report = made_report(**changes)
    assert assert_whole_and_self_contained(to_html(report)).sources
    assert to_csv(report).count("\n") == len(report.features) + 1


def test_names_cannot_break_the_page(undrawn):
    odd = "<script>alert(1)</script>"
    page = to_html(made_report(features=(odd,), groups={}, slices={}, notes=("a & b",)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "a &amp; b" in page


def test_what_retraining_without_useless_features_changed_is_shown_side_by_side(undrawn):
    sides = [
        SelectionSide(features=n, auc=a, logloss=0.3, parameters=1000 * n, megabytes=n / 2, latency_ms=n / 10)
        for n, a in ((51, 0.7989), (12, 0.7991))
    ]
    selection = Selection(
        threshold=0.0002,
        chosen_on="validation days",
        dropped=("user_clicks_28d",),
        kept=("price",),
        before=sides[0],
        after=sides[1],
        auc_difference=0.0002,
        auc_low=-0.0003,
        auc_high=0.0007,
        seeds=(1, 2),
        sentence="Without user_clicks_28d the AUC stays.",
    )
    page = to_html(made_report(features=FEW, groups={}, slices={}, selection=selection))
    text = assert_whole_and_self_contained(page).text
    for needed in (
        "chosen on the validation days",
        "Without user clicks, 28 d the AUC stays.",
        "AUC, mean over seeds 0.7989 0.7991",
        "Parameters 51,000 12,000",
        "Time to score 100 rows, ms 5.10 1.20",
    ):
        assert needed in text


def test_real_data_are_called_real(undrawn):
    real = {"features": FEW, "groups": {}, "slices": {}, "simulated": False}
    assert "Real data" in to_html(made_report(**real))
    assert "Real data" not in to_html(made_report(**real, constructed=True))


def test_writing_leaves_page_csv_and_pictures_and_removes_those_of_an_earlier_report(tmp_path):
    changes = {"features": FEW[:2], "groups": {}, "methods": ("permutation",)}
    report = made_report(**changes, slices={"has purchases": 800, "aisle: Baby": 90})
    report.write(tmp_path / "importance.json")
    paths = write_importance_report(tmp_path)
    assert set(paths) == {"page", "csv", "bars", "agreement", "slices", "aisles"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in paths.values() if path.suffix == ".png")
    made_report(**changes, slices={}).write(tmp_path / "importance.json")
    write_importance_report(tmp_path)
    assert not (tmp_path / "importance_slices.png").exists()
    assert not (tmp_path / "importance_aisles.png").exists()


def test_the_same_numbers_draw_the_same_bytes():
    report = made_report(features=FEW[:2], groups={}, slices={})
    first, second = (png_of(pictures.bars(report, "permutation")) for _ in range(2))
    assert first == second


def test_a_folder_without_a_measurement_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(ImportanceFileError, match="dashclip importance"):
        write_importance_report(tmp_path)


def test_a_base_without_spread_is_shown_alone(undrawn):
    report = made_report(features=FEW, groups={}, slices={}, runs=1, base={"auc": Spread(mean=0.7, sd=None)})
    text = assert_whole_and_self_contained(to_html(report)).text
    assert "0.7000 AUC with every feature" in text

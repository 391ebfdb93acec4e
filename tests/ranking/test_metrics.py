"""Metrics by hand, against loops, against scikit-learn, and their laws."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from ranking.metrics import (
    UndefinedMetricError,
    calibration,
    calibration_curve,
    evaluate,
    expected_roc_auc,
    grouped_auc,
    log_loss,
    normalized_log_loss,
    roc_auc,
    sigmoid,
)

# Scores from few values: ties are the rule, not the exception.
tied_rows = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40)
any_rows = st.lists(
    st.tuples(st.integers(0, 1), st.floats(-40, 40, allow_nan=False, width=32)), min_size=2, max_size=40
)


def both_classes(rows):
    labels_N, scores_N = (np.array(column) for column in zip(*rows, strict=True))
    assume(0 < labels_N.sum() < len(labels_N))
    return labels_N, scores_N.astype(np.float64)


def auc_by_loops(positive_N, negative_N, scores_N):
    """Mass of won pairs over mass of pairs, one pair at a time, without pairing a row with itself."""
    won = pairs = 0.0
    for i, score_i in enumerate(scores_N):
        for j, score_j in enumerate(scores_N):
            if i != j:
                mass = positive_N[i] * negative_N[j]
                pairs += mass
                won += mass * (1.0 if score_i > score_j else 0.5 if score_i == score_j else 0.0)
    return won / pairs


def test_auc_by_hand_counts_won_pairs_and_half_of_ties():
    # Clicks at 3 and 1, non-clicks at 2 and 1: pairs won 3>2, 3>1, lost 1<2, tied 1=1.
    assert roc_auc([1, 0, 0, 1], [3, 2, 1, 1]) == (1 + 1 + 0 + 0.5) / 4


def test_constant_scores_give_an_auc_of_one_half():
    assert roc_auc([0, 1, 0, 1, 1], np.full(5, 0.3)) == 0.5


def test_infinite_scores_are_ordered_and_tie_with_themselves():
    assert roc_auc([1, 0, 0], [np.inf, np.inf, -np.inf]) == (0.5 + 1) / 2


@given(st.one_of(tied_rows, any_rows))
def test_auc_equals_scikit_learn(rows):
    labels_N, scores_N = both_classes(rows)
    assert roc_auc(labels_N, scores_N) == pytest.approx(sklearn_metrics.roc_auc_score(labels_N, scores_N))


@given(tied_rows, st.randoms(use_true_random=False))
def test_auc_does_not_depend_on_row_order(rows, random):
    labels_N, scores_N = both_classes(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert roc_auc(labels_N[order], scores_N[order]) == roc_auc(labels_N, scores_N)


@given(tied_rows)
def test_auc_depends_only_on_the_order_of_scores(rows):
    labels_N, scores_N = both_classes(rows)
    assert roc_auc(labels_N, np.exp(scores_N) + 7) == roc_auc(labels_N, scores_N)


@given(tied_rows)
def test_reversed_scores_give_one_minus_the_auc(rows):
    labels_N, scores_N = both_classes(rows)
    assert roc_auc(labels_N, -scores_N) == pytest.approx(1 - roc_auc(labels_N, scores_N))


@given(tied_rows, st.data())
def test_a_weight_of_k_is_the_row_repeated_k_times(rows, data):
    labels_N, scores_N = both_classes(rows)
    weights_N = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))
    repeated_labels = np.repeat(labels_N, weights_N)
    assume(0 < repeated_labels.sum() < len(repeated_labels))
    assert roc_auc(labels_N, scores_N, weights_N) == pytest.approx(
        roc_auc(repeated_labels, np.repeat(scores_N, weights_N))
    )


@given(tied_rows)
def test_duplicating_every_row_changes_no_metric_but_the_counts(rows):
    labels_N, scores_N = both_classes(rows)
    once = evaluate(labels_N, scores_N).to_dict()
    twice = evaluate(np.tile(labels_N, 2), np.tile(scores_N, 2)).to_dict()
    assert twice.pop("rows") == 2 * once.pop("rows")
    assert twice.pop("clicks") == 2 * once.pop("clicks")
    assert once.pop("undefined") == twice.pop("undefined")
    assert twice == pytest.approx(once)


@given(
    st.lists(
        st.tuples(st.floats(0, 1).map(lambda p: round(p, 3)), st.integers(-3, 3)), min_size=2, max_size=15
    )
)
def test_expected_auc_equals_loops_over_pairs(rows):
    probabilities_N, scores_N = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assume(
        probabilities_N.sum() * (1 - probabilities_N).sum() - probabilities_N @ (1 - probabilities_N) > 1e-3
    )
    assert expected_roc_auc(probabilities_N, scores_N) == pytest.approx(
        auc_by_loops(probabilities_N, 1 - probabilities_N, scores_N)
    )


@given(tied_rows)
def test_expected_auc_of_certain_labels_is_the_auc(rows):
    labels_N, scores_N = both_classes(rows)
    assert expected_roc_auc(labels_N, scores_N) == pytest.approx(roc_auc(labels_N, scores_N))


def test_expected_auc_is_the_mean_over_drawn_labels():
    rng = np.random.default_rng(3)
    probabilities_N = sigmoid(rng.normal(-1, 1, size=300))
    scores_N = np.round(np.log(probabilities_N) + rng.normal(0, 0.5, size=300), 1)
    drawn = [roc_auc(rng.random(300) < probabilities_N, scores_N) for _ in range(400)]
    standard_error = np.std(drawn) / math.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected_roc_auc(probabilities_N, scores_N)) < 4 * standard_error


@given(st.lists(st.floats(0.01, 0.99), min_size=3, max_size=30), st.integers(0, 2**32 - 1))
def test_no_scores_beat_the_true_probabilities_in_expectation(probabilities, seed):
    others_N = np.random.default_rng(seed).normal(size=len(probabilities))
    best = expected_roc_auc(probabilities, probabilities)
    assert expected_roc_auc(probabilities, others_N) <= best + 1e-12


def test_log_loss_by_hand_is_in_nats():
    # p = 0.75 for a click and p = 0.75 for a non-click.
    assert log_loss([1, 0], [math.log(3), math.log(3)]) == pytest.approx(
        -(math.log(0.75) + math.log(0.25)) / 2
    )


def test_logits_of_zero_give_log_two():
    assert log_loss([0, 1, 1], np.zeros(3)) == pytest.approx(math.log(2))


def test_log_loss_of_huge_logits_is_exact_where_probabilities_would_saturate():
    assert log_loss([0, 1], [800.0, 800.0]) == 400.0


@given(any_rows)
def test_log_loss_equals_scikit_learn(rows):
    labels_N, logits_N = both_classes(rows)
    logits_N = np.clip(logits_N, -15, 15)
    theirs = sklearn_metrics.log_loss(labels_N, sigmoid(logits_N))
    assert log_loss(labels_N, logits_N) == pytest.approx(theirs, rel=1e-6)


@given(st.integers(1, 50), st.integers(1, 50))
def test_predicting_the_samples_ctr_has_a_normalised_log_loss_of_one(clicks, others):
    labels_N = np.repeat([1, 0], [clicks, others])
    logits_N = np.full(clicks + others, math.log(clicks / others))
    assert normalized_log_loss(labels_N, logits_N) == pytest.approx(1.0)
    assert calibration(labels_N, logits_N) == pytest.approx(1.0)


def test_calibration_above_one_promises_too_many_clicks():
    assert calibration([1, 0, 0, 0], np.zeros(4)) == pytest.approx(0.5 / 0.25)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("impressions", (3 * 0.5 + 4 * 0.875) / 7),
        ("equal", (0.5 + 0.875) / 2),
        ("clicks", (1 * 0.5 + 2 * 0.875) / 3),
    ],
)
def test_grouped_auc_by_hand_with_each_weighting(weighting, expected):
    groups_N = ["a", "a", "a", "b", "b", "b", "b", "c", "c"]
    labels_N = [1, 0, 0, 1, 1, 0, 0, 0, 0]
    scores_N = [2, 3, 1, 3, 2, 2, 1, 9, 8]
    # a: 2 loses to 3 and beats 1, so 1/2. b: 3 wins twice, 2 ties and wins, so 3.5/4. c has no click.
    result = grouped_auc(labels_N, scores_N, groups_N, weighting=weighting)
    assert result.auc == pytest.approx(expected)
    assert (result.groups, result.groups_used, result.rows, result.rows_used) == (3, 2, 9, 7)


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(-2, 2), st.integers(0, 5)), min_size=2, max_size=60),
    st.sampled_from(["impressions", "equal", "clicks"]),
)
def test_grouped_auc_equals_a_loop_over_groups(rows, weighting):
    labels_N, scores_N, groups_N = (np.array(column) for column in zip(*rows, strict=True))
    aucs, weights = [], []
    for group in set(groups_N.tolist()):
        labels, scores = labels_N[groups_N == group], scores_N[groups_N == group]
        if 0 < labels.sum() < len(labels):
            aucs.append(roc_auc(labels, scores))
            weights.append({"impressions": len(labels), "equal": 1, "clicks": labels.sum()}[weighting])
    assume(aucs)
    result = grouped_auc(labels_N, scores_N, groups_N, weighting=weighting)
    assert result.auc == pytest.approx(np.average(aucs, weights=weights))
    assert result.groups_used == len(aucs)


@given(tied_rows)
def test_grouped_auc_of_one_group_is_the_auc(rows):
    labels_N, scores_N = both_classes(rows)
    assert grouped_auc(labels_N, scores_N, np.zeros(len(rows), int)).auc == pytest.approx(
        roc_auc(labels_N, scores_N)
    )


def test_grouped_auc_ignores_a_shift_of_a_whole_group():
    rng = np.random.default_rng(0)
    labels_N, groups_N = rng.integers(0, 2, 200), rng.integers(0, 9, 200)
    scores_N = rng.integers(0, 6, 200)
    shifted_N = scores_N + 100 * rng.permutation(9)[groups_N]
    assert grouped_auc(labels_N, shifted_N, groups_N) == grouped_auc(labels_N, scores_N, groups_N)


@given(any_rows, st.integers(1, 12))
def test_calibration_bins_hold_every_row_once_and_keep_equal_predictions_together(rows, num_bins):
    labels_N, logits_N = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    curve = calibration_curve(labels_N, logits_N, num_bins=num_bins)
    assert curve.rows_K.sum() == len(rows)
    assert len(curve.rows_K) <= num_bins
    assert curve.rows_K.min() > 0
    assert curve.observed_K @ curve.rows_K == pytest.approx(labels_N.sum())
    assert curve.predicted_K @ curve.rows_K == pytest.approx(sigmoid(logits_N).sum())
    assert np.all(np.diff(curve.predicted_K) >= 0)
    order = np.random.default_rng(0).permutation(len(rows))
    again = calibration_curve(labels_N[order], logits_N[order], num_bins=num_bins)
    np.testing.assert_array_equal(again.rows_K, curve.rows_K)


def test_distinct_predictions_fill_bins_of_equal_size():
    curve = calibration_curve(np.arange(100) % 2, np.arange(100.0), num_bins=4)
    assert curve.rows_K.tolist() == [25, 25, 25, 25]


def test_evaluate_agrees_with_each_metric_alone():
    rng = np.random.default_rng(1)
    labels_N, logits_N = rng.integers(0, 2, 300), rng.normal(size=300)
    queries_N, users_N = rng.integers(0, 20, 300), rng.integers(0, 50, 300)
    result = evaluate(labels_N, logits_N, queries_N=queries_N, users_N=users_N)
    assert result.to_dict() == {
        "rows": 300,
        "clicks": labels_N.sum(),
        "ctr": labels_N.mean(),
        "auc": roc_auc(labels_N, logits_N),
        "log_loss": log_loss(labels_N, logits_N),
        "norm_log_loss": normalized_log_loss(labels_N, logits_N),
        "calibration": calibration(labels_N, logits_N),
        "gauc_query": grouped_auc(labels_N, logits_N, queries_N).auc,
        "gauc_user": grouped_auc(labels_N, logits_N, users_N).auc,
    }


def test_rows_without_a_query_stay_out_of_the_query_auc():
    # The fourth row would be a loss for query 0 if its -1 were taken for a group with the others.
    result = evaluate([1, 0, 1, 0], [2.0, 1.0, 0.0, 5.0], queries_N=[0, 0, -1, -1])
    assert result.gauc_query == 1.0


def test_a_data_set_without_queries_reports_no_query_auc_and_says_why():
    result = evaluate([1, 0], [1.0, 0.0], queries_N=[-1, -1], users_N=[0, 0])
    assert result.gauc_query is None
    assert result.undefined == {"gauc_query": "no row has a query"}


def test_one_class_leaves_metrics_undefined_with_a_reason():
    result = evaluate([0, 0], [1.0, 0.0])
    assert (result.auc, result.norm_log_loss, result.calibration) == (None, None, None)
    assert result.log_loss == pytest.approx(log_loss([0, 0], [1.0, 0.0]))
    with pytest.raises(UndefinedMetricError, match="no row was clicked"):
        result.require("auc")


def test_an_empty_sample_has_zero_rows_and_no_metric():
    result = evaluate([], [])
    assert (result.rows, result.auc, result.log_loss) == (0, None, None)
    assert result.undefined["auc"] == "the sample has no rows"


@pytest.mark.parametrize("metric", [roc_auc, normalized_log_loss])
@pytest.mark.parametrize(("label", "reason"), [(0, "no row was clicked"), (1, "every row was clicked")])
def test_single_class_labels_are_refused_in_a_sentence(metric, label, reason):
    with pytest.raises(UndefinedMetricError, match=reason):
        metric([label] * 3, [0.1, 0.2, 0.3])


def test_groups_of_one_class_each_have_no_grouped_auc():
    with pytest.raises(UndefinedMetricError, match="none of 2 groups"):
        grouped_auc([1, 0], [0.0, 0.0], [0, 1])


@pytest.mark.parametrize("metric", [roc_auc, log_loss, normalized_log_loss, calibration, calibration_curve])
def test_the_first_row_with_a_nan_score_is_named(metric):
    with pytest.raises(ValueError, match=r"row 2 has nan \(2 such rows\)"):
        metric([0, 1, 0, 1], [0.1, 0.2, np.nan, np.nan])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 2], [0.0, 1.0]), "labels must be 0 or 1; row 1 has 2.0"),
        (([0, 1], [0.0]), r"scores must have one entry a row \(2\), got 1"),
        (([[0, 1]], [0.0]), r"labels must have one dimension, got shape \(1, 2\)"),
        (([0, 1], [0.0, 1.0], [1.0, -1.0]), "weights must be finite and not negative; row 1"),
        (([], []), "labels is empty"),
    ],
)
def test_wrong_input_is_refused_with_what_came(arguments, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(*arguments)


def test_a_probability_outside_zero_and_one_is_refused():
    with pytest.raises(ValueError, match=r"row 1 has 1\.5"):
        expected_roc_auc([0.5, 1.5], [0.0, 1.0])


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting must be one of"):
        grouped_auc([0, 1], [0.0, 1.0], [0, 0], weighting="rows")

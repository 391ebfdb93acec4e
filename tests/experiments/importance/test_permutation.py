"""Laws of permutation importance, exactly; and Captum as the slow version that must give the same numbers."""

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.importance.captum_comparison import captum_permutation
from experiments.importance.methods.perturbation import (
    Measured,
    exchanged_logits,
    measure_exchanges,
    row_permutation,
    slice_metrics,
)
from experiments.importance.methods.shared_forward import TILE_ROWS, SharedForward
from experiments.importance.methods.tower_inputs import InputLayout
from experiments.importance.model_features import Feature, joined
from experiments.importance.split_rows import SplitRows
from ranking.metrics import roc_auc
from tests.experiments.importance.planted import (
    BY_NAME,
    FEATURES,
    features_for,
    planted_layout,
    random_layout,
    split_rows,
)
from tests.ranking.random_batches import RANKERS

FULL = RANKERS["product + query + history"]


def measured(
    layout: InputLayout,
    rows: SplitRows,
    features: list[Feature],
    *,
    seed: int = 0,
    repeats: int = 2,
    **settings: object,
) -> Measured:
    permutations = [row_permutation(len(rows), seed=seed, repeat=r) for r in range(repeats)]
    masks = {"all": np.ones(len(rows), dtype=bool)}
    return measure_exchanges(layout, rows, features, permutations=permutations, masks=masks, **settings)


def test_an_ignored_feature_has_exactly_no_importance() -> None:
    layout = planted_layout(dense=(1.0, 0.0, 0.5), ids={"user": 0.25}, cosines=(2.0, 0.0, 0.0))
    found = measured(layout, split_rows(1000), FEATURES)
    for name in ("dense 1", "brand", "device", "purchase history", "similarity query-history"):
        assert found.values[f"feature:{name}"]["all"] == {"auc": [0.0, 0.0], "logloss": [0.0, 0.0]}
    for name in ("dense 0", "dense 2", "user", "product embedding", "similarity product-query"):
        assert all(found.values[f"feature:{name}"]["all"]["logloss"]), name


def test_an_ignored_feature_has_exactly_no_importance_in_a_deep_ranker() -> None:
    layout = random_layout(FULL)
    brand = list(range(layout.sparse_start[1], layout.sparse_start[2]))
    with torch.no_grad():
        for first in (*layout.ranker.dcn_tower.cross.layers, layout.ranker.dcn_tower.deep[0]):
            first.weight[:, brand] = 0
        layout.ranker.head[0].weight[:, brand] = 0
    found = measured(layout, split_rows(1000), [BY_NAME["brand"], BY_NAME["user"]])
    assert found.values["feature:brand"]["all"] == {"auc": [0.0, 0.0], "logloss": [0.0, 0.0]}
    assert all(found.values["feature:user"]["all"]["auc"])


def test_a_feature_with_one_value_has_exactly_no_importance() -> None:
    rows = split_rows(1000)
    rows.dense_NF[:, 1] = 4
    found = measured(random_layout(FULL), rows, [BY_NAME["dense 1"]])
    assert found.values["feature:dense 1"]["all"] == {"auc": [0.0, 0.0], "logloss": [0.0, 0.0]}


def test_permuting_a_feature_with_its_ignored_duplicate_equals_permuting_it_alone() -> None:
    rows = split_rows(1000)
    rows.dense_NF[:, 1] = rows.dense_NF[:, 0]
    pair = joined("both", [BY_NAME["dense 0"], BY_NAME["dense 1"]])
    layout = planted_layout(dense=(1.0, 0.0, 0.5), ids={"user": 0.25})
    found = measured(layout, rows, [BY_NAME["dense 0"], pair])
    assert found.values["group:both"] == found.values["feature:dense 0"]
    assert found.values["group:both"]["all"]["auc"][0] != 0


def test_permuting_both_halves_of_a_split_feature_equals_permuting_the_whole() -> None:
    """x with weight 1, against x and its copy with weight 1/2 each: the same function of the same numbers."""
    rows = split_rows(1000)
    rows.dense_NF[:, 1] = rows.dense_NF[:, 0]
    whole = measured(planted_layout(dense=(1.0, 0.0, 0.5)), rows, [BY_NAME["dense 0"]])
    halves = planted_layout(dense=(0.5, 0.5, 0.5))
    pair = joined("both", [BY_NAME["dense 0"], BY_NAME["dense 1"]])
    found = measured(halves, rows, [pair, BY_NAME["dense 0"]])
    assert found.values["group:both"] == whole.values["feature:dense 0"]
    assert found.values["feature:dense 0"] != found.values["group:both"], "one half alone moves apart"


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    layout, rows = random_layout(FULL), split_rows(600)
    first = measured(layout, rows, FEATURES, seed=5)
    assert measured(layout, rows, FEATURES, seed=5) == first
    assert measured(layout, rows, FEATURES, seed=6).values != first.values


def test_more_repeats_leave_the_first_ones_as_they_were() -> None:
    layout, rows = random_layout(FULL), split_rows(600)
    two = measured(layout, rows, FEATURES, repeats=2)
    three = measured(layout, rows, FEATURES, repeats=3)
    for key, by_slice in two.values.items():
        assert three.values[key]["all"]["auc"][:2] == by_slice["all"]["auc"]


@pytest.mark.parametrize("batch_rows", [1, TILE_ROWS, 2 * TILE_ROWS + 1, 1_000_000])
def test_batch_size_changes_nothing(batch_rows: int) -> None:
    layout, rows = random_layout(FULL), split_rows(2 * TILE_ROWS + 300)
    expected = measured(layout, rows, FEATURES, batch_rows=TILE_ROWS)
    assert measured(layout, rows, FEATURES, batch_rows=batch_rows) == expected


def test_memory_for_logits_changes_nothing() -> None:
    layout, rows = random_layout(FULL), split_rows(700)
    one_at_a_time = measured(layout, rows, FEATURES, logit_bytes=1)
    assert one_at_a_time == measured(layout, rows, FEATURES)


def test_metrics_are_those_of_all_rows_and_not_a_mean_over_batches() -> None:
    layout, rows = random_layout(FULL), split_rows(2 * TILE_ROWS)
    found = measured(layout, rows, FEATURES[:1], batch_rows=TILE_ROWS)
    logit_N, logit_FAN = exchanged_logits(
        SharedForward(layout),
        rows,
        FEATURES[:1],
        permutations=[row_permutation(len(rows), seed=0, repeat=0)],
    )
    clicked_N = rows.flags["clicked"]
    assert found.base["all"] == slice_metrics(clicked_N, logit_N)
    loss = roc_auc(clicked_N, logit_N) - roc_auc(clicked_N, logit_FAN[0, 0])
    assert found.values[FEATURES[0].key]["all"]["auc"][0] == loss


@pytest.mark.parametrize("metric", ["auc", "logloss"])
@pytest.mark.parametrize("name", RANKERS)
def test_importance_is_that_of_captum_on_the_whole_ranker(name: str, metric: str) -> None:
    layout, rows = random_layout(RANKERS[name]), split_rows(900)
    features = features_for(RANKERS[name])
    found = measured(layout, rows, features, repeats=1)
    ours_F = [found.values[feature.key]["all"][metric][0] for feature in features]
    permutation = row_permutation(len(rows), seed=0, repeat=0)
    expected_F = captum_permutation(
        layout.ranker, rows, features, semantic=layout.semantic, permutation=permutation, metric=metric
    )
    # swapping two rows whose logits differ by rounding alone would change AUC by one pair in 170,000
    np.testing.assert_allclose(ours_F, expected_F, atol=1e-5 if metric == "auc" else 1e-6)


def test_ablation_is_that_of_captum_with_the_same_baselines() -> None:
    layout, rows = random_layout(FULL), split_rows(400)
    features = [feature for feature in FEATURES if not feature.entities]
    masks = {"all": np.ones(400, dtype=bool)}
    found = measure_exchanges(layout, rows, features, permutations=None, missing_columns=[2], masks=masks)
    with torch.no_grad():
        inputs, missing = layout.inputs(rows, np.arange(400)), layout.missing(1, missing_columns=[2])

        def metric(dcn_BN: torch.Tensor, dashclip_BM: torch.Tensor) -> torch.Tensor:
            hidden = [
                layout.ranker.dcn_tower.layers(dcn_BN),
                layout.ranker.dashclip_tower.layers(dashclip_BM),
            ]
            logit_B = layout.ranker.head(torch.cat(hidden, dim=1)).squeeze(1)
            return torch.tensor([roc_auc(rows.flags["clicked"], logit_B.numpy())])

        masks_of = [
            torch.zeros(1, tower.shape[1], dtype=torch.int64) for tower in (inputs.dcn_BN, inputs.dashclip_BM)
        ]
        for number, feature in enumerate(features, start=1):
            columns = layout.columns(feature)
            masks_of[0][0, columns.dcn_C] = number
            masks_of[1][0, columns.dashclip_C] = number
        attributions = FeatureAblation(metric).attribute(
            (inputs.dcn_BN, inputs.dashclip_BM),
            baselines=(missing.dcn_BN, missing.dashclip_BM),
            feature_mask=tuple(masks_of),
        )
    for feature in features:
        columns = layout.columns(feature)
        expected = torch.cat([attributions[0][0, columns.dcn_C], attributions[1][0, columns.dashclip_C]])
        assert found.values[feature.key]["all"]["auc"][0] == pytest.approx(float(expected[0]), abs=2e-5)


def test_a_logit_that_is_not_finite_stops_the_measurement() -> None:
    layout, rows = random_layout(FULL), split_rows(40)
    rows.dense_NF[7, 1] = np.nan
    with pytest.raises(ValueError, match="logit of row 7 of the split is not finite"):
        measured(layout, rows, FEATURES[:1])


def test_a_slice_of_one_class_has_no_auc_but_a_log_loss() -> None:
    rows = split_rows(60)
    rows.flags["clicked"][:30] = 0
    masks = {"first": np.arange(60) < 30}
    found = measure_exchanges(
        random_layout(FULL),
        rows,
        FEATURES[6:7],
        permutations=[row_permutation(60, seed=0, repeat=0)],
        masks=masks,
    )
    assert found.base["first"].auc is None
    assert found.values["feature:dense 0"]["first"]["auc"] == []
    assert len(found.values["feature:dense 0"]["first"]["logloss"]) == 1


@settings(max_examples=50, deadline=None)
@given(
    cells=st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    seed=st.integers(0, 5),
    repeat=st.integers(0, 3),
)
def test_rows_change_places_within_their_cell_only(cells: list[int], seed: int, repeat: int) -> None:
    cells_N = np.array(cells)
    permutation = row_permutation(len(cells), seed=seed, repeat=repeat, cells_N=cells_N)
    assert sorted(permutation) == list(range(len(cells)))
    assert (cells_N[permutation] == cells_N).all()


def test_every_order_of_a_cell_is_as_likely() -> None:
    drawn = [tuple(row_permutation(3, seed=s, repeat=0, cells_N=np.zeros(3, np.int64))) for s in range(1200)]
    counts = {order: drawn.count(order) for order in set(drawn)}
    assert len(counts) == 6
    assert min(counts.values()) > 140  # 200 expected, sd 13

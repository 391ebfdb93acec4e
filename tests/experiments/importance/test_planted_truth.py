"""On rankers whose logit is a known function, the three methods rank features in the known order."""

import numpy as np
import pytest
import torch

from experiments.importance.agreement import spearman
from experiments.importance.methods.attribution import integrated_gradients, row_attributions
from experiments.importance.methods.perturbation import measure_exchanges, row_permutation
from experiments.importance.methods.shared_forward import SharedForward
from experiments.importance.methods.tower_inputs import InputLayout
from experiments.importance.split_rows import SplitRows
from tests.experiments.importance.planted import BY_NAME, FEATURES, planted_layout, random_layout, split_rows
from tests.ranking.random_batches import RANKERS

#: From the most to the least important: sds of their terms about 2.9, 1.7, 0.9, 0.6, 0.2; then nothing.
KNOWN_ORDER = ["dense 0", "user", "similarity product-query", "device", "dense 2"]
ROWS = 3000
NOTHING = ["dense 1", "brand", "purchase history", "similarity query-history"]


@pytest.fixture(scope="module")
def planted() -> tuple[InputLayout, SplitRows]:
    """Clicks are drawn from the ranker's own probabilities."""
    layout = planted_layout(dense=(0.6, 0.0, 0.04), ids={"user": 0.2, "device": 0.8}, cosines=(2.5, 0.0, 0.0))
    rows = split_rows(ROWS, seed=4)
    logit_N = SharedForward(layout).state(layout.inputs(rows, np.arange(ROWS))).logit_B.numpy()
    rows.flags["clicked"][:] = np.random.default_rng(0).random(ROWS) < 1 / (1 + np.exp(-logit_N))
    return layout, rows


METHODS = ("permutation", "ablation", "integrated_gradients")


@pytest.fixture(scope="module")
def found(planted: tuple[InputLayout, SplitRows]) -> dict[str, dict[str, float]]:
    """Importance by method and feature."""
    return {method: importance(*planted, method) for method in METHODS}


def importance(layout: InputLayout, rows: SplitRows, method: str) -> dict[str, float]:
    masks = {"all": np.ones(len(rows), dtype=bool)}
    if method == "integrated_gradients":
        found = integrated_gradients(layout, rows, FEATURES, missing_columns=[], masks=masks, steps=8)
        return {feature.name: found.values[feature.key]["all"] for feature in FEATURES}
    permutations = (
        [row_permutation(len(rows), seed=0, repeat=r) for r in range(3)] if method == "permutation" else None
    )
    measured = measure_exchanges(layout, rows, FEATURES, permutations=permutations, masks=masks)
    return {feature.name: float(np.mean(measured.values[feature.key]["all"]["auc"])) for feature in FEATURES}


@pytest.mark.parametrize("method", METHODS)
def test_the_known_order_is_found(found: dict[str, dict[str, float]], method: str) -> None:
    values = found[method]
    assert sorted(KNOWN_ORDER, key=lambda name: -values[name]) == KNOWN_ORDER
    assert min(values[name] for name in KNOWN_ORDER) > 0
    assert [values[name] for name in NOTHING] == [0.0] * len(NOTHING)


@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_is_as_important_as_the_cosine_that_alone_reads_it(
    found: dict[str, dict[str, float]], method: str
) -> None:
    cosine = found[method]["similarity product-query"]
    assert found[method]["query embedding"] == pytest.approx(cosine, rel=0.35)
    assert found[method]["product embedding"] == pytest.approx(cosine, rel=0.35)


def test_the_three_methods_agree_on_the_planted_ranker(found: dict[str, dict[str, float]]) -> None:
    ranked = [np.array([found[method][name] for name in KNOWN_ORDER + NOTHING]) for method in METHODS]
    assert spearman(ranked[0], ranked[1]) == spearman(ranked[0], ranked[2]) == 1.0


def test_attributions_of_a_linear_logit_are_its_terms(planted: tuple[InputLayout, SplitRows]) -> None:
    layout, rows = planted
    inputs = layout.inputs(rows, np.arange(100))
    attribution_BF, delta_B = row_attributions(layout, inputs, FEATURES, missing_columns=[1], steps=3)
    dense_0_B = attribution_BF[:, FEATURES.index(BY_NAME["dense 0"])]
    np.testing.assert_allclose(dense_0_B, 0.6 * rows.dense_NF[:100, 0], rtol=1e-5, atol=1e-6)
    assert np.abs(delta_B).max() < 1e-5


def test_attributions_add_up_to_the_logit_minus_that_of_missing_features() -> None:
    layout, rows = random_layout(RANKERS["product + query + history"]), split_rows(20)
    inputs, missing = layout.inputs(rows, np.arange(20)), layout.missing(1, missing_columns=[])
    alone = [feature for feature in FEATURES if not feature.entities]
    embeddings = [BY_NAME[name] for name in ("product embedding", "query embedding", "purchase history")]
    attribution_BF, delta_B = row_attributions(
        layout, inputs, [*alone, *embeddings], missing_columns=[], steps=100
    )
    cosines_BP = attribution_BF[:, [i for i, feature in enumerate(alone) if feature.pairs]]
    total_B = attribution_BF.sum(axis=1) - 2 * cosines_BP.sum(axis=1)  # each is in two embeddings as well
    forward = SharedForward(layout)
    logit_B = forward.state(inputs).logit_B - forward.state(missing).logit_B
    np.testing.assert_allclose(total_B, logit_B.numpy(), atol=0.05)
    np.testing.assert_allclose(total_B - logit_B.numpy(), delta_B, atol=1e-3)


def test_importance_in_a_slice_is_the_mean_of_its_rows(planted: tuple[InputLayout, SplitRows]) -> None:
    layout, rows = planted
    small = split_rows(50)
    masks = {"first": np.arange(50) < 20, "rest": np.arange(50) >= 20, "all": np.ones(50, dtype=bool)}
    found = integrated_gradients(layout, small, FEATURES, missing_columns=[], masks=masks, steps=2)
    assert len(rows) > 50
    for feature in FEATURES:
        by_slice = found.values[feature.key]
        assert 0.4 * by_slice["first"] + 0.6 * by_slice["rest"] == pytest.approx(by_slice["all"], abs=1e-6)


def test_attribution_leaves_the_ranker_and_gradients_alone() -> None:
    layout, rows = random_layout(RANKERS["product + query + history"]), split_rows(20)
    before = {name: value.clone() for name, value in layout.ranker.state_dict().items()}
    row_attributions(layout, layout.inputs(rows, np.arange(20)), FEATURES, missing_columns=[], steps=2)
    assert all(torch.equal(before[name], value) for name, value in layout.ranker.state_dict().items())
    assert all(parameter.grad is None for parameter in layout.ranker.parameters())

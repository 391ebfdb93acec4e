"""The shared forward pass is the ranker's; to exchange a feature changes that feature alone, bit for bit."""

import numpy as np
import pytest
import torch

from experiments.importance.methods.perturbation import exchanged_logits, row_permutation
from experiments.importance.methods.shared_forward import SharedForward
from experiments.importance.methods.tower_inputs import TowerInputs
from experiments.importance.model_features import Feature, joined
from ranking.model import RankerConfig, SemanticConfig
from tests.experiments.importance.planted import (
    BY_NAME,
    features_for,
    planted_layout,
    random_layout,
    split_rows,
)
from tests.ranking.random_batches import RANKERS

WITHOUT_DEEP = RankerConfig(
    embedding_dim=4,
    cross_layers=1,
    deep_widths=(),
    top_widths=(),
    semantic=SemanticConfig(cross_layers=0, widths=(8, 4)),
)
CONFIGS = {**RANKERS, "no deep layers, no crosses of vectors": WITHOUT_DEEP}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_the_ranker(name: str) -> None:
    layout, rows = random_layout(CONFIGS[name]), split_rows(1500)
    base_N, _ = exchanged_logits(SharedForward(layout), rows, [], permutations=[])
    batch = rows.batch(np.arange(len(rows)), layout.semantic)
    with torch.no_grad():
        expected_N = layout.ranker(batch.dense_BF, batch.sparse, batch.semantic)
    torch.testing.assert_close(torch.from_numpy(base_N), expected_N, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_exchanged_feature_gives_the_logits_of_the_ranker_with_that_input_exchanged(name: str) -> None:
    layout, rows = random_layout(CONFIGS[name]), split_rows(700)
    permutation = row_permutation(len(rows), seed=1, repeat=0)
    features = [feature for feature in features_for(CONFIGS[name]) if not feature.pairs]
    _, logit_FAN = exchanged_logits(SharedForward(layout), rows, features, permutations=[permutation])
    entities = CONFIGS[name].semantic.entities if CONFIGS[name].semantic else ()
    for feature, logit_AN in zip(features, logit_FAN, strict=True):
        moved = split_rows(700)
        moved.dense_NF[:, feature.dense] = rows.dense_NF[permutation][:, feature.dense]
        moved.sparse_NS[:, feature.sparse] = rows.sparse_NS[permutation][:, feature.sparse]
        for i in feature.entities:
            columns = {"product": [0], "query": [1], "history": [2, 3]}[entities[i]]
            moved.index_N4[:, columns] = rows.index_N4[permutation][:, columns]
        batch = moved.batch(np.arange(700), layout.semantic)
        with torch.no_grad():
            expected_N = layout.ranker(batch.dense_BF, batch.sparse, batch.semantic)
        torch.testing.assert_close(torch.from_numpy(logit_AN[0]), expected_N, atol=1e-5, rtol=1e-5)


def changed_inputs(
    feature: Feature, monkeypatch: pytest.MonkeyPatch
) -> tuple[TowerInputs, TowerInputs, dict]:
    """Inputs as they are, those of other rows, and what the towers read after the exchange."""
    layout, rows = random_layout(RANKERS["product + query + history"]), split_rows(300)
    forward = SharedForward(layout)
    base = layout.inputs(rows, np.arange(300))
    other = layout.inputs(rows, row_permutation(300, seed=2, repeat=0))
    state = forward.state(base)
    seen: dict[str, torch.Tensor] = {}
    for name in ("dcn", "dashclip"):
        tower = getattr(forward, name)

        def recorded(x_BN, first_BP, name=name, rest=tower.rest):
            seen[name] = x_BN
            return rest(x_BN, first_BP)

        monkeypatch.setattr(tower, "rest", recorded)
    monkeypatch.setattr(
        "experiments.importance.methods.shared_forward._Change.rows", lambda self: torch.ones(300) > 0
    )
    forward.exchanged(state, other, layout.columns(feature))
    return base, other, {"columns": layout.columns(feature), **seen}


@pytest.mark.parametrize("name", BY_NAME)
def test_permutation_leaves_every_other_feature_bit_equal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other, seen = changed_inputs(BY_NAME[name], monkeypatch)
    columns = seen["columns"]
    for tower, before, after, own in (
        ("dcn", base.dcn_BN, other.dcn_BN, columns.dcn_C),
        ("dashclip", base.dashclip_BM, other.dashclip_BM, columns.dashclip_C),
    ):
        assert (tower in seen) == bool(len(own)), "a tower without a changed column is not computed again"
        if tower in seen:
            same = torch.ones(before.shape[1], dtype=torch.bool)
            same[own] = False
            assert torch.equal(seen[tower][:, same], before[:, same])
            direct = own[: len(own) - len(columns.derived)]
            assert torch.equal(seen[tower][:, direct], after[:, direct])


def test_a_group_moves_as_one_across_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    group = joined("mixed", [BY_NAME[name] for name in ("dense 1", "brand", "query embedding")])
    base, other, seen = changed_inputs(group, monkeypatch)
    columns = seen["columns"]
    assert torch.equal(seen["dcn"][:, columns.dcn_C], other.dcn_BN[:, columns.dcn_C])
    assert torch.equal(seen["dashclip"][:, columns.own_C], other.dashclip_BM[:, columns.own_C])
    assert not torch.equal(base.dcn_BN[:, columns.dcn_C], other.dcn_BN[:, columns.dcn_C])


def test_cosines_follow_the_embeddings_they_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    base, other, seen = changed_inputs(BY_NAME["query embedding"], monkeypatch)
    product_BD, query_BD, history_BD = base.entities[0], other.entities[1], base.entities[2]
    cosine = torch.nn.functional.cosine_similarity
    first = 3 * product_BD.shape[1]
    assert torch.equal(seen["dashclip"][:, first], cosine(product_BD, query_BD, dim=1))
    assert torch.equal(seen["dashclip"][:, first + 1], base.dashclip_BM[:, first + 1])
    assert torch.equal(seen["dashclip"][:, first + 2], cosine(query_BD, history_BD, dim=1))


def test_a_missing_feature_is_what_the_ranker_reads_for_a_missing_value() -> None:
    layout = random_layout(RANKERS["product + query + history"])
    rows = split_rows(4)
    rows.dense_NF[:] = [0.0, 1.0, 0.0]
    rows.sparse_NS[:] = 0
    rows.index_N4[:] = [-1, -1, 0, 0]
    found, expected = layout.missing(4, missing_columns=[1]), layout.inputs(rows, np.arange(4))
    assert torch.equal(found.dcn_BN, expected.dcn_BN)
    assert torch.equal(found.dashclip_BM, expected.dashclip_BM)


def test_a_planted_ranker_is_the_function_it_was_planted_with() -> None:
    layout = planted_layout(dense=(2.0, 0.0, -1.0), ids={"brand": 0.5}, cosines=(3.0, 0.0, 0.0), product=1.0)
    rows = split_rows(50)
    inputs = layout.inputs(rows, np.arange(50))
    product_BD, query_BD, _ = inputs.entities
    brand_B = torch.from_numpy(rows.sparse_NS[:, 1] - 3).float() * (
        torch.from_numpy(rows.sparse_NS[:, 1]) > 0
    )
    expected_B = (
        inputs.dcn_BN[:, :3] @ torch.tensor([2.0, 0.0, -1.0])
        + 0.5 * brand_B
        + 3 * torch.nn.functional.cosine_similarity(product_BD, query_BD, dim=1)
        + 8**0.5 * product_BD[:, 0]
    )
    torch.testing.assert_close(SharedForward(layout).state(inputs).logit_B, expected_B)

"""The contract that every ranker keeps, whatever its towers."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec.inference.modules import quantize_inference_model
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from embeddings.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from features.batches.batch import SEMANTIC_KEYS, Batch, bags
from ranking.checkpoint import WEIGHTS, load_ranker_weights, ranker_weights
from ranking.embedding_collection import PooledEmbeddings, TableSpec
from ranking.model import Ranker, RankerConfig, RankerInputs, SemanticConfig, TwoTowerRanker, build_ranker
from ranking.optimizer import OptimizerConfig, RankerOptimizer
from tests.ranking.random_batches import DIM, RANKERS, SMALL, SPARSE_ROWS, batch, inputs, row
from tests.tolerances import float32_error


@pytest.fixture(params=list(RANKERS))
def config(request: pytest.FixtureRequest) -> RankerConfig:
    return RANKERS[request.param]


def logits(ranker: Ranker, of: Batch) -> torch.Tensor:
    ranker.eval()
    with torch.no_grad():
        return ranker(of.dense_BF, of.sparse, of.semantic)


def train_a_little(ranker: Ranker, steps: int = 3) -> RankerOptimizer:
    optimizer = RankerOptimizer(ranker, OptimizerConfig(warmup_steps=1), total_steps=10)
    for step in range(steps):
        optimizer.set_learning_rates(step)
        b = batch(32, seed=step)
        optimizer.update(
            binary_cross_entropy_with_logits(ranker(b.dense_BF, b.sparse, b.semantic), b.clicked_B)
        )
    return optimizer


@pytest.mark.parametrize("size", [0, 1, 2, 65])
def test_any_batch_size_gives_one_logit_an_impression(config: RankerConfig, size: int) -> None:
    got = logits(build_ranker(config, inputs(), seed=1), batch(size))
    assert got.shape == (size,)
    assert torch.isfinite(got).all()


def test_a_batch_equals_its_rows_one_by_one(config: RankerConfig) -> None:
    ranker = build_ranker(config, inputs(), seed=1)
    train_a_little(ranker)
    whole = batch(17, seed=5)
    single = torch.cat([logits(ranker, row(whole, i)) for i in range(17)])
    torch.testing.assert_close(single, logits(ranker, whole), rtol=1e-5, atol=1e-6)


def test_saved_and_reloaded_scores_are_the_same_bits(config: RankerConfig, tmp_path: Path) -> None:
    ranker = build_ranker(config, inputs(), seed=1)
    train_a_little(ranker)
    write_checkpoint(tmp_path / "saved", Checkpoint({WEIGHTS: ranker_weights(ranker)}, {}))
    other = build_ranker(config, inputs(), seed=2)
    assert not torch.equal(logits(other, batch(9)), logits(ranker, batch(9)))
    load_ranker_weights(other, read_checkpoint(tmp_path / "saved").parts[WEIGHTS], source=tmp_path / "saved")
    assert torch.equal(logits(other, batch(9)), logits(ranker, batch(9)))


def test_the_same_seed_trains_to_the_same_bits(config: RankerConfig) -> None:
    first, second = (build_ranker(config, inputs(), seed=7) for _ in range(2))
    train_a_little(first)
    torch.rand(100)  # the global generator must not matter
    train_a_little(second)
    for name, value in ranker_weights(first).items():
        assert torch.equal(value, ranker_weights(second)[name]), name


def test_building_leaves_the_global_generator_alone(config: RankerConfig) -> None:
    before = torch.get_rng_state()
    build_ranker(config, inputs(), seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_training_moves_every_trainable_parameter_and_no_frozen_one(config: RankerConfig) -> None:
    ranker = build_ranker(config, inputs(), seed=1)
    before = {name: value.detach().clone() for name, value in ranker.named_parameters()}
    train_a_little(ranker, steps=8)
    for name, value in ranker.named_parameters():
        moved = not torch.equal(before[name], value)
        assert moved == value.requires_grad, name


@pytest.mark.parametrize("name", ["product + query + history", "product + history", "random tables"])
def test_masked_history_equals_no_history(name: str) -> None:
    ranker = build_ranker(RANKERS[name], inputs(), seed=1)
    full = batch(12, seed=3)
    product, query, history = (full.semantic[key] for key in SEMANTIC_KEYS)
    none = torch.zeros_like(history.lengths())
    masked = bags(
        list(SEMANTIC_KEYS),
        [product.values(), query.values(), history.values()[:0]],
        [product.lengths(), query.lengths(), none],
    )
    without = Batch(full.dense_BF, full.sparse, masked, full.clicked_B, full.row_B)
    has_none = history.lengths() == 0
    assert 0 < has_none.sum() < 12
    got, expected = logits(ranker, full), logits(ranker, without)
    assert torch.equal(got[has_none], expected[has_none])
    assert not torch.equal(got[~has_none], expected[~has_none])


def test_the_order_within_a_history_does_not_matter() -> None:
    ranker = build_ranker(RANKERS["product + query + history"], inputs(), seed=1)
    one = row(batch(12, seed=3), int(batch(12, seed=3).semantic["history"].lengths().argmax()))
    product, query, history = (one.semantic[key] for key in SEMANTIC_KEYS)
    flipped = bags(
        list(SEMANTIC_KEYS),
        [product.values(), query.values(), history.values().flip(0)],
        [product.lengths(), query.lengths(), history.lengths()],
    )
    reverse = Batch(one.dense_BF, one.sparse, flipped, one.clicked_B, one.row_B)
    torch.testing.assert_close(logits(ranker, one), logits(ranker, reverse))


def test_history_is_the_mean_of_the_product_vectors() -> None:
    given = inputs()
    ranker = build_ranker(RANKERS["product + query + history"], given, seed=1)
    assert isinstance(ranker, TwoTowerRanker)
    rows = bags(
        list(SEMANTIC_KEYS),
        [torch.tensor([4]), torch.tensor([2]), torch.tensor([5, 5, 9])],
        [torch.tensor([1], dtype=torch.int32)] * 2 + [torch.tensor([3], dtype=torch.int32)],
    )
    product, query, history = ranker.semantic_tables(rows)
    table = given.vectors["product"]
    np.testing.assert_allclose(product[0], table[4])
    np.testing.assert_allclose(query[0], given.vectors["query"][2])
    error = float32_error(3, size=float(np.abs(table).max()))  # the mean of three rows
    np.testing.assert_allclose(history[0], (2 * table[5] + table[9]) / 3, rtol=0, atol=error)


def test_random_tables_take_the_shape_of_the_vectors_and_nothing_else() -> None:
    """So a control of the demo may be trained on other vectors of that shape, before DashCLIP's exist."""
    config = RANKERS["random tables"]
    one, other = (ranker_weights(build_ranker(config, inputs(seed), seed=1)) for seed in (0, 1))
    assert any(name.startswith("semantic_tables") for name in one)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def eager_twin(fused: FusedEmbeddingBagCollection) -> EmbeddingBagCollection:
    """The same tables as a plain collection, which torchrec can quantise and export.

    `quantize_inference_model` leaves a fused collection untouched, without a warning.
    """
    configs = fused.embedding_bag_configs()
    twin = EmbeddingBagCollection(tables=configs, device=torch.device("cpu"))
    for config in configs:
        weight = fused.embedding_bags[config.name].weight
        with torch.no_grad():
            twin.embedding_bags[config.name].weight.copy_(weight)
    twin.requires_grad_(False)
    return twin


def test_eager_fused_and_quantised_tables_agree_key_by_key() -> None:
    ranker = build_ranker(RANKERS["random tables"], inputs(), seed=1)
    assert isinstance(ranker, TwoTowerRanker)
    train_a_little(ranker)
    for tables, rows in (
        (ranker.sparse_tables, batch(20).sparse),
        (ranker.semantic_tables, batch(20).semantic),
    ):
        eager = eager_twin(tables.collection)
        quantised = quantize_inference_model(torch.nn.Sequential(eager_twin(tables.collection)))[0]
        assert type(eager) is EmbeddingBagCollection
        assert type(quantised) is not EmbeddingBagCollection
        fused_out, eager_out, quantised_out = tables.collection(rows), eager(rows), quantised(rows)
        largest = max(bag.weight.abs().max().item() for bag in eager.embedding_bags.values())
        error = float32_error(5, size=largest)  # the mean of five rows at most
        for key in tables.keys:
            torch.testing.assert_close(eager_out[key], fused_out[key], rtol=0, atol=error)
            step = 2 * largest / 255  # int8 rows: one step is the row's range / 255
            assert (quantised_out[key] - fused_out[key]).abs().max() <= step
            assert fused_out[key].abs().max() > 3 * step  # the keys could be told apart


def test_pooled_embeddings_come_in_the_order_asked_for() -> None:
    ranker = build_ranker(RANKERS["product + query + history"], inputs(), seed=1)
    assert isinstance(ranker, TwoTowerRanker)
    rows = batch(6).semantic
    forward = ranker.semantic_tables(rows)
    backward = PooledEmbeddings(ranker.semantic_tables.collection, SEMANTIC_KEYS[::-1])(rows)
    for a, b in zip(forward, reversed(backward), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("keys", [SEMANTIC_KEYS, SEMANTIC_KEYS[::-1]])
@pytest.mark.parametrize("size", [0, 6])
def test_joined_embeddings_are_the_single_ones_side_by_side(keys: tuple[str, ...], size: int) -> None:
    ranker = build_ranker(RANKERS["product + query + history"], inputs(), seed=1)
    assert isinstance(ranker, TwoTowerRanker)
    tables = PooledEmbeddings(ranker.semantic_tables.collection, keys)
    rows = batch(size).semantic
    assert torch.equal(tables.joined(rows), torch.cat(tables(rows), dim=1))


def test_a_tower_without_its_table_is_refused() -> None:
    without_queries = RankerInputs(3, {"user": 4}, {"product": inputs().vectors["product"]})
    with pytest.raises(ValueError, match="needs query embeddings, which were not given"):
        build_ranker(RANKERS["product + query"], without_queries, seed=1)


def test_tables_of_different_width_are_refused() -> None:
    vectors = {"product": np.zeros((3, 8), np.float32), "query": np.zeros((3, 4), np.float32)}
    with pytest.raises(ValueError, match=r"one width, got \{'product': 8, 'query': 4\}"):
        build_ranker(RANKERS["product + query"], RankerInputs(3, {"user": 4}, vectors), seed=1)


@pytest.mark.parametrize("dim", [3, 6, 1028])
def test_widths_that_fbgemm_cannot_hold_are_refused(dim: int) -> None:
    with pytest.raises(ValueError, match="multiples of 4 from 4 to 1024"):
        TableSpec("t", 5, dim, ("t",))


def test_an_entity_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="must differ"):
        SemanticConfig(entities=("product", "product"))


@pytest.mark.parametrize(
    ("entities", "tiers", "message"),
    [
        (("product", "query"), 16, 'end with "history"'),
        (("history", "product"), 16, 'end with "history"'),
        (("history",), 16, "name one of these"),
        (("product", "history"), 1, "at least 2"),
    ],
)
def test_history_tiers_without_a_history_to_compare_are_refused(
    entities: tuple[str, ...], tiers: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticConfig(entities=entities, history_tiers=tiers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history_tiers": 16}, "no DashCLIP tower, which history_tiers would shape; leave it out"),
        ({"cross_layers": 2, "widths": (8,)}, "which cross_layers and widths would shape; leave them out"),
        ({"entities": ("product",)}, r"name at least two, got \('product',\)"),
    ],
)
def test_settings_of_a_tower_that_similarity_lacks_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticConfig(reads="similarity", **settings)


def test_similarities_are_dense_features_like_any_other() -> None:
    """The ranker equals a baseline that is given the cosines as columns of the data, written as a loop."""
    ranker = build_ranker(RANKERS["similarity"], inputs(), seed=1)
    b = batch(40)
    vectors = {name: np.asarray(table, np.float64) for name, table in inputs().vectors.items()}
    columns = []
    bag = {key: b.semantic[key].to_dense() for key in SEMANTIC_KEYS}
    for i in range(40):
        found = [
            vectors["query" if key == "query" else "product"][bag[key][i].numpy()] for key in SEMANTIC_KEYS
        ]
        means = [rows.mean(axis=0) if len(rows) else np.zeros(DIM) for rows in found]
        cosines = []
        for one, other in itertools.combinations(means, 2):
            norm = np.linalg.norm(one) * np.linalg.norm(other)
            cosines.append(one @ other / norm if norm else 0.0)
        columns.append([*cosines, *(float(len(rows) > 0) for rows in found)])
    more = RankerInputs(3 + 6, SPARSE_ROWS, {})
    baseline = build_ranker(RANKERS["dcn"], more, seed=2)
    baseline.load_state_dict(
        {name: w for name, w in ranker.state_dict().items() if not name.startswith("semantic_tables")}
    )
    dense_BK = torch.cat([b.dense_BF, torch.tensor(columns, dtype=torch.float32)], dim=1)
    expected = baseline.eval()(dense_BK, b.sparse, b.semantic)
    torch.testing.assert_close(logits(ranker, b), expected.detach(), rtol=1e-5, atol=1e-5)
    assert len({tuple(row[3:]) for row in columns}) > 3  # some are missing


def test_the_dropout_layers_are_off_when_scoring() -> None:
    ranker = build_ranker(RankerConfig(**{**SMALL, "dropout": 0.5}), inputs(), seed=1)
    assert torch.equal(logits(ranker, batch(5)), logits(ranker, batch(5)))
    ranker.train()
    b = batch(5)
    assert not torch.equal(ranker(b.dense_BF, b.sparse, b.semantic), ranker(b.dense_BF, b.sparse, b.semantic))


def test_frozen_tables_hold_the_vectors_and_have_no_gradient() -> None:
    given = inputs()
    ranker = build_ranker(RANKERS["product + query + history"], given, seed=1)
    assert isinstance(ranker, TwoTowerRanker)
    bag = ranker.semantic_tables.collection.embedding_bags["product"]
    np.testing.assert_array_equal(bag.weight.numpy(), given.vectors["product"])
    assert not bag.weight.requires_grad
    assert bag.weight.shape[1] == DIM


def test_an_untrained_ranker_predicts_about_the_click_rate(config: RankerConfig) -> None:
    given = inputs()
    rare = RankerInputs(given.dense_features, given.sparse_rows, given.vectors, click_rate=0.02)
    assert torch.sigmoid(logits(build_ranker(config, rare, seed=1), batch(500))).mean() < 0.1
    assert torch.sigmoid(logits(build_ranker(config, given, seed=1), batch(500))).mean() > 0.3

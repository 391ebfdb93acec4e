"""Features are the entries of the schema; groups gather them by side, counters and tower."""

import pytest

from experiments.importance.methods.tower_inputs import InputLayout
from experiments.importance.model_features import counter_sides, features_of, groups_of
from features.feature_set import FeatureSet
from features.schema import CounterConfig
from ranking.model import RankerConfig, SemanticConfig
from tests.experiments.importance.planted import BY_NAME, random_layout
from tests.ranking.random_batches import DIM, RANKERS
from tests.ranking.small_runs import open_small, small_data

FULL = RankerConfig(semantic=SemanticConfig())


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder = tmp_path_factory.mktemp("features")
    small_data(folder, impressions=300)
    return open_small(folder)


def test_every_column_belongs_to_exactly_one_feature(feature_set: FeatureSet) -> None:
    manifest = feature_set.manifest
    features = features_of(manifest, FULL)
    assert sorted(i for f in features for i in f.dense) == list(range(len(manifest.dense_columns)))
    assert sorted(i for f in features for i in f.sparse) == list(range(len(manifest.sparse_columns)))
    assert sorted(i for f in features for i in f.entities) == [0, 1, 2]
    assert sorted(i for f in features for i in f.pairs) == [0, 1, 2]
    assert len({feature.key for feature in features}) == len(features)


def test_a_number_moves_with_the_column_that_says_it_is_missing(feature_set: FeatureSet) -> None:
    price = next(f for f in features_of(feature_set.manifest, FULL) if f.name == "price")
    assert price.members == ("price", "price_missing")
    assert [feature_set.manifest.dense_columns[i] for i in price.dense] == ["price", "price_missing"]


def test_similarities_are_named_after_their_entities() -> None:
    config = RankerConfig(semantic=SemanticConfig(entities=("product", "history")))
    assert config.semantic is not None
    layout = random_layout(RANKERS["product + history"])
    assert layout.pairs == ((0, 1),)


def test_groups_gather_sides_counters_and_towers(feature_set: FeatureSet) -> None:
    groups = {group.name: set(group.members) for group in groups_of(feature_set.manifest, FULL)}
    assert {"query embedding", "query", "query_ctr_1d"} < groups["query side"]
    assert {"product embedding", "product", "brand", "weight", "product_ctr_2d"} < groups["product side"]
    assert {"purchase history", "user", "user_clicks_2d"} < groups["user side"]
    assert groups["context"] == {"price", "hour", "store", "day_of_week"}
    assert not groups["query side"] & groups["product side"]
    by_key = [groups[f"{key} counters"] for key in ("query", "product", "user", "query-product")]
    assert groups["counters"] == set.union(*by_key)
    assert sum(map(len, by_key)) == len(groups["counters"]) == 4 * 2 * 3
    assert not groups["DCN tower"] & groups["DashCLIP tower"]
    assert len(groups["DCN tower"] | groups["DashCLIP tower"]) == len(features_of(feature_set.manifest, FULL))


def test_a_ranker_without_the_dashclip_tower_has_no_embeddings_and_no_such_group(
    feature_set: FeatureSet,
) -> None:
    plain = RankerConfig()
    names = {feature.name for feature in features_of(feature_set.manifest, plain)}
    assert not any("embedding" in name or "similarity" in name for name in names)
    assert "DashCLIP tower" not in {group.name for group in groups_of(feature_set.manifest, plain)}


def test_similarities_are_features_of_the_dcn_tower(feature_set: FeatureSet) -> None:
    config = RankerConfig(semantic=SemanticConfig(entities=("product", "query"), reads="similarity"))
    groups = {group.name: set(group.members) for group in groups_of(feature_set.manifest, config)}
    of_tables = {"product embedding", "query embedding", "similarity product-query"}
    assert groups["similarities of embeddings"] == of_tables
    assert groups["DCN tower"] == {
        feature.name for feature in features_of(feature_set.manifest, config) if not feature.pairs
    }
    assert "DashCLIP tower" not in groups


def test_query_product_counters_are_not_the_querys() -> None:
    sides = counter_sides(CounterConfig(windows_days=(7,)))
    assert sides["query_product_ctr_7d"] == "query-product"
    assert sides["query_ctr_7d"] == "query"
    assert counter_sides(None) == {}


def columns_of(layout: InputLayout, name: str) -> list[int]:
    return layout.columns(BY_NAME[name]).dashclip_C.tolist()


def test_an_embedding_covers_its_vector_its_indicator_and_its_cosines() -> None:
    layout = random_layout(RANKERS["product + query + history"])
    cosines, indicators = 3 * DIM, 3 * DIM + 3
    query = [*range(DIM, 2 * DIM), indicators + 1, cosines, cosines + 2]
    assert columns_of(layout, "query embedding") == query
    assert columns_of(layout, "similarity product-history") == [cosines + 1]
    assert columns_of(layout, "dense 0") == []


def test_an_embedding_read_by_its_similarities_covers_its_indicator_and_its_cosines() -> None:
    layout = random_layout(RANKERS["similarity"])
    query = layout.columns(BY_NAME["query embedding"])
    cosines, indicators = 3, 3 + 3  # behind three dense features
    assert query.dcn_C.tolist() == [indicators + 1, cosines, cosines + 2]
    assert layout.columns(BY_NAME["similarity product-history"]).dcn_C.tolist() == [cosines + 1]
    assert columns_of(layout, "query embedding") == []
    assert layout.columns(BY_NAME["user"]).dcn_C[0] == 3 + 6  # ids come behind them

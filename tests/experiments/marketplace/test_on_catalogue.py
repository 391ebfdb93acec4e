"""A simulated log on a real catalogue: nothing of the catalogue is lost, and clicks follow the law."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embeddings.catalog.products import CatalogError
from experiments.cli import app
from experiments.config import load_config
from experiments.marketplace.config import LogConfig
from experiments.marketplace.generate import child_seed
from experiments.marketplace.judgements import MarketplaceTruth
from experiments.marketplace.on_catalogue import _CATALOG, _SHOPPERS, generate_on_catalogue
from experiments.marketplace.oracle import embed_truth
from experiments.marketplace.world.real_catalog import RealWorld, read_real_world
from experiments.marketplace.world.shoppers import DEVICES, Shoppers, make_shoppers
from experiments.sweeps.sweep import SweepConfig
from features.artifacts import sha256_of
from features.feature_set import FeatureSet
from features.inputs.tables import InputError
from features.offline.build import build
from features.schema import FeatureConfig
from tests.experiments.marketplace.real_shop import tiny_log, write_shop

LOGS = ("impressions", "purchases", "truth/impressions", "truth/users", "truth/products", "truth/candidates")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return write_shop(tmp_path_factory.mktemp("shops") / "shop")


@pytest.fixture(scope="module", params=["mixed", "retrieval"])
def written(request, shop, tmp_path_factory) -> tuple[Path, LogConfig]:
    config = tiny_log(request.param)
    out = tmp_path_factory.mktemp("logs") / "log"
    summary = generate_on_catalogue(config, shop, out)
    assert json.loads((out / "marketplace.json").read_text())["summary"] == summary
    return out, config


def rows(folder: Path, name: str) -> pd.DataFrame:
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


def test_nothing_of_the_catalogue_is_lost(shop, written):
    out, _ = written
    for name in ("products.parquet", "relevance.parquet"):
        assert sha256_of(out / name) == sha256_of(shop / name)
    files = sorted(path.relative_to(shop) for path in (shop / "photos").iterdir())
    assert sorted(path.relative_to(out) for path in (out / "photos").iterdir()) == files
    assert all((out / path).read_bytes() == (shop / path).read_bytes() for path in files)
    summary = json.loads((out / "marketplace.json").read_text())["summary"]
    assert summary["images"] == len(files) == 10


def test_ads_of_graded_pairs_have_the_grade_that_people_gave(shop, written):
    out, _ = written
    graded = rows(shop, "relevance").set_index(["query", "product_id"]).grade.to_dict()
    log = rows(out, "impressions").merge(rows(out, "truth/impressions"), on="impression_id")
    given = [graded.get(pair) for pair in zip(log["query"], log.product_id, strict=True)]
    known = [(true, grade) for true, grade in zip(log.grade, given, strict=True) if grade is not None]
    assert len(known) > 0.5 * len(log)
    assert all(true == grade for true, grade in known)
    drawn = rows(out, "truth/candidates").set_index(["query", "product_id"])
    assert dict(drawn[drawn.graded].grade.items()) == graded
    shown = drawn.grade.loc[list(zip(log["query"], log.product_id, strict=True))]
    np.testing.assert_array_equal(shown.to_numpy(), log.grade.to_numpy())


def test_a_pair_without_a_grade_is_shown_only_for_queries_with_too_few(shop, written):
    out, _ = written
    count = rows(shop, "relevance").groupby("query").product_id.nunique()
    candidates = rows(out, "truth/candidates")
    ungraded = candidates[~candidates.graded]
    assert len(ungraded) > 100
    assert (count.loc[ungraded["query"]] < 5).all()
    assert (candidates.groupby("query").size() == count.clip(lower=5)).all()


def _user_taste(config: LogConfig, shoppers: Shoppers, world: RealWorld, user: int, product: int) -> float:
    taste, shelf = config.taste, world.catalog
    value = taste.liked_type * (shelf.type_P[product] in shoppers.liked_type_UK[user])
    if shelf.variety_P[product] in shoppers.liked_variety_UK[user]:
        value += taste.liked_variety
    elif shelf.variety_P[product] in shoppers.disliked_variety_UK[user]:
        value += taste.disliked_variety
    value += taste.liked_brand * (shelf.brand_P[product] in shoppers.liked_brand_UK[user])
    wanted = [word for bit, word in enumerate(shelf.styles) if shoppers.diet_U[user] >> bit & 1]
    if wanted:
        brand = (shelf.brand_names[product] or "").lower()
        met = set(wanted) & (set(shelf.titles[product].lower().split()) - {brand})
        value += taste.diet_met if met else taste.diet_missed
    return float(value)


def test_click_probabilities_are_those_of_the_click_model_one_by_one(shop, written):
    """Recomputed without any code of the days: from the tables, the users and the coefficients."""
    out, config = written
    model = config.clicks
    world = read_real_world(config, shop, child_seed(config, _CATALOG))
    shoppers = make_shoppers(config, world.catalog, child_seed(config, _SHOPPERS))
    row_of = {product: row for row, product in enumerate(world.catalog.product_id_P.tolist())}
    truth = rows(out, "truth/products").set_index("product_id")
    users = rows(out, "truth/users").set_index("user_id")
    bought = rows(out, "purchases")
    bought["day"] = bought.timestamp.dt.floor("D")
    log = rows(out, "impressions").merge(rows(out, "truth/impressions"), on="impression_id")
    repeated = 0
    sample = log.sample(1_500, random_state=0)
    for shown in sample.itertuples():
        fact, user = truth.loc[shown.product_id], users.loc[shown.user_id]
        today = shown.timestamp.floor("D")
        mine = bought[(bought.user_id == shown.user_id) & (bought.day < today)].tail(16)
        recent = mine[(today - mine.day).dt.days <= config.history_days]
        again = shown.product_id in set(recent.product_id)
        repeated += again
        promoted = shown.price < 0.9 * fact.price
        hour = (shown.timestamp - today).total_seconds() / 3600
        logit = (
            model.intercept
            + [model.grade_0, model.grade_1, model.grade_2][shown.grade]
            + model.taste * _user_taste(config, shoppers, world, shown.user_id - 1, row_of[shown.product_id])
            + model.quality * fact.quality
            + model.relative_price
            * user.price_sensitivity
            * (fact.log_relative_price + (math.log(0.8) if promoted else 0.0))
            + model.positions[shown.position - 1]
            + model.devices[DEVICES.index(shown.device)]
            + model.user * user.click_tendency
            + model.evening * math.cos(2 * math.pi * (hour - 20) / 24)
            + model.repeat_purchase * again
        )
        assert shown.click_probability == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-6)
    assert repeated > 3, "no repeat purchase was checked"


def test_equal_seeds_give_equal_bytes_and_other_seeds_another_log(shop, written, tmp_path):
    out, config = written
    generate_on_catalogue(config, shop, tmp_path / "again")
    for name in LOGS:
        assert sha256_of(tmp_path / "again" / f"{name}.parquet") == sha256_of(out / f"{name}.parquet")
    generate_on_catalogue(config.model_copy(update={"seed": 8}), shop, tmp_path / "other")
    assert not rows(tmp_path / "other", "impressions").equals(rows(out, "impressions"))


def test_searches_follow_the_traffic_and_types_without_queries_are_never_searched(shop, tmp_path):
    config = tiny_log(impressions=20_000, new_product_share=0.0)
    generate_on_catalogue(config, shop, tmp_path / "log")
    log, asked = rows(tmp_path / "log", "impressions"), rows(tmp_path / "log", "truth/searches")
    assert "aisle n" not in set(asked.type), "nobody searches for what no graded query is about"
    np.testing.assert_allclose(asked.groupby("type").traffic.sum(), 1.0)
    searches = log.drop_duplicates(["user_id", "timestamp", "query"])["query"].value_counts()
    asked["searches"] = asked["query"].map(searches).fillna(0)
    total = asked.groupby("type").searches.transform("sum")
    spread = np.sqrt(total * asked.traffic * (1 - asked.traffic))
    assert (abs(asked.searches - total * asked.traffic) < 5 * spread + 1e-9).all()


def test_string_ids_and_products_without_aisles_brands_and_prices_serve_too(tmp_path):
    shop = write_shop(tmp_path / "shop", string_ids=True, columns=("colour",))
    generate_on_catalogue(tiny_log(), shop, tmp_path / "log")
    products = pq.read_table(tmp_path / "log" / "products.parquet")
    assert products.drop_columns("aisle").equals(pq.read_table(shop / "products.parquet"))
    types = rows(tmp_path / "log", "truth/products").type
    assert products["aisle"].to_pylist() == types.tolist()
    for name in ("impressions", "purchases"):
        log = pq.read_table(tmp_path / "log" / f"{name}.parquet")
        assert log.schema.field("product_id").type == pa.string()
        assert set(log["product_id"].to_pylist()) <= set(products["product_id"].to_pylist())
    described = json.loads((tmp_path / "log" / "marketplace.json").read_text())
    assert described["made_of_titles"] == {"types": "clusters of titles", "brands": "first words of titles"}


def test_a_folder_of_parts_without_aisles_becomes_one_file_with_them(tmp_path):
    shop = write_shop(tmp_path / "shop", columns=("image",))
    (shop / "products").mkdir()
    (shop / "products.parquet").rename(shop / "products" / "part-0.parquet")
    generate_on_catalogue(tiny_log(), shop, tmp_path / "log")
    assert (tmp_path / "log" / "products.parquet").is_file()
    assert not (tmp_path / "log" / "products").exists()
    aisles = pq.read_table(tmp_path / "log" / "products.parquet")["aisle"]
    assert aisles.null_count == 0


def test_a_feature_set_is_built_from_it_with_the_shipped_config(written, tmp_path):
    out, _ = written
    config = load_config(Path("own_catalogue_features"), FeatureConfig)
    split = config.split.model_copy(update={"validation_days": 3, "test_days": 3})
    build(out, tmp_path / "features", config.model_copy(update={"split": split}))
    assert FeatureSet.open(tmp_path / "features").manifest.splits["test"].rows > 100


def test_the_shipped_sweep_reads_the_truth_that_the_log_has(written):
    out, _ = written
    config = load_config(Path("own_catalogue"), SweepConfig)
    assert config.simulated
    assert config.truth is not None
    assert (out / config.truth.name / "impressions.parquet").is_file()
    assert config.variants.keys() >= {"dcn", "dcn_pq_sim_history", "dcn_pq_sim_history_lsa"}


def test_nobody_knows_every_grade_of_a_real_catalogue(written, tmp_path):
    out, _ = written
    assert MarketplaceTruth.find(out) is None
    with pytest.raises(ValueError, match="without --catalogue"):
        embed_truth(out, tmp_path / "oracle")


def _without_titles(shop: Path) -> None:
    table = pq.read_table(shop / "products.parquet")
    blank = pa.array([" "] * len(table))
    pq.write_table(table.set_column(1, "title", blank), shop / "products.parquet")


def _with_price(shop: Path) -> None:
    table = pq.read_table(shop / "products.parquet")
    place = table.schema.get_field_index("price")
    wrong = pa.array([-1.0] * len(table))
    pq.write_table(table.set_column(place, "price", wrong), shop / "products.parquet")


def _without_sources(shop: Path) -> None:
    table = pq.read_table(shop / "relevance.parquet")
    place = table.schema.get_field_index("source")
    blank = pa.array([" "] * len(table))
    pq.write_table(table.set_column(place, "source", blank), shop / "relevance.parquet")


def _with_images_elsewhere(shop: Path) -> None:
    table = pq.read_table(shop / "products.parquet")
    place = table.schema.get_field_index("image")
    pq.write_table(
        table.set_column(place, "image", pa.array(["/photos/1.png"] * len(table))), shop / "products.parquet"
    )


@pytest.mark.parametrize(
    ("size", "damage", "error", "message"),
    [
        ({}, _without_titles, InputError, "none of the 300 has a title"),
        ({}, _with_price, InputError, "price of products .* not negative, got -1"),
        ({}, _without_sources, InputError, "no usable grade: of .* rows .* have no source"),
        ({}, _with_images_elsewhere, CatalogError, "images must lie inside"),
        ({"products": 99}, None, InputError, "has 99 products; a simulated log needs at least 100"),
        ({"queries": 99}, None, InputError, "has 99 queries with a graded product .* at least 100"),
        ({}, lambda shop: (shop / "relevance.parquet").unlink(), InputError, "neither relevance.parquet"),
    ],
)
def test_a_catalogue_that_cannot_be_used_is_refused_and_nothing_is_left(
    size, damage, error, message, tmp_path
):
    shop = write_shop(tmp_path / "shop", **size)
    if damage:
        damage(shop)
    with pytest.raises(error, match=message):
        generate_on_catalogue(tiny_log(), shop, tmp_path / "log")
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]


def test_a_catalogue_is_never_replaced_by_its_log(tmp_path):
    shop = write_shop(tmp_path / "shop")
    for out in (shop, tmp_path):
        with pytest.raises(ValueError, match="would replace the input"):
            generate_on_catalogue(tiny_log(), shop, out)
    with pytest.raises(FileExistsError):
        generate_on_catalogue(tiny_log(), shop, write_shop(tmp_path / "another"))


def test_the_command_says_that_people_are_simulated_and_takes_its_own_numbers(shop, tmp_path):
    asked = ["generate", str(tmp_path / "log"), "--catalogue", str(shop), "--size", "tiny", "--seed", "3"]
    result = CliRunner().invoke(app, [*asked, "--users", "50", "--impressions", "1000", "--days", "20"])
    assert result.exit_code == 0, result.output
    for text in ("Simulated people", "ungraded pairs with a drawn grade", "best reachable AUC"):
        assert text in result.output
    described = json.loads((tmp_path / "log" / "marketplace.json").read_text())
    assert described["simulated"] is True
    assert described["catalogue"] == str(shop)
    assert [described["config"][name] for name in ("users", "impressions", "days")] == [50, 1000, 20]
    refused = CliRunner().invoke(app, [*asked, "--no-images"])
    assert refused.exit_code == 2
    assert "not rendered" in refused.output

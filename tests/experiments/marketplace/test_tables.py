"""What a generated folder holds, whatever its preset."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.marketplace.config import MarketplaceConfig
from experiments.marketplace.generate import generate
from experiments.marketplace.tables import IMPRESSIONS, PURCHASES
from features.artifacts import sha256_of
from tests.experiments.marketplace.conftest import Written

TABLES = ("products", "relevance", "impressions", "purchases")
DAY = np.timedelta64(1, "D")


@pytest.fixture(params=["written", "written_retrieval"])
def market(request: pytest.FixtureRequest) -> Written:
    return request.getfixturevalue(request.param)


def test_the_logs_have_the_declared_columns(market):
    assert market.table("impressions").schema.equals(IMPRESSIONS)
    assert market.table("purchases").schema.equals(PURCHASES)
    assert market.table("products").schema.field("product_id").type == pa.int64()
    assert market.table("relevance").column_names == [
        *("query", "product_id", "grade", "source"),
        "intent",
    ]


def test_ids_are_unique_and_every_product_of_a_log_is_in_the_catalogue(market):
    products = market.column("products", "product_id")
    assert len(np.unique(products)) == market.config.products
    for table, key in (("impressions", "impression_id"), ("purchases", "purchase_id")):
        ids = market.column(table, key)
        assert len(np.unique(ids)) == len(ids)
        assert np.isin(market.column(table, "product_id"), products).all()
        assert market.column(table, "user_id").min() >= 1
        assert market.column(table, "user_id").max() <= market.config.users
    assert np.isin(market.column("relevance", "product_id"), products).all()


def test_each_source_grades_a_pair_at_most_once_and_some_pairs_have_both(market):
    relevance = market.table("relevance").to_pandas()
    assert not relevance.duplicated(["query", "product_id", "source"]).any()
    both = relevance.duplicated(["query", "product_id"]).sum()
    assert both == market.config.human_labels - market.config.human_labels // 2


def test_logs_run_in_time_over_the_period_and_purchases_start_84_days_earlier(market):
    start = np.datetime64(market.config.start)
    impressions = market.column("impressions", "timestamp")
    purchases = market.column("purchases", "timestamp")
    assert (np.diff(impressions) >= np.timedelta64(0)).all()
    assert (np.diff(purchases) >= np.timedelta64(0)).all()
    assert start <= impressions[0] < start + DAY
    assert impressions[-1] < start + market.config.days * DAY
    assert start - 84 * DAY <= purchases[0] < start - 83 * DAY


def test_clicks_follow_their_impression_by_one_second_to_thirty_minutes(market):
    log = market.table("impressions").to_pandas()
    clicked = log.clicked == 1
    wait = (log.click_timestamp - log.timestamp)[clicked].dt.total_seconds()
    assert wait.min() >= 1
    assert wait.max() <= 1800
    assert log.click_timestamp[~clicked].isna().all()


def test_a_search_shows_different_products_at_positions_one_two_and_so_on(market):
    log = market.table("impressions").to_pandas()
    searches = log.groupby(["user_id", "timestamp", "query"])
    assert not log.duplicated(["user_id", "timestamp", "query", "product_id"]).any()
    assert (searches.position.max() == searches.position.count()).all()
    assert (searches.position.min() == 1).all()
    assert searches.size().max() <= 5


def test_no_product_is_shown_or_bought_before_its_launch(market):
    launch = dict(
        zip(
            market.column("truth/products", "product_id"),
            market.column("truth/products", "available_from_day"),
            strict=True,
        )
    )
    for table in ("impressions", "purchases"):
        day = (market.column(table, "timestamp") - np.datetime64(market.config.start)) // DAY
        launched = np.array([launch[product] for product in market.column(table, "product_id")])
        assert (day >= launched).all()


def test_some_products_first_appear_in_the_test_week(market):
    day = market.column("truth/products", "available_from_day")
    assert (day >= market.config.days - market.config.test_days).any()


def test_about_a_third_of_the_users_never_purchase(market):
    buyers = np.unique(market.column("purchases", "user_id"))
    assert 0.28 < 1 - len(buyers) / market.config.users < 0.42


def test_orders_hold_one_to_four_different_products(market):
    orders = market.table("purchases").to_pandas().groupby(["user_id", "timestamp"]).product_id
    assert orders.size().max() <= 4
    assert (orders.size() == orders.nunique()).all()
    assert (orders.size() > 1).any()


def test_users_buy_favourites_again(market):
    purchases = market.table("purchases").to_pandas()
    assert purchases.duplicated(["user_id", "product_id"]).mean() > 0.2


def test_the_truth_is_kept_apart_row_by_row(market):
    ids = market.column("impressions", "impression_id")
    np.testing.assert_array_equal(market.column("truth/impressions", "impression_id"), ids)
    for table in TABLES:
        names = " ".join(market.table(table).column_names)
        assert not any(secret in names for secret in ("probability", "quality", "variety", "flags", "true"))


def test_true_probabilities_predict_how_often_is_clicked(market):
    probability = market.column("truth/impressions", "click_probability")
    clicked = market.column("impressions", "clicked")
    order = np.argsort(probability)
    for part in np.array_split(order, 8):
        expected = probability[part].sum()
        spread = np.sqrt((probability[part] * (1 - probability[part])).sum())
        assert abs(clicked[part].sum() - expected) < 4 * spread


def test_the_summary_is_what_the_tables_say(market):
    content = json.loads((market.folder / "marketplace.json").read_text())
    assert content["simulated"] is True
    assert content["summary"] == market.summary
    assert MarketplaceConfig.model_validate(content["config"]) == market.config
    clicked = market.column("impressions", "clicked")
    assert market.summary["impressions"] == len(clicked)
    assert market.summary["ctr"] == pytest.approx(clicked.mean())
    assert market.summary["purchases"] == market.table("purchases").num_rows
    assert abs(len(clicked) / market.config.impressions - 1) < 0.01


def test_the_mean_history_length_counts_purchases_of_the_84_days_before(market):
    import pandas as pd

    log = market.table("impressions").to_pandas()
    bought = market.table("purchases").to_pandas()
    log_day, bought_day = log.timestamp.dt.floor("D"), bought.timestamp.dt.floor("D")
    pairs = pd.DataFrame({"user_id": log.user_id, "day": log_day}).merge(
        pd.DataFrame({"user_id": bought.user_id, "bought": bought_day}), on="user_id"
    )
    age = (pairs.day - pairs.bought).dt.days
    expected = ((age >= 1) & (age <= 84)).sum() / len(log)
    assert market.summary["mean_history_length"] == pytest.approx(expected)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not(market, tmp_path):
    again = market.config.model_copy(update={"images": False})
    generate(again, tmp_path / "again")
    for name in (*TABLES[1:], "truth/impressions", "truth/relevance", "truth/queries"):
        assert sha256_of(tmp_path / "again" / f"{name}.parquet") == sha256_of(
            market.folder / f"{name}.parquet"
        ), f"without images, {name} must be the same"
    other = pq.read_table(tmp_path / "again" / "products.parquet")
    assert other.drop_columns("image").equals(market.table("products").drop_columns("image"))
    assert other["image"].null_count == len(other)

    generate(again.model_copy(update={"seed": 8}), tmp_path / "other")
    assert not pq.read_table(tmp_path / "other" / "products.parquet").equals(other)


def test_an_interrupted_generation_leaves_nothing(tmp_path):
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "days" and done == 90:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(MarketplaceConfig.preset("tiny"), tmp_path / "out", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_marketplace_survives_a_failed_replacement(market, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("as it was")
    (out / "marketplace.json").write_text('{"simulated": true}')

    def fail(stage: str, done: int, total: int) -> None:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        generate(market.config, out, progress=fail)
    assert (out / "kept").read_text() == "as it was"

"""What a request may leave out, override and get wrong."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.columns.clock import DAY_US
from features.columns.counters import counter_names, smoothed_ctr
from features.columns.transforms import Transform
from features.columns.vocabulary import Vocabulary
from features.online.build_snapshot import build_snapshot
from features.online.request import RequestError, ScoreRequest
from features.online.request_features import OnlineFeatures
from tests.features.small_logs import START_US
from tests.features.small_market import WIDE, Market

NOW_US = START_US + 7 * DAY_US


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return Market(tmp_path_factory.mktemp("market"), WIDE, seed=8)


@pytest.fixture(scope="module")
def online(market):
    return OnlineFeatures(market.snapshot(NOW_US))


def request(**changes):
    """Three products, the first of which nobody knows."""
    sent = {"user_id": 11, "query": "query 1", "timestamp_us": NOW_US, "candidates": [999, 4, 2]}
    return ScoreRequest(**(sent | changes))


def dense(online, found, name):
    return found.dense_NF[:, online.snapshot.manifest.dense_columns.index(name)]


def sparse(online, found, name):
    names = [column.name for column in online.snapshot.manifest.sparse_columns]
    return found.sparse_NS[:, names.index(name)].tolist()


def vocabulary(market, name):
    table = market.feature_set.vocabulary(name)
    oov_rows = {c.name: c.oov_rows for c in market.feature_set.manifest.sparse_columns}[name]
    return Vocabulary(name, table["id"].combine_chunks(), table["count"].to_numpy(), oov_rows)


def test_unknown_ids_score_by_hashed_rows_and_are_counted(market, online):
    found = online.rows(request(user_id=123456, query="never asked", history=[777, 4, 778, 4]))
    assert found.unknown == {"users": 1, "queries": 1, "products": 1, "history": 2}
    assert (found.user, found.query) == (-1, -1)
    assert found.product_N.tolist() == [-1, 2, 1]
    assert found.history.tolist() == [2, 2]
    for name, ids in (("user", [123456] * 3), ("product", [999, 4, 2]), ("query", ["never asked"] * 3)):
        wanted = vocabulary(market, name).rows_of(pa.array(ids))
        assert sparse(online, found, name) == wanted.tolist()
        assert 0 < wanted[0] <= vocabulary(market, name).oov_rows
    assert sparse(online, found, "brand")[0] == 0
    transforms = online.snapshot.manifest.transforms
    prior = online.snapshot.manifest.counter_prior_ctr
    for key in ("user", "query", "query_product"):
        for name, nothing in zip(counter_names(key, 2), (0, 0, prior), strict=True):
            assert (dense(online, found, name) == transforms[name].apply(np.array([nothing]))).all()


def test_a_cold_request_without_user_query_or_products_has_a_meaning(online):
    found = online.rows(request(user_id=None, query=None, candidates=[4]))
    assert found.unknown == {"users": 0, "queries": 0, "products": 0, "history": 0}
    assert sparse(online, found, "user") == sparse(online, found, "query") == [0]
    assert len(found.history) == 0
    with pytest.raises(RequestError, match="candidates: an empty list came; send at least one"):
        request(candidates=[])


def test_an_empty_history_is_not_the_snapshots(market, online):
    user = int(np.argmax(np.diff(online.snapshot.purchases.start_U)))
    user_id = online.snapshot.users.ids()[user].as_py()
    assert len(online.rows(request(user_id=user_id)).history) > 0
    assert len(online.rows(request(user_id=user_id, history=[])).history) == 0


def test_an_absent_column_has_the_serving_value_and_a_null_is_missing(market, online):
    rows = vocabulary(market, "position").rows_of(pa.array([1, 4, None])).tolist()
    assert sparse(online, online.rows(request()), "position") == [rows[0]] * 3
    assert sparse(online, online.rows(request(context={"position": 4})), "position") == [rows[1]] * 3
    assert sparse(online, online.rows(request(context={"position": None})), "position") == [0] * 3
    each = online.rows(request(candidate_columns={"position": [1, 4, None]}))
    assert sparse(online, each, "position") == rows
    absent = online.rows(request())
    assert sparse(online, absent, "store") == [0] * 3
    assert dense(online, absent, "price").tolist() == [0] * 3
    assert dense(online, absent, "price_missing").tolist() == [1] * 3


@pytest.mark.parametrize(
    "given",
    [
        {"context": {"store_id": 3, "price": 2.5}},
        {"candidate_columns": {"store_id": [3, 3, 3], "price": np.full(3, 2.5, np.float32)}},
        {"candidate_columns": {"store_id": np.full(3, 3), "price": pa.array([2.5, 2.5, 2.5])}},
    ],
    ids=["context", "lists", "arrays"],
)
def test_one_value_for_all_is_the_same_as_one_for_each(online, given):
    plain = online.rows(request(candidate_columns={"store_id": [3] * 3, "price": [2.5] * 3}))
    found = online.rows(request(**given))
    np.testing.assert_array_equal(found.dense_NF, plain.dense_NF)
    np.testing.assert_array_equal(found.sparse_NS, plain.sparse_NS)
    assert dense(online, found, "price_missing").tolist() == [0] * 3


def test_live_product_columns_replace_the_catalogues(market, online):
    found = online.rows(
        request(candidate_columns={"brand": ["brand 1", None, "no such"], "weight": [9, 8, 7]})
    )
    wanted = vocabulary(market, "brand").rows_of(pa.array(["brand 1", None, "no such"]))
    assert sparse(online, found, "brand") == wanted.tolist()
    transform = online.snapshot.manifest.transforms["weight"]
    assert (dense(online, found, "weight") == transform.apply(np.array([9, 8, 7]))).all()


def test_a_live_price_of_the_log_leaves_that_of_the_catalogue_alone(online):
    plain = online.rows(request())
    found = online.rows(request(context={"price": 3.0}))
    assert (dense(online, found, "list_price") == dense(online, plain, "list_price")).all()
    assert (dense(online, found, "price") != dense(online, plain, "price")).all()


def test_live_counts_replace_the_snapshots_and_their_rate_follows(online):
    manifest = online.snapshot.manifest
    impressions, clicks, ctr = counter_names("product", 2)
    shown, clicked = np.array([10, 20, 0]), np.array([5, 0, 0])
    found = online.rows(request(candidate_columns={impressions: shown, clicks: clicked.tolist()}))
    rate = smoothed_ctr(
        shown.astype(np.int32),
        clicked.astype(np.int32),
        prior_impressions=manifest.config.counters.prior_impressions,
        prior_ctr=manifest.counter_prior_ctr,
    )
    for name, value in ((impressions, shown), (clicks, clicked), (ctr, rate)):
        assert (dense(online, found, name) == manifest.transforms[name].apply(value)).all()
    plain = online.rows(request())
    others = [i for i, name in enumerate(manifest.dense_columns) if name not in (impressions, clicks, ctr)]
    np.testing.assert_array_equal(found.dense_NF[:, others], plain.dense_NF[:, others])
    given = online.rows(request(candidate_columns={impressions: shown, ctr: [0.5, 0.25, 0.125]}))
    assert (dense(online, given, ctr) == manifest.transforms[ctr].apply(np.array([0.5, 0.25, 0.125]))).all()


@pytest.mark.parametrize("way", ["context", "candidate_columns"])
@pytest.mark.parametrize(
    ("values", "field", "came"),
    [
        ({"product_ctr_2d": 1.5}, "product_ctr_2d", "a click-through rate of 1.5"),
        (
            {"product_impressions_2d": 3, "product_clicks_2d": 5},
            "product_clicks_2d",
            "5 clicks with 3 impressions",
        ),
        ({"product_clicks_2d": 10**6}, "product_clicks_2d", "1e+06 clicks with"),
        ({"product_impressions_2d": 0}, "product_impressions_2d", "1 clicks with 0 impressions"),
        (
            {"product_impressions_2d": 10, "product_clicks_2d": 20, "product_ctr_2d": 0.5},
            "product_clicks_2d",
            "20 clicks with 10 impressions",
        ),
        ({"product_impressions_2d": 1e13}, "product_impressions_2d", "1e+13"),
        (
            {"product_impressions_2d": 0, "product_clicks_2d": 99, "product_ctr_2d": 50},
            "product_ctr_2d",
            "a click-through rate of 50",
        ),
        (
            {"query_impressions_1d": 0, "query_clicks_1d": 1},
            "query_clicks_1d",
            "1 clicks with 0 impressions",
        ),
    ],
)
def test_counters_that_cannot_be_are_refused(online, way, values, field, came):
    given = values if way == "context" else {name: [value] * 3 for name, value in values.items()}
    with pytest.raises(RequestError) as refusal:
        online.rows(request(**{way: given}))
    assert refusal.value.field == f"{way}.{field}"
    assert refusal.value.came.startswith(came)
    assert refusal.value.status == 400
    if "clicks" in field:
        assert f"{field.replace('clicks', 'impressions')} and {field} together" in refusal.value.advice


def test_counters_at_their_limits_are_read(online):
    impressions, clicks, ctr = counter_names("product", 2)
    online.rows(request(context={impressions: 0, clicks: 0, ctr: 0}))
    found = online.rows(request(context={impressions: 3, clicks: 3, ctr: 1}))
    assert (dense(online, found, ctr) == online.snapshot.manifest.transforms[ctr].apply(np.ones(1))).all()


@pytest.mark.parametrize("clicked", [1, 500])  # a CTR below 1, and above
def test_a_logged_row_may_have_clicks_whose_impressions_lie_before_the_window(online, clicked):
    """Its CTR, which is that of its counts, tells it from counts that contradict each other."""
    manifest = online.snapshot.manifest
    impressions, clicks, ctr = counter_names("product", 1)
    prior = manifest.config.counters.prior_impressions
    rate = (clicked + prior * manifest.counter_prior_ctr) / prior
    assert (rate > 1) == (clicked > 1)
    found = online.rows(request(context={impressions: 0, clicks: clicked, ctr: rate}))
    for name, value in ((impressions, 0), (clicks, clicked), (ctr, rate)):
        assert (dense(online, found, name) == manifest.transforms[name].apply(np.array([value]))).all()


def test_a_counter_of_the_query_is_one_number_for_the_request(online):
    name = counter_names("query", 1)[0]
    transform = online.snapshot.manifest.transforms[name]
    for changes in ({"context": {name: 4}}, {"candidate_columns": {name: [4.0, 4.0, 4.0]}}):
        found = online.rows(request(**changes))
        assert (dense(online, found, name) == transform.apply(np.array([4]))).all()
        assert name in online.request_columns
    with pytest.raises(RequestError, match="2 different values came; the model reads one value"):
        online.rows(request(candidate_columns={name: [4, 4, 5]}))


def test_a_declared_context_column_is_given_once(market, online):
    parted = OnlineFeatures(online.snapshot, context_columns=["store_id"])
    with pytest.raises(RequestError, match=r"candidate_columns\.store_id: 2 different values"):
        parted.rows(request(candidate_columns={"store_id": [1, 1, 2]}))
    with pytest.raises(ValueError, match="context column 'brand' is none that features read from the impr"):
        OnlineFeatures(online.snapshot, context_columns=["brand"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": "11"}, "user_id: string '11' came; send an integer"),
        ({"user_id": True}, "user_id: boolean True came; send an integer, a string or null"),
        ({"user_id": 2**63}, "user_id: an integer beyond 64 bits came"),
        ({"user_id": 1.0}, "user_id: number 1.0 came"),
        ({"query": 7}, "query: integer 7 came; send a string"),
        ({"query": "\ud800"}, "query: text with a lone surrogate came"),
        ({"timestamp_us": 1.5}, "timestamp_us: number 1.5 came"),
        ({"timestamp_us": -1}, "timestamp_us: integer -1 came"),
        ({"timestamp_us": 10**18}, "timestamp_us: integer 1000000000000000000 came.*, not nanoseconds"),
        ({"timestamp_us": NOW_US // 10**6}, r"timestamp_us: \d+ \(1970-01-01T00:28.* not seconds or milli"),
        ({"candidates": ["4"]}, "candidates: ids of type string came; the product ids of this catalogue"),
        ({"candidates": [4, None]}, r"candidates\[1\]: null came"),
        ({"candidates": [4, "2"]}, r"candidates\[1\]: string '2' came"),
        ({"candidates": [4.0]}, r"candidates\[0\]: number 4.0 came"),
        ({"candidates": "42"}, "candidates: string '42' came; send a list"),
        ({"candidates": [2**63]}, "candidates: .* came"),
        ({"candidates": np.array([2**63], np.uint64)}, "candidates: an integer beyond 64 bits came"),
        ({"candidates": np.zeros((3, 1), np.int64)}, r"candidates: an array of shape \(3, 1\) came"),
        ({"candidates": 4}, "candidates: integer 4 came; send a list"),
        ({"history": ["4"]}, "history: ids of type string came"),
        ({"context": {"stor_id": 1}}, "context.stor_id: a name that no feature reads .* mean 'store_id'"),
        ({"context": {"user_id": 1}}, "context.user_id: a field of the request came; send it as user_id"),
        ({"candidate_columns": {"product_id": [1] * 3}}, "product_id: a field .* send it as candidates"),
        ({"context": {"hour_of_day": 3}}, "context.hour_of_day: a name that no feature reads"),
        ({"context": {"store_id": "3"}}, "context.store_id: string '3' came; send "),
        ({"context": {"store_id": 3.5}}, "context.store_id: number 3.5 came; send an integer"),
        ({"context": {"price": "3"}}, "context.price: string '3' came; send a number"),
        ({"context": {"price": math.nan}}, "context.price: nan came; send a finite number"),
        ({"context": {"price": 10**400}}, "context.price: an integer beyond 64 bits came"),
        ({"context": {"price": 1j}}, "context.price: a value of type complex came"),
        ({"context": {"price": [1, 2, 3]}}, "context.price: a list of 3 came"),
        ({"context": {"brand": 3}}, "context.brand: integer 3 came; send a string"),
        ({"context": {"product_clicks_1d": -1}}, "product_clicks_1d: a negative or missing number came"),
        ({"context": {"product_clicks_1d": None}}, "product_clicks_1d: a negative or missing number came"),
        ({"candidate_columns": {"price": [1.0, 2.0]}}, "price: 2 values came; send one for each of the 3"),
        ({"candidate_columns": {"price": [1.0, math.nan, 2]}}, "price: nan for candidate 1 came"),
        ({"candidate_columns": {"price": np.array([1, np.inf, 2])}}, "price: NaN or an infinity came"),
        ({"candidate_columns": {"price": pa.array([1, None, math.nan])}}, "price: nan for candidate 2 came"),
        ({"candidate_columns": {"price": ["1"] * 3}}, "price: values of type string came; send numbers"),
        ({"candidate_columns": {"price": [[1], [2], [3]]}}, "price: values of type list"),
        ({"candidate_columns": {"query_clicks_1d": [[1]] * 3}}, "query_clicks_1d: values of type list"),
        ({"candidate_columns": {"price": 1.0}}, "price: number 1.0 came; send a list"),
        ({"candidate_columns": {"store_id": [1.5] * 3}}, "store_id: values of type double came; send int"),
        ({"candidate_columns": {"brand": [1] * 3}}, "brand: values of type int64 came; send strings"),
        ({"candidate_columns": {"brand": ["\ud800"] * 3}}, "brand: a list that is not of one type"),
        (
            {"context": {"price": 1}, "candidate_columns": {"price": [1] * 3}},
            "candidate_columns.price: a column that context gives, too, came",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_came_and_what_to_do(online, changes, message):
    with pytest.raises(RequestError, match=message) as caught:
        online.rows(request(**changes))
    assert caught.value.status == 400


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=4),
)
NAMES = st.sampled_from(
    ["price", "store_id", "position", "brand", "weight", "size", "query_ctr_1d", "x", "user_id"]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user_id=st.one_of(st.integers(0, 90), VALUES),
    query=st.one_of(st.text(), VALUES),
    timestamp_us=st.one_of(st.integers(START_US, NOW_US), VALUES),
    candidates=st.one_of(st.lists(st.integers(0, 15), max_size=4), VALUES, st.lists(VALUES, max_size=4)),
    context=st.dictionaries(NAMES, VALUES, max_size=3),
    candidate_columns=st.dictionaries(NAMES, st.one_of(VALUES, st.lists(VALUES, max_size=4)), max_size=3),
    history=st.one_of(st.none(), st.lists(st.integers(0, 15)), VALUES, st.lists(VALUES, max_size=4)),
)
def test_any_request_is_read_or_refused_in_a_sentence(online, **changes):
    try:
        found = online.rows(ScoreRequest(**changes))
    except RequestError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert str(refusal) == f"{refusal.field}: {refusal.came} came; {refusal.advice}"
        return
    assert np.isfinite(found.dense_NF).all()
    for place, column in enumerate(online.snapshot.manifest.sparse_columns):
        assert ((found.sparse_NS[:, place] >= 0) & (found.sparse_NS[:, place] < column.rows)).all()
    assert len(found) == len(changes["candidates"])


COLUMNS = {
    "price": st.none() | st.floats(0, 1e3),
    "store_id": st.none() | st.integers(0, 9),
    "position": st.none() | st.integers(0, 12),
    "brand": st.none() | st.sampled_from(["brand 0", "brand 1", "é", ""]),
    "weight": st.none() | st.floats(0, 1e3),
    "product_ctr_1d": st.floats(0, 1),
    "query_product_clicks_2d": st.integers(0, 10**6),
}


@st.composite
def candidates(draw):
    """Products and a few columns of theirs."""
    products = draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), unique=True))
    columns = {
        name: draw(st.lists(COLUMNS[name], min_size=len(products), max_size=len(products))) for name in names
    }
    if "query_product_clicks_2d" in columns:
        more = draw(st.integers(0, 10**6))
        shown = [clicks + more for clicks in columns["query_product_clicks_2d"]]
        columns["query_product_impressions_2d"] = shown
    return products, columns


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shown=candidates(),
    user_id=st.none() | st.integers(0, 9).map(lambda number: number * 10 + 1),
    query=st.none() | st.sampled_from(["query 0", "query 3", "", "new é"]),
    timestamp_us=st.integers(NOW_US - DAY_US, NOW_US + DAY_US),
)
def test_each_candidate_reads_the_same_alone_and_among_others(online, shown, user_id, query, timestamp_us):
    products, columns = shown
    together = online.rows(ScoreRequest(user_id, query, products, timestamp_us, candidate_columns=columns))
    for place, product in enumerate(products):
        context = {name: values[place] for name, values in columns.items()}
        alone = online.rows(ScoreRequest(user_id, query, [product], timestamp_us, context))
        np.testing.assert_array_equal(together.dense_NF[place], alone.dense_NF[0])
        np.testing.assert_array_equal(together.sparse_NS[place], alone.sparse_NS[0])
        assert together.product_N[place] == alone.product_N[0]
    assert together.history.tolist() == alone.history.tolist()


def test_a_product_newer_than_the_feature_set_has_what_the_catalogue_says(tmp_path, market):
    """Of products that training never saw, brand and weight are known; the id itself is hashed."""
    tables = {path.stem: pa.parquet.read_table(path) for path in market.data.glob("*.parquet")}
    new = tables["products"].slice(2, 1)
    for column, value in (("product_id", 3), ("brand", "brand 0"), ("weight", 6.25)):
        place = new.schema.get_field_index(column)
        new = new.set_column(place, column, pa.array([value], new.schema.field(column).type))
    tables["products"] = pa.concat_tables([tables["products"], new])
    for name, table in tables.items():
        pa.parquet.write_table(table, tmp_path / f"{name}.parquet")
    snapshot = build_snapshot(tmp_path, market.feature_set, tmp_path / "snapshot", as_of_us=NOW_US)
    assert snapshot.product_ids().to_pylist() == [0, 2, 3, 4, 6, 8, 10, 12]
    online = OnlineFeatures(snapshot)
    found = online.rows(request(candidates=[3, 4]))
    assert found.unknown["products"] == 0
    assert (
        sparse(online, found, "product") == vocabulary(market, "product").rows_of(pa.array([3, 4])).tolist()
    )
    assert sparse(online, found, "brand")[0] == vocabulary(market, "brand").rows_of(pa.array(["brand 0"]))[0]
    transform: Transform = snapshot.manifest.transforms["weight"]
    assert dense(online, found, "weight")[0] == transform.apply(np.array([6.25]))[0]
    old = OnlineFeatures(market.snapshot(NOW_US)).rows(request(candidates=[4]))
    np.testing.assert_array_equal(found.dense_NF[1], old.dense_NF[0])

"""Complete grades read back from `truth/` are those of the law that wrote it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from embeddings.evaluation.judgements import Judgements
from experiments.marketplace.generate import _CATALOG, _QUERIES, child_seed
from experiments.marketplace.judgements import MarketplaceTruth
from experiments.marketplace.world.assortment import FLAGS
from experiments.marketplace.world.catalog import make_catalog
from experiments.marketplace.world.graders import true_grades
from experiments.marketplace.world.queries import KINDS, make_queries


def dense(judgements: Judgements) -> np.ndarray:
    grades_QP = np.zeros((len(judgements), len(judgements.products)), np.int8)
    grades_QP[judgements.query_J, judgements.product_J] = judgements.grade_J
    return grades_QP


@pytest.fixture(scope="module")
def truth(written) -> MarketplaceTruth:
    return MarketplaceTruth.read(written.folder)


def test_they_equal_the_true_grades_of_every_labelled_pair(written, truth):
    pairs = written.table("truth/relevance").combine_chunks()
    query_N = truth.rows_of_queries(pairs["query"].combine_chunks())
    product_N = pc.index_in(pairs["product_id"], value_set=truth.products).to_numpy()
    np.testing.assert_array_equal(dense(truth.judgements())[query_N, product_N], pairs["grade"].to_numpy())
    assert np.bincount(pairs["grade"].to_numpy()).min() > 100, "all three grades are among them"


def test_they_equal_the_law_on_every_pair_of_the_marketplace(written, truth):
    catalog = make_catalog(written.config, child_seed(written.config, _CATALOG))
    queries = make_queries(written.config, catalog, child_seed(written.config, _QUERIES))
    assert truth.queries.to_pylist() == queries.texts
    assert truth.products.to_pylist() == catalog.product_id_P.tolist()
    products = np.arange(catalog.num_products)
    expected = np.stack(
        [
            true_grades(queries, catalog, np.full(len(products), row), products)
            for row in range(len(queries.texts))
        ]
    )
    np.testing.assert_array_equal(dense(truth.judgements()), expected)


def test_chosen_queries_have_their_own_grades_in_the_order_asked(truth):
    everything = dense(truth.judgements())
    rows = np.array([7, 3, 100])
    chosen = truth.judgements(truth.queries.take(pa.array(rows)))
    assert chosen.complete
    np.testing.assert_array_equal(dense(chosen), everything[rows])
    assert len(truth.judgements(truth.queries.slice(0, 0))) == 0


def test_products_stand_in_the_order_of_the_products_table(written, truth):
    assert truth.products.equals(written.table("products")["product_id"].combine_chunks())


def test_a_product_hides_a_fact_unless_its_title_has_brand_variety_and_all_flags(written, truth):
    titles = written.table("products")["title"].to_pylist()
    facts = written.table("truth/products").to_pylist()
    for title, fact, hides in zip(titles, facts, truth.hides_fact_P.tolist(), strict=True):
        flags = [name for bit, name in enumerate(FLAGS) if fact["flags"] >> bit & 1]
        names = [fact["brand"], fact["variety"], *flags]
        assert hides == any(name.casefold() not in title.casefold() for name in names), title
    assert 0.3 < truth.hides_fact_P.mean() < 0.9


def test_a_facet_that_no_product_has_is_met_by_none(written, truth, tmp_path):
    # Grades of 1 remain: the type is right, the brand is not.
    import pyarrow.parquet as pq

    (tmp_path / "truth").mkdir()
    products = written.table("truth/products")
    pq.write_table(products, tmp_path / "truth" / "products.parquet")
    rows = written.table("truth/queries").slice(0, 1).to_pylist()
    pq.write_table(
        pa.Table.from_pylist([rows[0] | {"brand": "No Such Brand"}], written.table("truth/queries").schema),
        tmp_path / "truth" / "queries.parquet",
    )
    changed = MarketplaceTruth.read(tmp_path).judgements()
    assert set(changed.grade_J.tolist()) == {1}
    assert changed.product_J.tolist() == truth.judgements(truth.queries.slice(0, 1)).product_J.tolist()


def test_kinds_part_the_queries(truth):
    masks = truth.kind_masks(truth.queries)
    assert set(masks) <= set(KINDS)
    assert {"head", "brand", "misspelt"} <= set(masks)
    np.testing.assert_array_equal(np.sum(list(masks.values()), axis=0), 1)
    assert truth.kinds_of(truth.queries.slice(5, 2)) == truth.kinds[5:7]


def test_a_query_of_another_shop_is_named(truth):
    with pytest.raises(ValueError, match="1 of 2 are not, 'warp drive' for one"):
        truth.judgements(pa.array([truth.queries[0].as_py(), "warp drive"]))


def test_a_folder_without_truth_is_named(tmp_path):
    with pytest.raises(ValueError, match="complete grades exist only for a simulated marketplace"):
        MarketplaceTruth.read(tmp_path)

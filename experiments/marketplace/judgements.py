"""Complete true grades of a simulated marketplace: every query against every product, from `truth/`.

The law is that of `relevance.true_grades`, read back from names: a test holds the two together. Only
evaluation may read these files; no feature and no training does.

Shapes: Q queries, P products, T types.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings.evaluation.judgements import Judgements
from experiments.marketplace.world.assortment import load_assortment
from experiments.marketplace.world.catalog import BoolArray, IntArray
from experiments.marketplace.world.queries import KINDS

_NO_FACET = -1
_PRODUCT_COLUMNS = [
    *("product_id", "type", "brand", "variety", "flags"),
    *("title_flags", "title_shows_brand", "title_shows_variety"),
]
_QUERY_COLUMNS = ["query", "kind", "types", "brand", "variety", "flags"]


@dataclass(frozen=True, eq=False)
class MarketplaceTruth:
    """What products are and what queries ask for; facets are codes into one list of brands and varieties."""

    products: pa.Array
    type_P: IntArray
    brand_P: IntArray
    variety_P: IntArray
    flags_P: IntArray
    #: Brand, variety or a flag is on the package alone.
    hides_fact_P: BoolArray
    queries: pa.Array
    kinds: list[str]
    types: list[list[str]]
    brand_Q: IntArray
    variety_Q: IntArray
    flags_Q: IntArray

    @classmethod
    def find(cls, data: Path) -> "MarketplaceTruth | None":
        """`read`; None where nobody knows every grade: real data, and simulated logs on a real catalogue."""
        return cls.read(data) if (data / "truth" / "queries.parquet").is_file() else None

    @classmethod
    def read(cls, data: Path) -> "MarketplaceTruth":
        """Read `data`/truth; products are in the order of the file, which is that of products.parquet.

        Raises:
            ValueError: the folder has no such truth, so it is not a simulated marketplace.
        """
        products = _read(data / "truth" / "products.parquet", _PRODUCT_COLUMNS)
        queries = _read(data / "truth" / "queries.parquet", _QUERY_COLUMNS)
        type_names = pa.array([kind.name for kind in load_assortment().types])
        brands, varieties = (products.column(name).unique() for name in ("brand", "variety"))
        return cls(
            products=products.column("product_id").combine_chunks(),
            type_P=_codes(products.column("type"), type_names),
            brand_P=_codes(products.column("brand"), brands),
            variety_P=_codes(products.column("variety"), varieties),
            flags_P=products.column("flags").to_numpy(),
            hides_fact_P=pc.or_(
                pc.invert(pc.and_(products["title_shows_brand"], products["title_shows_variety"])),
                pc.not_equal(products["flags"], products["title_flags"]),
            ).to_numpy(),
            queries=queries.column("query").combine_chunks(),
            kinds=queries.column("kind").to_pylist(),
            types=queries.column("types").to_pylist(),
            brand_Q=_codes(queries.column("brand"), brands),
            variety_Q=_codes(queries.column("variety"), varieties),
            flags_Q=queries.column("flags").to_numpy(),
        )

    def rows_of_queries(self, queries: pa.Array) -> IntArray:
        """Position of each query text in `self.queries`.

        Raises:
            ValueError: a text is not a query of this marketplace.
        """
        rows = pc.index_in(queries.cast(pa.string()), value_set=self.queries)
        if rows.null_count:
            unknown = queries.filter(rows.is_null())
            raise ValueError(
                f"all queries must be in truth/queries.parquet, but {len(unknown):,} of {len(queries):,} are "
                f"not, {unknown[0].as_py()!r} for one; take the queries of this marketplace"
            )
        return rows.to_numpy(zero_copy_only=False)

    def kinds_of(self, queries: pa.Array) -> list[str]:
        """Kind of each query: head, brand, attribute, use case or misspelt."""
        return [self.kinds[row] for row in self.rows_of_queries(queries).tolist()]

    def kind_masks(self, queries: pa.Array) -> dict[str, BoolArray]:
        """Which of the queries are of each kind; kinds without a query are left out."""
        kinds = np.array(self.kinds_of(queries), dtype=str)
        return {kind: kinds == kind for kind in KINDS if (kinds == kind).any()}

    def judgements(self, queries: pa.Array | None = None) -> Judgements:
        """True grades of the queries (all of the marketplace if None) with all products.

        Only pairs of grade 1 and 2 are listed; `complete` says that all others have grade 0. The products
        are in the order of `self.products`.
        """
        queries = self.queries if queries is None else queries
        types = load_assortment().types
        type_index = {kind.name: index for index, kind in enumerate(types)}
        group_T = np.unique([kind.group for kind in types], return_inverse=True)[1]
        order_P = np.argsort(self.type_P, kind="stable")
        first_T = np.searchsorted(self.type_P[order_P], np.arange(len(types) + 1))
        members = [order_P[first_T[kind] : first_T[kind + 1]] for kind in range(len(types))]

        found: list[tuple[IntArray, IntArray]] = []
        for row in self.rows_of_queries(queries).tolist():
            wanted = [type_index[name] for name in self.types[row]]
            related = np.flatnonzero(np.isin(group_T, group_T[wanted]))
            products = np.concatenate([members[kind] for kind in related])
            complete = np.isin(self.type_P[products], wanted) & self._has_facets(row, products)
            found.append((products, np.where(complete, 2, 1)))
        return Judgements.from_pairs(
            queries=queries,
            products=self.products,
            query_J=np.repeat(np.arange(len(queries)), [len(products) for products, _ in found]),
            product_J=np.concatenate([products for products, _ in found] or [np.zeros(0, np.int64)]),
            grade_J=np.concatenate([grades for _, grades in found] or [np.zeros(0, np.int64)]),
            complete=True,
        )

    def _has_facets(self, row: int, products: IntArray) -> BoolArray:
        """Which products have every facet that the query states."""
        brand, variety, flags = self.brand_Q[row], self.variety_Q[row], self.flags_Q[row]
        has = (self.flags_P[products] & flags) == flags
        if brand != _NO_FACET:
            has &= self.brand_P[products] == brand
        if variety != _NO_FACET:
            has &= self.variety_P[products] == variety
        return has


def _read(path: Path, columns: list[str]) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path} is missing; complete grades exist only for a simulated marketplace")
    return pq.read_table(path, columns=columns)


def _codes(names: pa.ChunkedArray, known: pa.Array) -> IntArray:
    """Position of each name in `known`, -1 for null, one past the last for a name that is not in it."""
    code = pc.fill_null(pc.index_in(names, value_set=known, skip_nulls=True), len(known))
    return pc.if_else(names.is_null(), _NO_FACET, code).to_numpy()

"""Cosines of queries and products by an encoder or by embedding tables, and the products nearest to a query.

Shapes: N pairs, P products, K places, D embedding width.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.catalog.images import OutsideImage
from embeddings.catalog.products import ProductCatalog
from embeddings.embedding_table import EmbeddingTable, is_table
from embeddings.encoders.dashclip import DashClipEncoder
from embeddings.evaluation.lexical import char_tfidf_scores
from embeddings.evaluation.linear_probe import unit_vectors
from embeddings.evaluation.search import search
from embeddings.stages.run_folder import encoder_folder
from experiments.scoring.rows import ids_like
from features.inputs.tables import find_table
from features.progress import Progress, silent

Floats = npt.NDArray[np.float32]
_BATCH = 64


@dataclass(frozen=True, eq=False)
class VectorSource:
    """Where vectors come from: an encoder, tables, or products from tables and queries from an encoder.

    At least one is given. A table's vector goes before the encoder's.
    """

    encoder: DashClipEncoder | None
    products: EmbeddingTable | None
    queries: EmbeddingTable | None

    @classmethod
    def open(cls, encoders: Path | None, table: Path | None) -> "VectorSource":
        """Open an encoder, a folder with `products/` and perhaps `queries/`, or both.

        Raises:
            ValueError: neither is given, or a folder holds something else.
        """
        if encoders is None and table is None:
            raise ValueError("say what makes the vectors: --encoders RUN, --table FOLDER, or both")
        encoder = None
        if encoders is not None:
            folder = encoder_folder(encoders)
            if folder is None:
                raise ValueError(f"{encoders} holds no encoder; `dashclip encode` trains one")
            encoder = DashClipEncoder.load(folder)
        found = {}
        if table is not None:
            found = {
                kind: EmbeddingTable.load(table / kind)
                for kind in ("products", "queries")
                if is_table(table / kind)
            }
            if "products" not in found:
                raise ValueError(f"{table} has no products/ with vectors; `dashclip embed lsa` makes some")
        return cls(encoder, found.get("products"), found.get("queries"))

    @classmethod
    def open_any(cls, folder: Path) -> "VectorSource":
        """Open an encoder, or the run that made it, or a folder of tables: whichever it is.

        Raises:
            ValueError: it is neither.
        """
        return cls.open(folder, None) if encoder_folder(folder) else cls.open(None, folder)

    @property
    def encoder_id(self) -> str:
        """Of the encoder, else of what made the products' table."""
        if self.encoder is not None:
            return self.encoder.encoder_id
        assert self.products is not None
        return self.products.manifest.encoder_id

    def query_vectors(self, queries: Sequence[str | None]) -> Floats:
        """Unit vectors [N, D]; zeros where there is none."""
        if self.queries is None:
            return self._encode_queries(queries)
        vectors_ND = unit_vectors(self.queries, pa.array(queries, pa.string()))
        unknown_N = np.array(~vectors_ND.any(axis=1), bool)
        if self.encoder is not None and unknown_N.any():
            asked = [query for query, unknown in zip(queries, unknown_N.tolist(), strict=True) if unknown]
            vectors_ND[unknown_N] = self._encode_queries(asked)
        return vectors_ND

    def text_vectors(self, texts: Sequence[str]) -> Floats:
        """Unit vectors of products that are nothing but a text [N, D].

        Raises:
            ValueError: there is no encoder.
        """
        if self.encoder is None:
            raise ValueError("texts have no row in a table; give --encoders RUN, or product_id for text")
        count = len(texts)
        return self._encode_products(
            ProductCatalog(pa.array(np.arange(count)), [*texts], [None] * count, [""] * count)
        )

    def product_vectors(
        self, data: Path | None, ids: pa.Array | None = None, *, progress: Progress = silent
    ) -> Floats:
        """Unit vectors of products, [N, D] for these ids, of the whole catalogue if None.

        Raises:
            ValueError: the encoder needs `data` and has none, or an id cannot be of the type of those known.
        """
        if self.products is not None:
            known = self.products.ids
            if ids is not None:
                return unit_vectors(self.products, ids_like(ids, known.type, name="product_id"))
            return unit_vectors(
                self.products, ProductCatalog.open(data, modalities=("text",)).ids if data else known
            )
        if data is None:
            raise ValueError("an encoder reads titles and images of products: give --data FOLDER")
        catalog = ProductCatalog.open(data)
        if ids is None:
            return self._encode_products(catalog, progress=progress)
        ids = ids_like(ids, catalog.ids.type, name="product_id")
        row_N = pc.fill_null(pc.index_in(ids, catalog.ids), -1).to_numpy(zero_copy_only=False)
        distinct_U, back_N = np.unique(row_N, return_inverse=True)
        vectors_UD = self._encode_products(catalog, distinct_U[distinct_U >= 0], progress=progress)
        if distinct_U[0] < 0:
            vectors_UD = np.concatenate([np.zeros((1, vectors_UD.shape[1]), np.float32), vectors_UD])
        return vectors_UD[back_N]

    def _encode_queries(self, queries: Sequence[str | None]) -> Floats:
        if self.encoder is None:
            raise ValueError("the table has no vectors of queries; give --encoders RUN beside it")
        parts = [
            self.encoder.embed_queries(queries[start : start + _BATCH]).cpu().numpy()
            for start in range(0, len(queries), _BATCH)
        ]
        return np.concatenate(parts)

    def _encode_products(
        self,
        catalog: ProductCatalog,
        row_N: npt.NDArray[np.integer] | None = None,
        *,
        progress: Progress = silent,
    ) -> Floats:
        assert self.encoder is not None
        row_N = np.arange(len(catalog)) if row_N is None else row_N
        parts = [np.zeros((0, self.encoder.config.vector_dim), np.float32)]
        for start in range(0, len(row_N), _BATCH):
            batch = self.encoder.load_batch(catalog, row_N[start : start + _BATCH], unreadable={})
            parts.append(self.encoder.embed_products(batch).cpu().numpy())
            progress("encoding products", min(start + _BATCH, len(row_N)), len(row_N))
        return np.concatenate(parts)


def score_pairs(
    pairs: pa.Table, source: VectorSource, *, data: Path | None = None, progress: Progress = silent
) -> npt.NDArray[np.float64]:
    """Cosine of `query` with `product_id` or `text` in each row [N]; NaN where one of both has no vector.

    Raises:
        ValueError: there is neither column, or what makes vectors cannot make these.
    """
    query_ND = source.query_vectors(pairs["query"].cast(pa.string()).to_pylist())
    if "product_id" in pairs.column_names:
        product_ND = source.product_vectors(data, pairs["product_id"].combine_chunks(), progress=progress)
    elif "text" in pairs.column_names:
        texts = ["" if text is None else text for text in pairs["text"].cast(pa.string()).to_pylist()]
        product_ND = source.text_vectors(texts)
    else:
        raise ValueError("pairs need a column product_id or text beside query")
    if query_ND.shape[1] != product_ND.shape[1]:
        raise ValueError(
            f"queries have {query_ND.shape[1]} dimensions and products {product_ND.shape[1]}: they are not "
            "of one encoder"
        )
    cosine_N = np.einsum("nd,nd->n", query_ND.astype(np.float64), product_ND.astype(np.float64))
    cosine_N[~(query_ND.any(axis=1) & product_ND.any(axis=1))] = np.nan
    return cosine_N


@dataclass(frozen=True)
class Hit:
    """A product that was found."""

    product_id: int | str
    title: str
    price: float | None
    score: float
    image: Path | None = None


class ProductSearch:
    """The products of a data folder, ready for many queries: their vectors are read or made once."""

    def __init__(self, data: Path, source: VectorSource | None, *, progress: Progress = silent) -> None:
        """
        Args:
            source: what makes the vectors; None searches by character n-grams.
        """
        self._source = source
        self._catalog = ProductCatalog.open(data)
        self._prices = product_prices(data, len(self._catalog))
        self._vectors_PD = None if source is None else source.product_vectors(data, progress=progress)

    def __len__(self) -> int:
        return len(self._catalog)

    def find(self, query: str, k: int) -> list[Hit]:
        """The `k` products nearest to a query, best first.

        Raises:
            ValueError: nothing is known of the query; names the nearest that the table knows.
        """
        catalog = self._catalog
        if self._source is None or self._vectors_PD is None:
            [score_P] = char_tfidf_scores(catalog.titles, [query])
            best_K = np.argsort(-score_P, kind="stable")[:k]
        else:
            query_1D = self._source.query_vectors([query])
            if not query_1D.any():
                raise ValueError(_unknown(query, self._source))
            score_P = self._vectors_PD @ query_1D[0]
            best_K = search(self._vectors_PD, query_1D, k)[0]
        return [self._hit(row, float(score_P[row])) for row in best_K.tolist()]

    def _hit(self, row: int, score: float) -> Hit:
        image = self._catalog.image_paths[row]
        return Hit(
            self._catalog.ids[row].as_py(),
            self._catalog.titles[row],
            self._prices[row],
            score,
            None if isinstance(image, OutsideImage) else image,
        )


def hits_text(hits: Sequence[Hit], width: int = 80) -> str:
    """A line for each hit: place, score, price where there are prices, title, cut to `width` columns."""
    priced = any(hit.price is not None for hit in hits)
    lines = ["place  score" + ("     price" if priced else "") + "  title"]
    for place, hit in enumerate(hits, start=1):
        price = ("" if hit.price is None else f"{hit.price:.2f}").rjust(10) if priced else ""
        line = f"{place:>5} {hit.score:>6.3f}{price}  {' '.join(hit.title.split())}"
        lines.append(line if len(line) <= width else f"{line[: width - 1]}…")
    return "\n".join(lines) + "\n"


def _unknown(query: str, source: VectorSource) -> str:
    if source.encoder is not None or source.queries is None:
        return f"the encoder knows no word of {query!r}; try other words"
    near = difflib.get_close_matches(query, source.queries.ids.to_pylist(), n=3)
    hint = f"; it has {', '.join(map(repr, near))}" if near else ""
    return (
        f"the table has no vector of the query {query!r}{hint}. Give --encoders RUN to embed any query, or "
        "leave --table out to search by words"
    )


def product_prices(data: Path, count: int) -> list[float | None]:
    """Prices of the products of a data folder in their order; `count` times None where it has none."""
    table = find_table(data, "products")
    if table is None or "price" not in table.schema.names:
        return [None] * count
    return [
        None if price is None else float(price) for price in table.to_table(["price"])["price"].to_pylist()
    ]

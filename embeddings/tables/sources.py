"""What is encoded: the products of a catalogue, or queries, as batches of vectors.

Shapes: C rows of a shard, B rows of a batch, D embedding width.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from embeddings.catalog.products import ProductBatch, ProductCatalog
from embeddings.embedding_table import Kind
from embeddings.encoders.dashclip import DashClipEncoder
from features.artifacts import replaced_file

Rows = npt.NDArray[np.int64]


class Source(Protocol):
    """Rows with distinct ids, each of which has a vector."""

    kind: Kind
    plural: str
    ids: pa.Array
    #: Characters of each text, to batch texts of like length.
    lengths: list[int]

    def inputs(self, row: int) -> str:
        """All that the vector of a row depends on besides id and encoder, as text."""

    def encode(self, rows_C: Rows) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Batches of rows and their vectors, in the order given."""

    def take_notes(self) -> dict[str, Any]:
        """What was noticed since the last call."""


class Products:
    """A catalogue; unreadable images are noted, and their products encoded from the title alone."""

    kind: Kind = "product"
    plural = "products"

    def __init__(
        self, encoder: DashClipEncoder, catalog: ProductCatalog, *, batch_size: int, loaders: int
    ) -> None:
        self.ids = catalog.ids
        self.lengths = [len(title) for title in catalog.titles]
        self._encoder, self._catalog = encoder, catalog
        self._batch_size, self._loaders = batch_size, loaders
        self._unreadable: dict[int, str] = {}
        self._counts: Counter[str] = Counter()

    def inputs(self, row: int) -> str:
        path = self._catalog.image_paths[row]
        stamp: tuple[int, int] | None = None
        if isinstance(path, Path):
            with suppress(OSError):  # a missing file is noted when it is read
                status = path.stat()
                stamp = (status.st_size, status.st_mtime_ns)
        return repr((self._catalog.titles[row], str(path), stamp))

    def encode(self, rows_C: Rows) -> Iterator[tuple[Rows, torch.Tensor]]:
        batches = _batches(rows_C, self._batch_size)
        for rows_B, batch in _loaded_ahead(self._load, batches, threads=self._loaders):
            self._counts["without_image"] += int((~batch.has_image_B).sum())
            self._counts["without_title"] += int((~batch.has_title_B).sum())
            yield rows_B, self._encoder.embed_products(batch)

    def take_notes(self) -> dict[str, Any]:
        unreadable = sorted(self._unreadable.items())  # threads report in any order
        notes = {"unreadable": unreadable, **self._counts}
        self._unreadable, self._counts = {}, Counter()
        return notes

    def write_quarantine(
        self, path: Path, unreadable: list[tuple[int, str]], *, keep_older: bool = False
    ) -> None:
        """Which images could not be read and why; an empty table says that all could.

        With `keep_older` the rows of a list that is there stay below.
        """
        rows = pa.array([row for row, _ in unreadable], pa.int64())
        columns = {
            "product_id": self.ids.take(rows),
            "image": pa.array([str(self._catalog.image_paths[row]) for row, _ in unreadable], pa.string()),
            "reason": pa.array([reason for _, reason in unreadable], pa.string()),
        }
        table = pa.table(columns)
        if keep_older and path.is_file():
            older = pq.read_table(path)
            if older.schema.equals(table.schema):  # not of a catalogue with ids of another type
                table = pa.concat_tables([table, older])
        with replaced_file(path) as temporary:
            pq.write_table(table, temporary)

    def _load(self, rows_B: Rows) -> ProductBatch:
        return self._encoder.load_batch(self._catalog, rows_B, unreadable=self._unreadable)


class Queries:
    """Distinct queries; each is its own id."""

    kind: Kind = "query"
    plural = "queries"

    def __init__(self, encoder: DashClipEncoder, queries: pa.Array, *, batch_size: int) -> None:
        self.ids = queries
        self._texts: list[str] = queries.to_pylist()
        self.lengths = [len(text or "") for text in self._texts]
        self._encoder, self._batch_size = encoder, batch_size

    def inputs(self, row: int) -> str:
        """Nothing besides the id."""
        return ""

    def encode(self, rows_C: Rows) -> Iterator[tuple[Rows, torch.Tensor]]:
        for rows_B in _batches(rows_C, self._batch_size):
            yield rows_B, self._encoder.embed_queries([self._texts[row] for row in rows_B])

    def take_notes(self) -> dict[str, Any]:
        return {}


def _batches(rows_C: Rows, batch_size: int) -> list[Rows]:
    return [rows_C[start : start + batch_size] for start in range(0, len(rows_C), batch_size)]


def _loaded_ahead(
    load: Callable[[Rows], ProductBatch], batches: Iterable[Rows], *, threads: int
) -> Iterator[tuple[Rows, ProductBatch]]:
    """Batches in their order, loaded by `threads` threads of which each is at most one batch ahead."""
    with ThreadPoolExecutor(max_workers=threads) as pool:
        waiting: deque[tuple[Rows, Future[ProductBatch]]] = deque()
        try:
            for rows_B in batches:
                waiting.append((rows_B, pool.submit(load, rows_B)))
                if len(waiting) > threads:
                    first_B, future = waiting.popleft()
                    yield first_B, future.result()
            while waiting:
                first_B, future = waiting.popleft()
                yield first_B, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

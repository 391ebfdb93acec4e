"""The input tables as they were before a moment: no query of this reader sees a later row.

Shapes: N impressions.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.columns.clock import iso
from features.inputs.table_specs import TableName
from features.inputs.tables import InputTables
from features.offline.log_checks import LogError
from features.offline.log_reader import NO_ID, LogReader
from features.schema import FeatureConfig

#: Impressions that are counted at once, about; at least all of one key.
_RANGE_ROWS = 1_000_000


class PastLog(LogReader):
    """A `LogReader` of the impressions and purchases before `before_us`; products have no time.

    Features that a request brings itself (store, device, position) are of no concern here: the log may lack
    their columns.
    """

    def __init__(
        self,
        tables: InputTables,
        config: FeatureConfig,
        *,
        before_us: int,
        threads: int,
        memory_limit: str,
        spill: Path,
    ) -> None:
        """
        Raises:
            LogError: there was no impression before the moment.
        """
        self._before_us = before_us
        known = config.model_copy(
            update={
                "dense": tuple(feature for feature in config.dense if feature.source == "products"),
                "sparse": tuple(feature for feature in config.sparse if feature.source == "products"),
            }
        )
        super().__init__(tables, known, threads=threads, memory_limit=memory_limit, spill=spill)
        if not self.facts.impressions:
            self._connection.close()
            raise LogError(
                f"{tables.path_glob('impressions')}: no impression before {iso(before_us)}; "
                "choose a later time"
            )

    def keep_since(self, first_us: int) -> None:
        """Keep the impressions that were, or were clicked, at `first_us` or later, for `ranges`."""
        tables = self.tables
        query, join = f"CAST({NO_ID} AS INTEGER)", ""
        if tables.has_queries:
            query, join = f"coalesce(q.code, {NO_ID})", 'LEFT JOIN "index of query" q ON i.query = q.id'
        self._connection.execute(
            "CREATE TABLE kept AS SELECT * FROM ("
            f"SELECT coalesce(u.code, {NO_ID}) AS user, p.code AS product, {query} AS query, "
            f"epoch_us(i.timestamp) AS time_us, {self._click_us()} AS click_us "
            f"FROM {self._scan('impressions')} i LEFT JOIN user_index u ON i.user_id = u.id "
            f"JOIN product_index p ON i.product_id = p.id {join}) "
            f"WHERE time_us >= {first_us} OR click_us >= {first_us}"
        )

    def ranges(self, key: str) -> Iterator[tuple[int, int, dict[str, npt.NDArray[Any]]]]:
        """All keys ("user", "product" or "query") in ranges [first, last), each with its kept impressions.

        These have key, product int32, time_us and click_us int64, as in `impressions`.
        """
        ends = np.cumsum(self.indexes[key].impressions_K)
        first = 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(int(np.searchsorted(ends, before + _RANGE_ROWS, side="right")), first + 1)
            table = self._arrow(
                f"SELECT {key} AS key, product, time_us, click_us FROM kept "
                f"WHERE {key} >= {first} AND {key} < {last}"
            )
            yield first, last, {name: table.column(name).to_numpy() for name in table.column_names}
            first = last

    def _scan(self, table: TableName, *, positions: bool = False) -> str:
        scan = super()._scan(table, positions=positions)
        if table not in ("impressions", "purchases"):
            return scan
        # A row without a time is kept: it is refused by name, not lost.
        return f"(SELECT * FROM {scan} WHERE timestamp IS NULL OR epoch_us(timestamp) < {self._before_us})"

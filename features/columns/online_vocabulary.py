"""Rows of embedding tables for the ids of a request: `vocabulary.Vocabulary`, memory-mapped.

Shapes: N ids.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.id_map import UNKNOWN, IdMap
from features.columns.vocabulary import MISSING_ROW, stable_hash, stable_hash_of

#: Ids of a vocabulary up to which single ones are looked up in a dict: stores, devices, aisles; not products.
_SMALL = 4096


@dataclass(frozen=True, eq=False)
class OnlineVocabulary:
    """Ids with a row of their own, and how many hashed rows the others share."""

    ids: IdMap
    oov_rows: int

    def row_of(self, id_: int | str | None) -> int:
        """Row of one id; None, a missing one, has row 0.

        Raises:
            TypeError: a string where ids are integers, or the other way round.
        """
        if id_ is None:
            return MISSING_ROW
        if isinstance(id_, str) is not (self.ids.kind == "text"):
            raise TypeError(f"the ids of this vocabulary are of kind {self.ids.kind}, got {id_!r}")
        small = self._small
        position = self.ids.find_one(id_) if small is None else small.get(id_, UNKNOWN)
        if position != UNKNOWN:
            return 1 + self.oov_rows + position
        return 1 + stable_hash_of(id_) % self.oov_rows

    def rows_of(self, ids: pa.Array) -> npt.NDArray[np.int32]:
        """Row of each id as `Vocabulary.rows_of` gives it; nulls have row 0.

        Raises:
            TypeError: strings where ids are integers, or the other way round.
        """
        row_N = self.ids.find(ids)
        row_N += 1 + self.oov_rows
        unknown = np.flatnonzero(row_N <= self.oov_rows)
        if len(unknown):
            if ids.null_count:
                missing_N = ids.is_null().to_numpy(zero_copy_only=False)
                row_N[missing_N] = MISSING_ROW
                unknown = unknown[~missing_N[unknown]]
            hash_N = stable_hash(ids.take(pa.array(unknown)))
            row_N[unknown] = (hash_N % np.uint64(self.oov_rows)).astype(np.int64) + 1
        return row_N.astype(np.int32)

    @cached_property
    def _small(self) -> dict[int | str, int] | None:
        """Positions of a small vocabulary's ids."""
        if len(self.ids) > _SMALL:
            return None
        return {id_: position for position, id_ in enumerate(self.ids.ids().to_pylist())}

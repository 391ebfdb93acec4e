"""Ids to rows of an embedding table: missing, hashed out-of-vocabulary rows, then the vocabulary.

Row 0 stands for a missing id (null or a blank string), rows 1..R share the ids that the vocabulary lacks
(rare, unseen) by a stable hash, the rest are ids seen often enough in the training window. A server finds the
same rows in memory-mapped maps.

Shapes: N ids, K distinct ids of a log, V ids of the vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.columns.id_map import UNKNOWN, IdMap
from features.inputs.blanks import without_blank, without_blanks
from features.inputs.table_specs import is_text

MISSING_ROW = 0

# FNV-1a, 64 bit (Fowler, Noll, Vo), then the finaliser of splitmix64 (Steele et al. 2014). Never change them:
# trained models depend on the row of an unknown id, and an engine's own hash changes with its version.
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_MIX_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MIX_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_MIX_SECOND = np.uint64(0x94D049BB133111EB)
_UINT64 = (1 << 64) - 1


def stable_hash(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """64-bit hash of each id, the same on every machine and in every version.

    Integers hash by value (any width), strings by their UTF-8 bytes. The id 0 gives 0xE220A8397B1DCDAF, the
    first number of splitmix64 seeded with 0; the empty string gives 0xC3817C016BA4FF30.

    Raises:
        TypeError: ids are neither integers nor strings, or some are null.
    """
    if ids.null_count:
        raise TypeError("a null has no hash; give it row 0 instead")
    if pa.types.is_integer(ids.type):
        return _mix(ids.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64))
    if is_text(ids.type):
        return _mix(_fnv1a(ids.cast(pa.large_binary())))
    raise TypeError(f"ids must be integers or strings, got {ids.type}")


def stable_hash_of(id_: int | str) -> int:
    """`stable_hash` of one id, in Python's own integers: a tenth of the time of an array of one.

    Raises:
        OverflowError: an integer beyond 64 bits.
    """
    if isinstance(id_, str):
        mixed = int(_FNV_OFFSET)
        for byte in id_.encode():
            mixed = (mixed ^ byte) * int(_FNV_PRIME) & _UINT64
    else:
        mixed = int.from_bytes(int(id_).to_bytes(8, "little", signed=True), "little")
    mixed = (mixed + int(_MIX_INCREMENT)) & _UINT64
    mixed = (mixed ^ (mixed >> 30)) * int(_MIX_FIRST) & _UINT64
    mixed = (mixed ^ (mixed >> 27)) * int(_MIX_SECOND) & _UINT64
    return mixed ^ (mixed >> 31)


def _mix(value_K: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed_K = value_K + _MIX_INCREMENT
    mixed_K = (mixed_K ^ (mixed_K >> np.uint64(30))) * _MIX_FIRST
    mixed_K = (mixed_K ^ (mixed_K >> np.uint64(27))) * _MIX_SECOND
    return mixed_K ^ (mixed_K >> np.uint64(31))


def _fnv1a(strings: pa.LargeBinaryArray) -> npt.NDArray[np.uint64]:
    """All strings one byte position at a time; longest first, so that the ones still running are a prefix."""
    if not len(strings):
        return np.zeros(0, dtype=np.uint64)
    _, offsets_buffer, bytes_buffer = strings.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int64)[
        strings.offset : strings.offset + len(strings) + 1
    ]
    content = np.frombuffer(bytes_buffer or b"", dtype=np.uint8)
    lengths = np.diff(offsets)
    longest_first = np.argsort(-lengths, kind="stable")
    starts = offsets[:-1][longest_first]
    # running[p] = how many strings are longer than p bytes
    running = len(strings) - np.searchsorted(np.sort(lengths), np.arange(int(lengths.max())), side="right")
    hashed = np.full(len(strings), _FNV_OFFSET)
    for position, count in enumerate(running):
        hashed[:count] = (hashed[:count] ^ content[starts[:count] + position]) * _FNV_PRIME
    result = np.empty_like(hashed)
    result[longest_first] = hashed
    return result


def _rows(ids: pa.Array, position_N: npt.NDArray[np.integer], oov_rows: int) -> npt.NDArray[np.int32]:
    """Row of each id by its position in the vocabulary, UNKNOWN where that lacks it."""
    row_N = position_N.astype(np.int32)
    row_N += 1 + oov_rows
    unknown = np.flatnonzero(position_N == UNKNOWN)
    if len(unknown):
        unknown_ids = without_blanks(ids.take(pa.array(unknown)))
        if unknown_ids.null_count:
            missing = unknown_ids.is_null().to_numpy(zero_copy_only=False)
            row_N[unknown[missing]] = MISSING_ROW
            unknown, unknown_ids = unknown[~missing], unknown_ids.drop_null()
        row_N[unknown] = stable_hash(unknown_ids) % np.uint64(oov_rows) + np.uint64(1)
    return row_N


def is_shared_row(row_N: npt.NDArray[np.int32], oov_rows: int) -> npt.NDArray[np.bool_]:
    """Whether each row of a table with `oov_rows` is one that unknown ids share."""
    return (row_N > MISSING_ROW) & (row_N <= oov_rows)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of one sparse feature that have their own row, most frequent first."""

    name: str
    ids: pa.Array
    count_V: npt.NDArray[np.int64]
    oov_rows: int

    @classmethod
    def from_counts(
        cls, name: str, ids: pa.Array, count_K: npt.NDArray[np.int64], *, min_count: int, oov_rows: int
    ) -> "Vocabulary":
        """Keep ids with at least `min_count` impressions in the training window.

        `ids` are distinct and sorted; among equal counts the smaller id comes first, so that the same log
        gives the same rows whatever its order.
        """
        by_count = np.argsort(-count_K, kind="stable")
        kept = by_count[: int(np.count_nonzero(count_K >= min_count))]
        return cls(name, ids.take(pa.array(kept)), count_K[kept], oov_rows)

    @property
    def rows(self) -> int:
        """Rows of the embedding table, the missing and out-of-vocabulary rows included."""
        return 1 + self.oov_rows + len(self.ids)

    def rows_of(self, ids: pa.Array) -> npt.NDArray[np.int32]:
        """Row of each id: 0 for a missing one, one of 1..oov_rows for one that the vocabulary lacks."""
        position = pa.compute.index_in(ids, value_set=self.ids.cast(ids.type)).fill_null(UNKNOWN)
        return _rows(ids, position.to_numpy(zero_copy_only=False), self.oov_rows)

    def table(self) -> pa.Table:
        """id, row, count: one line for each id with its own row."""
        rows = np.arange(1 + self.oov_rows, self.rows, dtype=np.int32)
        return pa.table({"id": self.ids, "row": rows, "count": self.count_V})


#: Ids of a vocabulary up to which single ones are looked up in a dict: stores, devices, aisles; not products.
_SMALL = 4096


@dataclass(frozen=True, eq=False)
class OnlineVocabulary:
    """Ids with a row of their own, and how many hashed rows the others share."""

    ids: IdMap
    oov_rows: int

    def row_of(self, id_: int | str | None) -> int:
        """Row of one id; a missing one, None or blank, has row 0.

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
        if without_blank(id_) is None:
            return MISSING_ROW
        return 1 + stable_hash_of(id_) % self.oov_rows

    def rows_of(self, ids: pa.Array) -> npt.NDArray[np.int32]:
        """Row of each id as `Vocabulary.rows_of` gives it.

        Raises:
            TypeError: strings where ids are integers, or the other way round.
        """
        return _rows(ids, self.ids.find(ids), self.oov_rows)

    @cached_property
    def _small(self) -> dict[int | str, int] | None:
        """Positions of a small vocabulary's ids."""
        if len(self.ids) > _SMALL:
            return None
        return {id_: position for position, id_ in enumerate(self.ids.ids().to_pylist())}

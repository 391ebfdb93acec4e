"""Ids to positions, memory-mapped: processes share one copy, and a million strings cost no process a dict.

Integers lie sorted, strings by a 64-bit hash with their bytes beside it, so that equal hashes are told apart;
either way a lookup is one binary search.

Shapes: K ids of the map, N ids looked up, W words of 8 bytes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.files import atomic_write_json
from features.table_specs import is_text

IdKind = Literal["integer", "text"]
Ids = Sequence[Any] | npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]

#: Raised when a reader of the old format would misread the new one.
FORMAT = 1
UNKNOWN = -1
_UINT64 = (1 << 64) - 1
# splitmix64 (Steele et al. 2014); the words of an id are weighted by its first outputs.
_INCREMENT, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class IdMapError(ValueError):
    """Ids that no map can be made of, or a folder that is not a whole map."""


@dataclass(frozen=True)
class IdMap:
    """Position of each of K distinct ids, in the order in which they were written.

    Attributes:
        kind: "integer" or "text"; ids of the other kind cannot be looked up.
        key_K: the ids themselves in rising order, or the hashes of their bytes.
        position_K: position of the id at each place of `key_K`.
        start_K: of text only: `content[start[p]:start[p + 1]]` are the UTF-8 bytes of the id at position p.
        content: of text only.
        longest: bytes of the longest text.
    """

    kind: IdKind
    key_K: npt.NDArray[Any]
    position_K: Int64s
    start_K: Int64s
    content: npt.NDArray[np.uint8]
    longest: int

    def __len__(self) -> int:
        return len(self.key_K)

    @classmethod
    def of(cls, ids: pa.Array) -> "IdMap":
        """A map in memory.

        Raises:
            IdMapError: ids are neither integers nor strings, some are null, or one comes twice.
        """
        if ids.null_count:
            raise IdMapError(f"{ids.null_count:,} of {len(ids):,} ids are null; leave them out")
        nothing = np.zeros(0, np.int64)
        if pa.types.is_integer(ids.type):
            value_K = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
            order_K = np.argsort(value_K, kind="stable")
            made = cls("integer", value_K[order_K], order_K, nothing, np.zeros(0, np.uint8), 0)
            same = np.flatnonzero(made.key_K[1:] == made.key_K[:-1])
            if len(same):
                raise IdMapError(f"id {int(made.key_K[same[0]])} comes twice; an id has one position")
            return made
        if not is_text(ids.type) and not pa.types.is_null(ids.type):
            raise IdMapError(f"ids must be integers or strings, got {ids.type}; cast them")
        start_K, content = _bytes_of(ids)
        longest = int(np.diff(start_K).max(initial=0))
        hash_K = _hash(content, start_K[:-1], np.diff(start_K))
        order_K = np.argsort(hash_K, kind="stable")
        made = cls("text", hash_K[order_K], order_K, start_K, content, longest)
        for run in _runs_of_equals(made.key_K):
            texts = [made._text(int(position)) for position in made.position_K[run]]
            if len(set(texts)) < len(texts):
                twice = next(text for text in texts if texts.count(text) > 1)
                raise IdMapError(f"id {twice.decode()!r} comes twice; an id has one position")
        return made

    @classmethod
    def write(cls, folder: Path, ids: pa.Array) -> "IdMap":
        """Write the map of `ids` to files in `folder`, made here; `open` reads it back.

        Raises:
            IdMapError: as `of`.
        """
        made = cls.of(ids)
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in made._arrays().items():
            np.save(folder / f"{name}.npy", array)
        about = {"format": FORMAT, "kind": made.kind, "count": len(made), "longest": made.longest}
        atomic_write_json(folder / "id_map.json", about)
        return made

    @classmethod
    def open(cls, folder: Path) -> "IdMap":
        """Map the files of `write`; nothing is read before it is looked up.

        Raises:
            IdMapError: a file is missing, cut off, or of another format.
        """
        try:
            about = json.loads((folder / "id_map.json").read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise IdMapError(f"{folder} has format {about['format']!r}, this version reads {FORMAT}")
            names = ("key", "position") + (("start", "content") if about["kind"] == "text" else ())
            arrays = {name: map_array(folder / f"{name}.npy") for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, IdMapError):
                raise
            raise IdMapError(f"{folder} is not a whole id map ({error}); write it again") from error
        opened = cls(
            about["kind"],
            arrays["key"],
            arrays["position"],
            arrays.get("start", np.zeros(0, np.int64)),
            arrays.get("content", np.zeros(0, np.uint8)),
            about["longest"],
        )
        if len(opened.position_K) != about["count"] or len(opened.key_K) != about["count"]:
            raise IdMapError(f"{folder} says {about['count']:,} ids and holds another number; write it again")
        return opened

    def ids(self) -> pa.Array:
        """All ids in the order of their positions."""
        if self.kind == "integer":
            value_K = np.empty(len(self), np.int64)
            value_K[self.position_K] = self.key_K
            return pa.array(value_K)
        offsets, content = pa.py_buffer(self.start_K), pa.py_buffer(self.content)
        return pa.Array.from_buffers(pa.large_string(), len(self), [None, offsets, content]).cast(pa.string())

    def find(self, ids: pa.Array | Ids) -> Int64s:
        """Position of each id, -1 where the map lacks it or it is null.

        Raises:
            TypeError: ids of the other kind: no integer equals a string.
        """
        array = ids if isinstance(ids, pa.Array) else pa.array(ids)
        if not len(array) or pa.types.is_null(array.type):
            return np.full(len(array), UNKNOWN, np.int64)
        if array.null_count:
            position_N = np.full(len(array), UNKNOWN, np.int64)
            present = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
            position_N[present] = self.find(array.drop_null())
            return position_N
        if self.kind == "integer" and pa.types.is_integer(array.type):
            return self.find_integers(array.cast(pa.int64()).to_numpy(zero_copy_only=False))
        if self.kind == "text" and is_text(array.type):
            return self._find_texts(*_bytes_of(array))
        raise TypeError(f"the ids of this map are of kind {self.kind}, got {array.type}")

    def find_integers(self, id_N: Int64s) -> Int64s:
        """`find` without its checks, for a map of integers."""
        if not len(self):
            return np.full(len(id_N), UNKNOWN, np.int64)
        place_N = np.searchsorted(self.key_K, id_N)
        np.minimum(place_N, len(self) - 1, out=place_N)
        found_N: Int64s = np.where(self.key_K[place_N] == id_N, self.position_K[place_N], UNKNOWN)
        return found_N

    def find_one(self, id_: int | str | None) -> int:
        """Position of one id, faster than `find` of one; -1 where the map lacks it or it is None."""
        if id_ is None or not len(self):
            return UNKNOWN
        if self.kind == "integer":
            if isinstance(id_, str):
                raise TypeError("the ids of this map are integers, got a string")
            place = int(self.key_K.searchsorted(np.int64(id_)))
            known = place < len(self) and int(self.key_K[place]) == id_
            return int(self.position_K[place]) if known else UNKNOWN
        if not isinstance(id_, str):
            raise TypeError(f"the ids of this map are strings, got {type(id_).__name__}")
        text = id_.encode()
        if len(text) > self.longest:
            return UNKNOWN
        hashed = _hash_one(text)
        place = int(self.key_K.searchsorted(np.uint64(hashed)))
        while place < len(self) and int(self.key_K[place]) == hashed:
            position = int(self.position_K[place])
            if self._text(position) == text:
                return position
            place += 1
        return UNKNOWN

    def _find_texts(self, start_N: Int64s, content: npt.NDArray[np.uint8]) -> Int64s:
        position_N = np.full(len(start_N) - 1, UNKNOWN, np.int64)
        if not len(self):
            return position_N
        length_N = np.diff(start_N)
        # No id is longer than the longest: what is, is unknown, however long, at no cost.
        waiting = np.flatnonzero(length_N <= self.longest)
        first_N, length_N = start_N[waiting], length_N[waiting]
        word_NW = _words(content, first_N, length_N)
        hash_N = _hash_words(word_NW, length_N)
        place_N = np.searchsorted(self.key_K, hash_N)
        while len(waiting):
            np.minimum(place_N, len(self) - 1, out=place_N)
            at_N = self.position_K[place_N]
            own_start_N = self.start_K[at_N]
            own_length_N = self.start_K[at_N + 1] - own_start_N
            equal_N = own_length_N == length_N
            own_length_N = np.where(equal_N, own_length_N, 0)
            own_word_NW = _words(self.content, own_start_N, own_length_N, width=word_NW.shape[1])
            equal_N &= (own_word_NW == word_NW).all(axis=1)
            position_N[waiting[equal_N]] = at_N[equal_N]
            # Two ids of one hash: once in 10^5 maps of ten million, but then the right one must win.
            again_N = ~equal_N & (self.key_K[place_N] == hash_N) & (place_N + 1 < len(self))
            if not again_N.any():
                break
            waiting, place_N, hash_N = waiting[again_N], place_N[again_N] + 1, hash_N[again_N]
            word_NW, length_N = word_NW[again_N], length_N[again_N]
        return position_N

    def _text(self, position: int) -> bytes:
        return self.content[int(self.start_K[position]) : int(self.start_K[position + 1])].tobytes()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays = {"key": self.key_K, "position": self.position_K}
        return arrays | ({"start": self.start_K, "content": self.content} if self.kind == "text" else {})


def map_array(path: Path) -> npt.NDArray[Any]:
    """An .npy file as a read-only view of its memory-mapped bytes; a file without elements is read.

    Raises:
        ValueError: the file is cut off or not an array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except ValueError:
        array: npt.NDArray[Any] = np.load(path, allow_pickle=False)
        if array.size:
            raise
        return array


def _bytes_of(texts: pa.Array) -> tuple[Int64s, npt.NDArray[np.uint8]]:
    """Where each text starts (N + 1 offsets), and the bytes of all."""
    large = texts.cast(pa.large_string())
    _, offsets, content = large.buffers()
    if offsets is None:
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    start_N = np.frombuffer(offsets, np.int64)[large.offset : large.offset + len(large) + 1]
    first, last = int(start_N[0]), int(start_N[-1])
    return start_N - first, np.frombuffer(content or b"", np.uint8)[first:last]


def _words(
    content: npt.NDArray[np.uint8], start_N: Int64s, length_N: Int64s, *, width: int | None = None
) -> npt.NDArray[np.uint64]:
    """uint64[N, W]: each text's bytes as words of 8, little-endian, zeros behind its end."""
    width = width or max(-(-int(length_N.max(initial=0)) // 8), 1)
    step_L = np.arange(width * 8)
    inside_NL = step_L < length_N[:, None]
    place_NL = np.where(inside_NL, start_N[:, None] + step_L, 0)
    if not len(content):
        return np.zeros((len(start_N), width), np.uint64)
    byte_NL = content[place_NL]
    byte_NL *= inside_NL
    return byte_NL.view("<u8").astype(np.uint64, copy=False)


def _hash(content: npt.NDArray[np.uint8], start_K: Int64s, length_K: Int64s) -> npt.NDArray[np.uint64]:
    """Hashes of many texts, a part at a time, parts of about equal length: memory stays near 64 MB."""
    hash_K = np.empty(len(start_K), np.uint64)
    order_K = np.argsort(length_K, kind="stable")
    first = 0
    while first < len(order_K):
        last = min(first + 2**17, len(order_K))
        while last - first > 1 and (last - first) * int(length_K[order_K[last - 1]]) > 2**23:
            last = first + (last - first + 1) // 2
        part = order_K[first:last]
        hash_K[part] = _hash_words(_words(content, start_K[part], length_K[part]), length_K[part])
        first = last
    return hash_K


def _hash_words(word_NW: npt.NDArray[np.uint64], length_N: Int64s) -> npt.NDArray[np.uint64]:
    """Weighted sum of the words and the length, mixed: `_hash_one` of each, zeros at the end add nothing."""
    sum_N = (word_NW * _weights(word_NW.shape[1])).sum(axis=1, dtype=np.uint64)
    sum_N += length_N.astype(np.uint64) * np.uint64(_INCREMENT)
    sum_N = (sum_N ^ (sum_N >> np.uint64(30))) * np.uint64(_FIRST)
    sum_N = (sum_N ^ (sum_N >> np.uint64(27))) * np.uint64(_SECOND)
    mixed_N: npt.NDArray[np.uint64] = sum_N ^ (sum_N >> np.uint64(31))
    return mixed_N


def _hash_one(text: bytes) -> int:
    """`_hash_words` of one text in Python's own integers: 2 microseconds for a short one."""
    total = len(text) * _INCREMENT
    for word, start in enumerate(range(0, len(text), 8)):
        total += int.from_bytes(text[start : start + 8], "little") * _weight(word)
    total &= _UINT64
    total = (total ^ (total >> 30)) * _FIRST & _UINT64
    total = (total ^ (total >> 27)) * _SECOND & _UINT64
    return total ^ (total >> 31)


@cache
def _weight(word: int) -> int:
    """An odd number for the word at that place: output `word + 1` of splitmix64 seeded with 0."""
    mixed = (word + 1) * _INCREMENT & _UINT64
    mixed = (mixed ^ (mixed >> 30)) * _FIRST & _UINT64
    mixed = (mixed ^ (mixed >> 27)) * _SECOND & _UINT64
    return (mixed ^ (mixed >> 31)) | 1


@lru_cache(maxsize=64)
def _weights(words: int) -> npt.NDArray[np.uint64]:
    return np.array([_weight(word) for word in range(words)], np.uint64)


def _runs_of_equals(sorted_K: npt.NDArray[Any]) -> Iterator[slice]:
    """Slices of equal neighbours, two or more of them."""
    same = np.flatnonzero(sorted_K[1:] == sorted_K[:-1])
    for group in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else ():
        yield slice(int(group[0]), int(group[-1]) + 2)

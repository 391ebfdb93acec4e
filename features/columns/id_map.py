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

from features.artifacts import atomic_write_json
from features.inputs.table_specs import is_text

IdKind = Literal["integer", "text"]
Ids = Sequence[Any] | npt.NDArray[Any]
Int64s = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

#: Raised when a reader of the old format would misread the new one.
FORMAT = 1
UNKNOWN = -1
_WORD = 8
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
        place_K3: where the bytes of the text with that hash start in `content`, how many they are, and the
            position of the id. Integers have [K, 1], the position alone.
        content: of text only, UTF-8; zeros lie behind the last text, 8 more than the longest has bytes.
        longest: bytes of the longest text.
    """

    kind: IdKind
    key_K: npt.NDArray[Any]
    place_K3: Int64s
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
        if pa.types.is_integer(ids.type):
            value_K = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
            order_K = np.argsort(value_K, kind="stable")
            made = cls("integer", value_K[order_K], order_K[:, None], np.zeros(0, np.uint8), 0)
            same = np.flatnonzero(made.key_K[1:] == made.key_K[:-1])
            if len(same):
                raise IdMapError(f"id {int(made.key_K[same[0]])} comes twice; an id has one position")
            return made
        if not is_text(ids.type) and not pa.types.is_null(ids.type):
            raise IdMapError(f"ids must be integers or strings, got {ids.type}; cast them")
        start_K, content, longest = _bytes_of(ids.cast(pa.large_string()))
        length_K = np.diff(start_K)
        hash_K = _hash(content, start_K[:-1], length_K)
        order_K = np.argsort(hash_K, kind="stable")
        place_K3 = np.stack([start_K[:-1], length_K, np.arange(len(ids))], axis=1)[order_K]
        made = cls("text", hash_K[order_K], place_K3, content, longest)
        for run in _runs_of_equals(made.key_K):
            texts = [made._text(place) for place in run]
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
            key_K, place_K3, content = (
                map_array(folder / f"{name}.npy") for name in ("key", "place", "content")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, IdMapError):
                raise
            raise IdMapError(f"{folder} is not a complete id map ({error}); write it again") from error
        if not len(key_K) == len(place_K3) == about["count"]:
            raise IdMapError(f"{folder} says {about['count']:,} ids and holds another number; write it again")
        return cls(about["kind"], key_K, place_K3, content, about["longest"])

    def ids(self) -> pa.Array:
        """All ids in the order of their positions."""
        order_K = np.argsort(self.place_K3[:, -1])
        if self.kind == "integer":
            return pa.array(self.key_K[order_K])
        return pa.array([self._text(int(place)).decode() for place in order_K], pa.string())

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
            if array.type != pa.int64():
                array = array.cast(pa.int64())
            return self.find_integers(array.to_numpy())
        if self.kind == "text" and is_text(array.type):
            return self._find_texts(array)
        raise TypeError(f"the ids of this map are of kind {self.kind}, got {array.type}")

    def find_integers(self, id_N: Int64s) -> Int64s:
        """`find` without its checks, for a map of integers."""
        if not len(self):
            return np.full(len(id_N), UNKNOWN, np.int64)
        place_N = self.key_K.searchsorted(id_N)
        np.minimum(place_N, len(self) - 1, out=place_N)
        found_N: Int64s = np.where(self.key_K[place_N] == id_N, self.place_K3[place_N, 0], UNKNOWN)
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
            return int(self.place_K3[place, 0]) if known else UNKNOWN
        if not isinstance(id_, str):
            raise TypeError(f"the ids of this map are strings, got {type(id_).__name__}")
        text = id_.encode()
        if len(text) > self.longest:
            return UNKNOWN
        hashed = _hash_one(text)
        place = int(self.key_K.searchsorted(np.uint64(hashed)))
        while place < len(self) and int(self.key_K[place]) == hashed:
            if self._text(place) == text:
                return int(self.place_K3[place, 2])
            place += 1
        return UNKNOWN

    def _find_texts(self, texts: pa.Array) -> Int64s:
        start_N, content, longest = _bytes_of(texts)
        if not len(self):
            return np.full(len(texts), UNKNOWN, np.int64)
        length_N, start_N = start_N[1:] - start_N[:-1], start_N[:-1]
        if longest <= self.longest:
            return self._find_words(content, start_N, length_N, longest)
        # No id is longer than the longest: such a text is unknown, at no cost however long it is.
        position_N = np.full(len(texts), UNKNOWN, np.int64)
        short = np.flatnonzero(length_N <= self.longest)
        position_N[short] = self._find_words(content, start_N[short], length_N[short], self.longest)
        return position_N

    def _find_words(
        self, content: npt.NDArray[np.uint8], start_N: Int64s, length_N: Int64s, longest: int
    ) -> Int64s:
        mask_NW = _mask_of_length(max(-(-longest // _WORD), 1))[length_N]
        word_NW = _words(content, start_N, mask_NW)
        hash_N = word_NW @ _weights(word_NW.shape[1])
        at_N = self.key_K.searchsorted(hash_N)
        position_N = self._compare(at_N, word_NW, mask_NW, length_N)
        # Two ids of one hash are rare (those with zeros at the end apart), but the right one must win.
        rows = np.flatnonzero(position_N == UNKNOWN)
        while len(rows):
            at_N[rows] += 1
            rows = rows[at_N[rows] < len(self)]
            rows = rows[self.key_K[at_N[rows]] == hash_N[rows]]
            position_N[rows] = self._compare(at_N[rows], word_NW[rows], mask_NW[rows], length_N[rows])
            rows = rows[position_N[rows] == UNKNOWN]
        return position_N

    def _compare(self, at_N: Int64s, word_NW: Words, mask_NW: Words, length_N: Int64s) -> Int64s:
        """Position of the id at each place where its bytes are those words, else -1."""
        place_N3 = self.place_K3[np.minimum(at_N, len(self) - 1)]
        equal_N = (_words(self.content, place_N3[:, 0], mask_NW) == word_NW).all(axis=1)
        equal_N &= place_N3[:, 1] == length_N
        return np.where(equal_N, place_N3[:, 2], UNKNOWN)

    def _text(self, place: int) -> bytes:
        start, length, _ = self.place_K3[place].tolist()
        return self.content[start : start + length].tobytes()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"key": self.key_K, "place": self.place_K3, "content": self.content}


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


def _bytes_of(texts: pa.Array) -> tuple[Int64s, npt.NDArray[np.uint8], int]:
    """Where texts start (N + 1 offsets), the bytes of all with zeros behind them, bytes of the longest."""
    if pa.types.is_string(texts.type):
        dtype: type[np.integer] = np.int32
    else:
        texts, dtype = texts.cast(pa.large_string()), np.int64
    _, offsets, buffer = texts.buffers()
    if not len(texts) or offsets is None:
        return np.zeros(len(texts) + 1, np.int64), np.zeros(2 * _WORD, np.uint8), 0
    start_N = np.frombuffer(offsets, dtype)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    longest = int((start_N[1:] - start_N[:-1]).max())
    first, size = int(start_N[0]), int(start_N[-1] - start_N[0])
    content = np.zeros(size + longest + 2 * _WORD, np.uint8)
    if size:
        content[:size] = np.frombuffer(buffer, np.uint8, count=size, offset=first)
    start_N -= first
    return start_N, content, longest


def _words(content: npt.NDArray[np.uint8], start_N: Int64s, mask_NW: Words) -> Words:
    """uint64[N, W]: each text's bytes as little-endian words of 8, zeros where `mask_NW` has zeros."""
    # A word may start at any byte. NumPy gathers from such a view without copying it.
    at_every_byte = np.ndarray((len(content) - _WORD + 1,), np.dtype("<u8"), content.data, strides=(1,))
    word_NW: Words = at_every_byte[start_N[:, None] + _steps(mask_NW.shape[1])]
    word_NW &= mask_NW
    return word_NW


def _hash(content: npt.NDArray[np.uint8], start_K: Int64s, length_K: Int64s) -> Words:
    """Hashes of many texts, a part of about equal lengths at a time: memory stays near 100 MB."""
    hash_K = np.empty(len(start_K), np.uint64)
    order_K = np.argsort(length_K, kind="stable")
    first = 0
    while first < len(order_K):
        last = min(first + 2**17, len(order_K))
        while last - first > 1 and (last - first) * int(length_K[order_K[last - 1]]) > 2**24:
            last = first + (last - first + 1) // 2
        part = order_K[first:last]
        words = max(-(-int(length_K[part[-1]]) // _WORD), 1)
        mask_NW = _mask_of_length(words)[length_K[part]]
        hash_K[part] = _words(content, start_K[part], mask_NW) @ _weights(words)
        first = last
    return hash_K


def _hash_one(text: bytes) -> int:
    """The hash of one text in Python's own integers: a microsecond or two for a short one."""
    total = 0
    for word, start in enumerate(range(0, len(text), _WORD)):
        total += int.from_bytes(text[start : start + _WORD], "little") * _weight(word)
    return total & _UINT64


@lru_cache(maxsize=64)
def _mask_of_length(words: int) -> Words:
    """uint64[8 W + 1, W]: for each length in bytes, ones over the bytes of a text and zeros behind it."""
    left = np.clip(np.arange(words * _WORD + 1)[:, None] - _steps(words), 0, _WORD)
    masks: Words = np.array([(1 << (8 * count)) - 1 for count in range(_WORD + 1)], np.uint64)[left]
    return masks


@lru_cache(maxsize=64)
def _steps(words: int) -> Int64s:
    return np.arange(0, words * _WORD, _WORD)


@cache
def _weight(word: int) -> int:
    """An odd number for the word at that place: output `word + 1` of splitmix64 seeded with 0."""
    mixed = (word + 1) * _INCREMENT & _UINT64
    mixed = (mixed ^ (mixed >> 30)) * _FIRST & _UINT64
    mixed = (mixed ^ (mixed >> 27)) * _SECOND & _UINT64
    return (mixed ^ (mixed >> 31)) | 1


@lru_cache(maxsize=64)
def _weights(words: int) -> Words:
    return np.array([_weight(word) for word in range(words)], np.uint64)


def _runs_of_equals(sorted_K: npt.NDArray[Any]) -> Iterator[range]:
    """Places of equal neighbours, two or more of them."""
    same = np.flatnonzero(sorted_K[1:] == sorted_K[:-1])
    for group in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else ():
        yield range(int(group[0]), int(group[-1]) + 2)

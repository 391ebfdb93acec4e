"""A table that is a folder of Parquet files: its files, in subfolders too, and what Hive partitions say.

Spark and others write `impressions/day=2024-05-01/part-0.parquet`: the column `day` stands in the path alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

SUFFIXES = (".parquet", ".parq")
#: How a partition whose value is null is written.
_NULL = "__HIVE_DEFAULT_PARTITION__"
_LARGEST = 2**63 - 1


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file is none of the table's: its name, or that of a subfolder, starts with a dot or `_`.

    >>> is_hidden(Path("t/_temporary/0/part.parquet"), Path("t"))
    True
    """
    return any(part[0] in "._" and "=" not in part for part in path.relative_to(folder).parts)


def files_in(folder: Path) -> list[Path]:
    """All files of a folder and of its subfolders, sorted by path, without hidden ones."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not is_hidden(path, folder)]


def partition_of(path: Path, folder: Path) -> dict[str, str | None]:
    """What the subfolders between a table's folder and a file say in their order, by `key=value`.

    >>> partition_of(Path("t/day=2024-05-01/shop=a%2Fb/0.parquet"), Path("t"))
    {'day': '2024-05-01', 'shop': 'a/b'}
    """
    pairs = [part.split("=", 1) for part in path.parent.relative_to(folder).parts if "=" in part]
    return {unquote(key): None if value == _NULL else unquote(value) for key, value in pairs}


def partition_types(partitions: Iterable[Mapping[str, str | None]]) -> dict[str, pa.DataType]:
    """Each partition column's type: int64 if every value is written as a whole number is, else string.

    >>> partition_types([{"n": "7", "code": "07"}, {"n": None, "code": "1"}])
    {'n': DataType(int64), 'code': DataType(string)}
    """
    values: dict[str, list[str]] = {}
    for partition in partitions:
        for name, value in partition.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    return {
        name: pa.int64() if found and all(map(_is_whole, found)) else pa.string()
        for name, found in values.items()
    }


def _is_whole(text: str) -> bool:
    """Whether a number gives the same text again: "7" does, "07" does not."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and str(int(text)) == text and abs(int(text)) <= _LARGEST

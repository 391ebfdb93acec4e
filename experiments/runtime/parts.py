"""One of n equal parts of some work, for array jobs of any scheduler: each job is told `i/n`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, from 1.

    >>> Part.parse("2/3").of(["a", "b", "c", "d", "e"])
    ['b', 'e']
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`2/8` is the second of eight.

        Raises:
            ValueError: it is no such pair of numbers.
        """
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        part = cls(int(found[1]), int(found[2])) if found else None
        if part is None or not 1 <= part.number <= part.count:
            raise ValueError(
                f"part {text!r} is not one of n: write i/n with i from 1 to n, such as 1/8 for the first of "
                "eight (a scheduler that counts from 0 needs 1 added)"
            )
        return part

    def of(self, work: Sequence[ItemT]) -> list[ItemT]:
        """Every n-th piece from the i-th on: together all parts are the whole, and none shares a piece."""
        return list(work[self.number - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


#: All of the work in one part.
WHOLE = Part(1, 1)

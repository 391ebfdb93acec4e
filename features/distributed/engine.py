"""What a distributed engine must do for a feature build: run tasks, and bring rows of one bucket together.

No more than a union of tables and a grouped map of Arrow tables, which Spark, Ray Data and engines that speak
Spark's protocol all have: no join, no cogroup, no expression of the engine's own. Everything else is in
functions from Arrow to Arrow, so an engine cannot change a bit of the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

#: The column by whose value rows are brought together.
BUCKET = "bucket"


@dataclass(frozen=True)
class Stage:
    """One shuffle: `function` gets all rows of a bucket at once, and returns rows of `schema`.

    An engine may call it again for the same bucket, after a failure or beside a slow task: files that it
    writes must be the same whenever they are written, and appear whole.
    """

    function: Callable[[pa.Table], pa.Table]
    schema: pa.Schema


class Engine(Protocol):
    """Runs a feature build; see the module."""

    @property
    def parallelism(self) -> int:
        """How many tasks run at the same time."""
        ...

    def run(
        self,
        name: str,
        tasks: int,
        first: Callable[[int], pa.Table],
        schema: pa.Schema,
        stages: Sequence[Stage],
    ) -> pa.Table:
        """The rows of `first(0)` ... `first(tasks - 1)`, grouped by `BUCKET` and mapped by stage after stage.

        Args:
            name: what progress calls it.
            schema: of what `first` returns. It and those of all stages but the last have `BUCKET`, int32.

        Returns:
            What the last stage returned, in any order.

        Raises:
            LogError: a function raised it.
        """
        ...

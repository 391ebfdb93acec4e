"""The smallest engine: everything in this process, each function shipped by pickle and called twice."""

import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.distributed.engine import BUCKET, Stage


class InProcessEngine:
    """Rows arrive in a bucket in an order that nobody promised, and a bucket may be computed again."""

    parallelism = 2

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        #: Rows of the largest bucket of each stage, by the name of the run.
        self.largest: dict[str, list[int]] = {}

    def run(
        self,
        name: str,
        tasks: int,
        first: Callable[[int], pa.Table],
        schema: pa.Schema,
        stages: Sequence[Stage],
    ) -> pa.Table:
        first = pickle.loads(pickle.dumps(first))
        rows = pa.concat_tables([first(task).cast(schema) for task in range(tasks)])
        self.largest[name] = []
        for stage in pickle.loads(pickle.dumps(tuple(stages))):
            rows = rows.take(pa.array(self._rng.permutation(len(rows))))
            groups = [
                rows.filter(pc.equal(rows.column(BUCKET), bucket))
                for bucket in pc.unique(rows.column(BUCKET)).to_pylist()
            ]
            self.largest[name].append(max(map(len, groups), default=0))
            for group in groups[::2]:
                stage.function(group)
            rows = pa.concat_tables([stage.function(group).cast(stage.schema) for group in groups])
        return rows

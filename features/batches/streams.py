"""The same global batches on any number of ranks: fixed streams, of which every rank reads its share.

A split is cut into S streams of consecutive rows, each shuffled by itself. A global batch takes equally many
rows of every stream, so which rows a step sees, and which ids it drops, is a function of (seed, epoch, S)
alone; rank r of W takes those of the streams r, r + W, r + 2W, ... to its part of the batch.

Shapes: S streams, W ranks, B rows of a global batch.
"""

from collections.abc import Iterator

import numpy as np

from features.batches.batch import Batch
from features.batches.loader import BatchLoader, Rows
from features.batches.pretrained_rows import SemanticRows
from features.feature_set import FeatureSet


class StreamLoader:
    """One rank's part of every global batch of a split; the interface is that of `BatchLoader`.

    All ranks have equally many batches, and equally many rows in each. Where S does not divide the rows of
    the split, up to S - 1 of them sit out an epoch: the last ones of the longer streams, others each time.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        split: str,
        *,
        batch_size: int,
        streams: int,
        rank: int,
        ranks: int,
        semantic: SemanticRows | None = None,
        shuffle_seed: int | None = None,
        id_dropout: float = 0.0,
    ) -> None:
        """
        Args:
            batch_size: rows of a global batch, over all ranks.

        Raises:
            ValueError: the ranks do not divide the streams, the streams not the batch, or rows are too few.
        """
        if streams % ranks:
            fitting = [count for count in range(1, streams + 1) if streams % count == 0]
            raise ValueError(
                f"{streams} streams of rows cannot be divided among {ranks} ranks; start "
                f"{', '.join(map(str, fitting))} of them, or set sharding.streams to a multiple"
            )
        if batch_size % streams:
            raise ValueError(
                f"training.batch_size must be a multiple of the {streams} streams of rows that make a batch "
                f"on several ranks, got {batch_size}; set it to {-(-batch_size // streams) * streams}"
            )
        total = feature_set.manifest.splits[split].rows
        if total < streams:
            raise ValueError(
                f"{split} has {total} rows, too few for {streams} streams; train in one process, without "
                "torchrun"
            )
        self._each = batch_size // streams
        self._stream_rows = total // streams
        self._count = streams
        self._streams = [
            BatchLoader(
                feature_set,
                split,
                batch_size=self._each,
                semantic=semantic,
                shuffle_seed=shuffle_seed,
                id_dropout=id_dropout,
                part=slice(stream * total // streams, (stream + 1) * total // streams),
                stream=stream,
            )
            for stream in range(rank, streams, ranks)
        ]
        self.split = split
        self._epoch = 0
        self._rows_done = 0

    def __len__(self) -> int:
        """Batches in a whole epoch, on every rank the same."""
        return -(-self._stream_rows // self._each)

    @property
    def rows(self) -> int:
        """Rows of an epoch, over all ranks."""
        return self._stream_rows * self._count

    @property
    def dense_columns(self) -> list[str]:
        """Names of the dense features, in the order of `Batch.dense_BF`."""
        return self._streams[0].dense_columns

    def impression_ids(self, row_B: np.ndarray) -> list[object]:
        """Ids of the impressions at these positions of the split, in the order of `row_B`."""
        return self._streams[0].impression_ids(row_B)

    def state_dict(self) -> dict[str, int]:
        """Where the next batch starts, in rows over all ranks: the same on any number of them."""
        return {"epoch": self._epoch, "rows_done": self._rows_done, "rows": self.rows}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: the state belongs to a split of another size, or to another number of streams.
        """
        if state["rows"] != self.rows:
            raise ValueError(
                f"the saved position is in an epoch of {state['rows']:,} rows, but one of {self.split} has "
                f"{self.rows:,} in {self._count} streams; resume with the feature set and the streams that "
                "the run began with"
            )
        self._epoch, self._rows_done = state["epoch"], state["rows_done"]

    def __iter__(self) -> Iterator[Batch]:
        done = self._rows_done // self._count
        readers = [self._continued(stream, done) for stream in self._streams]
        while done < self._stream_rows:
            wanted = np.arange(min(self._each, self._stream_rows - done))
            parts = [next(reader) for reader in readers]
            done += len(wanted)
            # a longer stream has one row more in its last batch
            whole = Rows.joined([part if len(part) == len(wanted) else part.take(wanted) for part in parts])
            self._rows_done = done * self._count
            yield self._streams[0].to_batch(whole)
        self._epoch, self._rows_done = self._epoch + 1, 0

    def _continued(self, stream: BatchLoader, done: int) -> Iterator[Rows]:
        stream.load_state_dict({"epoch": self._epoch, "rows_done": done, "rows": stream.rows})
        return stream.batches_of_rows()

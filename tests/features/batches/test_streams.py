"""A global batch has the same rows, and the same dropped ids, on any number of ranks."""

from pathlib import Path

import numpy as np
import pytest

from features.batches.batch import Batch
from features.batches.loader import BatchLoader
from features.batches.streams import StreamLoader
from features.feature_set import FeatureSet
from tests.ranking.small_runs import open_small, small_data


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder = tmp_path_factory.mktemp("streams")
    small_data(folder)
    return open_small(folder)


def loader_of(feature_set: FeatureSet, rank: int = 0, ranks: int = 1, **settings: int) -> StreamLoader:
    chosen = {"batch_size": 48, "streams": 8, "shuffle_seed": 3, **settings}
    return StreamLoader(feature_set, "train", rank=rank, ranks=ranks, id_dropout=0.3, **chosen)


def rows_and_ids(batches: list[Batch]) -> dict[int, list[int]]:
    """The ids of each row of a global batch, given in parts."""
    found = {}
    for batch in batches:
        ids_BS = batch.sparse.values().reshape(-1, len(batch)).T
        found |= {row: ids.tolist() for row, ids in zip(batch.row_B.tolist(), ids_BS, strict=True)}
    return found


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_any_number_of_ranks_has_the_same_global_batches(feature_set: FeatureSet, ranks: int) -> None:
    alone = loader_of(feature_set)
    together = [loader_of(feature_set, rank, ranks) for rank in range(ranks)]
    for _ in range(2):
        of_ranks = list(zip(*together, strict=True))
        whole = list(alone)
        assert len(whole) == len(of_ranks) == len(alone) == len(together[0])
        for batch, parts in zip(whole, of_ranks, strict=True):
            assert rows_and_ids([batch]) == rows_and_ids(list(parts))
            assert {len(part) for part in parts} == {len(batch) // ranks}, "equal rows on all ranks"
    assert len(whole[-1]) < len(whole[0]), "the last batch is smaller"


@pytest.mark.parametrize("streams", [7, 8])
def test_an_epoch_is_every_row_once_but_for_what_the_streams_cannot_divide(
    feature_set: FeatureSet, streams: int
) -> None:
    loader = loader_of(feature_set, streams=streams, batch_size=6 * streams)
    total = feature_set.manifest.splits["train"].rows
    left_out = []
    for _ in range(4):
        rows = [row for batch in loader for row in batch.row_B.tolist()]
        assert len(set(rows)) == len(rows) == loader.rows == total // streams * streams
        left_out.append(frozenset(range(total)) - set(rows))
    assert {len(left) for left in left_out} == {total % streams}
    assert total % 7, "else nothing would be left out"
    assert streams == 8 or len(set(left_out)) > 1, "others each time"


def test_a_batch_has_equally_many_rows_of_every_part_of_the_split(feature_set: FeatureSet) -> None:
    total = feature_set.manifest.splits["train"].rows
    borders = [stream * total // 8 for stream in range(9)]
    for batch in loader_of(feature_set):
        assert set(np.histogram(batch.row_B, borders)[0]) == {len(batch) // 8}


def test_streams_and_epochs_are_shuffled_each_in_its_own_way(feature_set: FeatureSet) -> None:
    loader = loader_of(feature_set)
    epochs = [[row for batch in loader for row in batch.row_B.tolist()] for _ in range(2)]
    assert epochs[0] != epochs[1]
    total = feature_set.manifest.splits["train"].rows
    of_stream = []
    for stream in range(2):
        first, end = stream * total // 8, (stream + 1) * total // 8
        of_stream.append([row - first for row in epochs[0] if first <= row < end])
        assert of_stream[-1] != sorted(of_stream[-1])
    assert of_stream[0] != of_stream[1]
    other = [row for batch in loader_of(feature_set, shuffle_seed=4) for row in batch.row_B.tolist()]
    assert other != epochs[0]


def test_each_stream_drops_other_ids(feature_set: FeatureSet) -> None:
    stored = rows_and_ids(list(BatchLoader(feature_set, "train", batch_size=100)))
    batch = next(iter(loader_of(feature_set, batch_size=160)))
    ids = rows_and_ids([batch])
    changed_BS = np.array([np.not_equal(stored[row], ids[row]) for row in batch.row_B.tolist()])
    of_streams = changed_BS.reshape(8, -1)
    assert 0.05 < of_streams.mean() < 0.35
    agreement = np.mean([(of_streams[0] == other).mean() for other in of_streams[1:]])
    assert agreement < 0.8, "equal draws would agree but for ids that were dropped to themselves"


@pytest.mark.parametrize("stopped_after", [0, 1, 5, 13])
def test_another_number_of_ranks_goes_on_where_some_have_stopped(
    feature_set: FeatureSet, stopped_after: int
) -> None:
    whole = [rows_and_ids([batch]) for batch in loader_of(feature_set)]
    stopped = [loader_of(feature_set, rank, 2) for rank in range(2)]
    iterators = [iter(loader) for loader in stopped]
    for _ in range(stopped_after):
        for iterator in iterators:
            next(iterator)
    assert stopped[0].state_dict() == stopped[1].state_dict()
    resumed = [loader_of(feature_set, rank, 4) for rank in range(4)]
    for loader in resumed:
        loader.load_state_dict(stopped[0].state_dict())
    rest = [rows_and_ids(list(parts)) for parts in zip(*resumed, strict=True)]
    assert rest == whole[stopped_after:]
    assert resumed[0].state_dict()["epoch"] == 1


def test_batches_hold_what_the_loader_of_one_process_reads(feature_set: FeatureSet) -> None:
    stored = {
        row: (dense.tolist(), clicked)
        for batch in BatchLoader(feature_set, "train", batch_size=100)
        for row, dense, clicked in zip(
            batch.row_B.tolist(), batch.dense_BF, batch.clicked_B.tolist(), strict=True
        )
    }
    loader = loader_of(feature_set)
    for batch in loader:
        for row, dense, clicked in zip(batch.row_B.tolist(), batch.dense_BF, batch.clicked_B, strict=True):
            assert (dense.tolist(), float(clicked)) == stored[row]
    ids = BatchLoader(feature_set, "train", batch_size=1).impression_ids(batch.row_B.numpy())
    assert loader.impression_ids(batch.row_B.numpy()) == ids


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ranks": 3}, "8 streams of rows cannot be divided among 3 ranks; start 1, 2, 4, 8 of them"),
        ({"batch_size": 50}, "must be a multiple of the 8 streams .* got 50; set it to 56"),
        ({"streams": 4096, "batch_size": 4096}, r"train has \d+ rows, too few for 4096 streams"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    feature_set: FeatureSet, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loader_of(feature_set, **settings)


def test_a_position_of_other_streams_is_refused(feature_set: FeatureSet) -> None:
    state = {**loader_of(feature_set).state_dict(), "rows": 9}
    with pytest.raises(ValueError, match="resume with the feature set and the streams"):
        loader_of(feature_set).load_state_dict(state)


@pytest.mark.parametrize("part", [slice(0, 10), slice(30, 45), slice(111, 300)])
def test_a_part_of_a_split_is_its_rows(tmp_path: Path, feature_set: FeatureSet, part: slice) -> None:
    loader = BatchLoader(feature_set, "train", batch_size=16, part=part, shuffle_seed=1)
    rows = [row for batch in loader for row in batch.row_B.tolist()]
    assert sorted(rows) == list(range(part.start, part.stop))
    assert loader.rows == len(rows)
    assert loader.split_rows == feature_set.manifest.splits["train"].rows

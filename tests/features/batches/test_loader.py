"""The loader hands out every row once, resumes exactly, and matches what is stored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.batches.batch import SEMANTIC_KEYS
from features.batches.loader import BatchLoader, FeatureRangeError
from features.batches.pretrained_rows import SemanticRows
from features.feature_set import FeatureSet
from ranking.pretrained_tables import join_tables
from tests.ranking.small_runs import ROW_GROUP, open_small, small_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    small_data(folder)
    return folder


@pytest.fixture(scope="module")
def feature_set(folder: Path) -> FeatureSet:
    return open_small(folder)


@pytest.fixture(scope="module")
def semantic(folder: Path, feature_set: FeatureSet) -> SemanticRows:
    return join_tables(feature_set, product_table=folder / "products", query_table=folder / "queries").rows


def rows_of(loader: BatchLoader) -> list[int]:
    return [int(row) for batch in loader for row in batch.row_B]


@pytest.mark.parametrize("batch_size", [1, ROW_GROUP, 50, 4 * ROW_GROUP, 10_000])
@pytest.mark.parametrize("seed", [None, 3])
def test_an_epoch_is_every_row_once(feature_set: FeatureSet, batch_size: int, seed: int | None) -> None:
    loader = BatchLoader(feature_set, "train", batch_size=batch_size, shuffle_seed=seed)
    assert loader.rows > 8 * ROW_GROUP  # several pools
    sizes, rows = [], []
    for batch in loader:
        sizes.append(len(batch))
        rows += batch.row_B.tolist()
    assert sorted(rows) == list(range(loader.rows))
    assert len(sizes) == len(loader)
    assert all(size == batch_size for size in sizes[:-1])
    assert (rows == sorted(rows)) == (seed is None)


def test_epochs_differ_and_the_same_seed_repeats_them(feature_set: FeatureSet) -> None:
    first = BatchLoader(feature_set, "train", batch_size=64, shuffle_seed=1)
    again = BatchLoader(feature_set, "train", batch_size=64, shuffle_seed=1)
    other = BatchLoader(feature_set, "train", batch_size=64, shuffle_seed=2)
    epochs = [rows_of(first), rows_of(first)]
    assert epochs[0] != epochs[1]
    assert [rows_of(again), rows_of(again)] == epochs
    assert rows_of(other) != epochs[0]


def test_every_epoch_is_every_row_once_and_the_state_says_where_it_is(feature_set: FeatureSet) -> None:
    loader = BatchLoader(feature_set, "train", batch_size=50, shuffle_seed=3)
    orders = set()
    for epoch in range(3):
        assert loader.state_dict() == {"epoch": epoch, "rows_done": 0, "rows": loader.rows}
        rows = []
        for batch in loader:
            rows += batch.row_B.tolist()
            assert loader.state_dict() == {"epoch": epoch, "rows_done": len(rows), "rows": loader.rows}
        assert sorted(rows) == list(range(loader.rows))
        orders.add(tuple(rows))
    assert len(orders) == 3


@pytest.mark.parametrize("stop_after", [0, 1, 3, 7])
def test_resuming_after_any_batch_loses_and_repeats_no_row(
    feature_set: FeatureSet, semantic: SemanticRows, stop_after: int
) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(
            feature_set, "train", batch_size=60, shuffle_seed=4, id_dropout=0.2, semantic=semantic
        )

    whole = loader()
    expected = [*whole, *whole]
    stopped = loader()
    got = []
    batches = iter(stopped)
    for _ in range(stop_after):
        got.append(next(batches))
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    got += [*resumed, *resumed]
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.row_B.tolist() == b.row_B.tolist()
        assert np.array_equal(a.dense_BF, b.dense_BF)
        assert np.array_equal(a.sparse.values(), b.sparse.values())
        assert np.array_equal(a.semantic.values(), b.semantic.values())
        assert np.array_equal(a.semantic.lengths(), b.semantic.lengths())


def test_batches_hold_what_is_stored(feature_set: FeatureSet, semantic: SemanticRows, folder: Path) -> None:
    stored = pa.concat_tables(pq.read_table(path) for path in feature_set.split_files("train"))
    history = feature_set.history_product_index()
    cap = feature_set.manifest.config.history.cap
    for batch in BatchLoader(feature_set, "train", batch_size=80, shuffle_seed=0, semantic=semantic):
        rows = stored.take(batch.row_B.numpy())
        for j, name in enumerate(feature_set.manifest.dense_columns):
            np.testing.assert_array_equal(batch.dense_BF[:, j], rows[name].to_numpy())
        for column in feature_set.manifest.sparse_columns:
            assert batch.sparse[column.name].values().tolist() == rows[column.name].to_pylist()
        assert batch.clicked_B.tolist() == rows["clicked"].to_pylist()
        bags = batch.semantic["history"].to_dense()
        for i, (start, end) in enumerate(
            zip(rows["history_start"].to_pylist(), rows["history_end"].to_pylist(), strict=True)
        ):
            with_vector = [semantic.product_P[p] for p in history[start:end][::-1] if semantic.product_P[p]]
            assert bags[i].tolist() == with_vector[:cap]
        for i, product in enumerate(rows["product_index"].to_pylist()):
            expected = [semantic.product_P[product]] if semantic.product_P[product] else []
            assert batch.semantic["product"].to_dense()[i].tolist() == expected


def test_id_dropout_gives_out_of_vocabulary_rows_in_its_share(feature_set: FeatureSet) -> None:
    plain = BatchLoader(feature_set, "train", batch_size=10_000, shuffle_seed=1)
    dropped = BatchLoader(feature_set, "train", batch_size=10_000, shuffle_seed=1, id_dropout=0.3)
    changed = []
    for before, after in zip(plain, dropped, strict=True):
        for column in feature_set.manifest.sparse_columns:
            a, b = before.sparse[column.name].values(), after.sparse[column.name].values()
            moved = a != b
            assert ((b[moved] >= 1) & (b[moved] <= column.oov_rows)).all()
            if column.name == "day_of_week":  # no out-of-vocabulary ids of its own
                changed.append(float(moved.float().mean()))
    assert 0.25 < np.mean(changed) < 0.35


def test_id_dropout_leaves_missing_and_unknown_ids_as_they_are(feature_set: FeatureSet) -> None:
    plain = BatchLoader(feature_set, "train", batch_size=10_000, shuffle_seed=1)
    dropped = BatchLoader(feature_set, "train", batch_size=10_000, shuffle_seed=1, id_dropout=0.9)
    shared, missing = 0, 0
    for before, after in zip(plain, dropped, strict=True):
        for column in feature_set.manifest.sparse_columns:
            a, b = before.sparse[column.name].values(), after.sparse[column.name].values()
            kept = a <= column.oov_rows
            assert a[kept].equal(b[kept])
            shared += int(kept.sum())
            missing += int((a == 0).sum())
    assert shared >= missing > 0


def test_every_random_stream_of_an_epoch_is_one_of_its_own(
    feature_set: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, states = np.random.default_rng, []

    def noted(seed: list[int]) -> np.random.Generator:
        states.append(tuple(np.random.SeedSequence(seed).generate_state(4).tolist()))
        return make(seed)

    monkeypatch.setattr(np.random, "default_rng", noted)
    loader = BatchLoader(feature_set, "train", batch_size=60, shuffle_seed=3, id_dropout=0.1)
    batches = len(list(loader)) + len(list(loader))
    assert len(states) > batches
    assert len(set(states)) == len(states)


def test_id_dropout_draws_anew_in_every_epoch_batch_and_seed(feature_set: FeatureSet) -> None:
    size, column = 60, "day_of_week"  # a column without out-of-vocabulary ids: a dropped one always shows

    def ids(loader: BatchLoader) -> list[np.ndarray]:
        return [batch.sparse[column].values().numpy() for batch in loader if len(batch) == size]

    def dropped(loader: BatchLoader, plain: BatchLoader) -> np.ndarray:
        """Which places of which batches, [batches, size]."""
        return np.stack(ids(loader)) != np.stack(ids(plain))

    def loader(seed: int | None, id_dropout: float) -> BatchLoader:
        return BatchLoader(feature_set, "train", batch_size=size, shuffle_seed=seed, id_dropout=id_dropout)

    stored_order, plain = loader(None, 0.5), loader(None, 0.0)
    first, second = dropped(stored_order, plain), dropped(stored_order, plain)
    by_seed = [dropped(loader(seed, 0.5), loader(seed, 0.0)) for seed in (1, 2)]
    for one, other in (
        (first, second),  # epochs
        (first[:-1], first[1:]),  # batches
        (first[:, :-1], first[:, 1:]),  # rows
        by_seed,
    ):
        assert 0.4 < (one != other).mean() < 0.6  # half of the draws at 0.5 agree by chance


def test_without_tables_the_semantic_bags_are_empty(feature_set: FeatureSet) -> None:
    batch = next(iter(BatchLoader(feature_set, "test", batch_size=5)))
    assert batch.semantic.values().numel() == batch.semantic.lengths().numel() == 0
    assert batch.semantic.keys() == list(SEMANTIC_KEYS)


@pytest.mark.parametrize("row, span", [(10_000, r"\d+ to 10000"), (-1, r"-1 to \d+")])
def test_a_row_outside_its_table_is_refused(tmp_path: Path, row: int, span: str) -> None:
    small_data(tmp_path, impressions=600)
    feature_set = open_small(tmp_path)
    path = feature_set.split_files("train")[0]
    table = pq.read_table(path)
    rows = table["store"].to_numpy().copy()
    rows[5] = row
    at = table.schema.get_field_index("store")
    pq.write_table(table.set_column(at, table.schema.field("store"), pa.array(rows, pa.int32())), path)
    with pytest.raises(
        FeatureRangeError, match=rf"'store' has embedding rows {span}, but its table has rows"
    ):
        list(BatchLoader(feature_set, "train", batch_size=50))


def test_a_position_in_another_split_is_refused(feature_set: FeatureSet) -> None:
    train = BatchLoader(feature_set, "train", batch_size=5)
    with pytest.raises(ValueError, match="resume with the feature set that the run began with"):
        BatchLoader(feature_set, "test", batch_size=5).load_state_dict(train.state_dict())


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"batch_size": 5, "id_dropout": 1.0}])
def test_senseless_arguments_are_refused(feature_set: FeatureSet, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        BatchLoader(feature_set, "train", **arguments)


def test_impressions_of_a_batch_can_be_named(feature_set: FeatureSet) -> None:
    loader = BatchLoader(feature_set, "train", batch_size=70, shuffle_seed=2)
    batch = next(iter(loader))
    stored = pa.concat_tables(pq.read_table(path) for path in feature_set.split_files("train"))
    expected = stored["impression_id"].take(batch.row_B.numpy()).to_pylist()
    assert loader.impression_ids(batch.row_B.numpy()) == expected
    assert loader.impression_ids(np.array([7, 0, 7])) == [expected_of(stored, row) for row in (7, 0, 7)]
    assert loader.impression_ids(np.array([], np.int64)) == []
    last = loader.rows - 1
    for outside in (-1, loader.rows):
        with pytest.raises(ValueError, match=f"rows of train must be from 0 to {last:,}, got {outside:,}"):
            loader.impression_ids(np.array([0, outside]))


def expected_of(stored: pa.Table, row: int) -> object:
    return stored["impression_id"][row].as_py()

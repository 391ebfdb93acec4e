"""A refresh brings new products and histories to a serving process; a bad one leaves what is live."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from embeddings.embedding_table import EmbeddingTable
from features.columns.clock import DAY_US
from features.online.request import ScoreRequest
from serving.package.generations import current_generation, generation_names, pin, pinned, rollback
from serving.package.manifest import PackageManifest
from serving.package.sealed_folder import PackageError
from serving.package.vectors import SourceVectors
from serving.packaging.build_generation import SnapshotSource, vectors_of_table
from serving.packaging.refresh import refresh
from serving.scoring.predictor import Predictor
from serving.wire.reply import ScoreReply
from tests.serving.small_packages import AS_OF_US, DIM

NEW_PRODUCT = 1000
LATER_US = AS_OF_US + DAY_US


@pytest.fixture
def grown_log(small_run: Path, tmp_path: Path) -> Path:
    """The log with one more product."""
    log = Path(shutil.copytree(small_run / "data", tmp_path / "grown"))
    products = pq.read_table(log / "products.parquet")
    row = products.slice(0, 1).set_column(0, "product_id", pa.array([NEW_PRODUCT]))
    pq.write_table(pa.concat_tables([products, row]), log / "products.parquet")
    return log


def product_vectors(small_run: Path, *, seed: int = 0, **changes: object) -> SourceVectors:
    """The products' table with a vector for the new product, too."""
    old = vectors_of_table(EmbeddingTable.load(small_run / "products"), kind="product")
    new = 4 * np.random.default_rng(seed).normal(size=(1, DIM)).astype(np.float32)
    return SourceVectors(
        **{
            "ids": pa.concat_arrays([old.ids, pa.array([NEW_PRODUCT])]),
            "vectors_MD": np.concatenate([old.vectors_MD, new]),
            "encoder_id": old.encoder_id,
            "created": old.created,
            **changes,
        }
    )


def ask(predictor: Predictor, **changes: object) -> ScoreReply:
    fields = {"user_id": 1, "query": "query 1", "candidates": [0, 4, NEW_PRODUCT], "timestamp_us": LATER_US}
    return predictor.score(ScoreRequest(**{**fields, **changes}))  # type: ignore[arg-type]


def test_a_new_product_is_known_after_one_refresh(small_run: Path, package: Path, grown_log: Path) -> None:
    predictor = Predictor.load(package)
    before = ask(predictor)
    assert (before.unknown["products"], before.unknown["product_vectors"]) == (
        1,
        2,
    )  # product 0 has no vector
    done = refresh(
        package,
        snapshot=SnapshotSource(grown_log, AS_OF_US),
        vectors={"product": product_vectors(small_run)},
    )
    assert (done.before.counts["products"], done.now.counts["products"]) == (7, 8)
    assert predictor.reload_if_changed(wait=True)
    after = ask(predictor)
    assert (after.unknown["products"], after.unknown["product_vectors"]) == (0, 1)
    assert after.generation == "000002"
    assert after.scores_N[2] != before.scores_N[2]
    np.testing.assert_array_equal(after.scores_N[:2], before.scores_N[:2])


def test_a_vector_of_a_product_that_the_snapshot_lacks_is_used(small_run: Path, package: Path) -> None:
    predictor = Predictor.load(package)
    before = ask(predictor)
    refresh(package, vectors={"product": product_vectors(small_run)})
    predictor.reload_if_changed(wait=True)
    after = ask(predictor)
    assert (after.unknown["products"], after.unknown["product_vectors"]) == (1, 1)
    assert after.scores_N[2] != before.scores_N[2]


def test_a_later_snapshot_knows_later_purchases(small_run: Path, package: Path) -> None:
    bought = pq.read_table(small_run / "data" / "purchases.parquet")
    with_vector = bought.filter(pc.equal(bought["product_id"], 4))
    time_us_E = with_vector["timestamp"].cast(pa.int64()).to_numpy()
    user_E = with_vector["user_id"].to_numpy()

    def purchases(user: int, as_of_us: int) -> int:
        inside = (user_E == user) & (time_us_E >= LATER_US - 3 * DAY_US) & (time_us_E < as_of_us)
        return min(4, int(inside.sum()))  # the cap

    user = next(int(u) for u in user_E if purchases(u, LATER_US) > purchases(u, AS_OF_US))
    predictor = Predictor.load(package)
    before = ask(predictor, user_id=user)
    refresh(package, snapshot=SnapshotSource(small_run / "data", LATER_US))
    predictor.reload_if_changed(wait=True)
    after = ask(predictor, user_id=user)
    assert before.history_length == purchases(user, AS_OF_US)
    assert after.history_length == purchases(user, LATER_US)
    assert after.as_of > before.as_of


def test_files_that_stay_the_same_are_linked_rather_than_copied(small_run: Path, package: Path) -> None:
    refresh(package, snapshot=SnapshotSource(small_run / "data", LATER_US))
    tables = [
        package / "generations" / name / "vectors/product/vectors.npy" for name in generation_names(package)
    ]
    assert len({path.stat().st_ino for path in tables}) == 1


def test_refreshing_by_the_same_vectors_moves_no_score(small_run: Path, package: Path) -> None:
    source = vectors_of_table(EmbeddingTable.load(small_run / "products"), kind="product")
    done = refresh(package, vectors={"product": source})
    assert done.moved_most <= 1e-3  # the record is of the offline model in float32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"encoder_id": "another"}, "are of encoder another, but small-seed1-.* was trained with random"),
        ({"vectors_MD": np.ones((8, DIM * 2), np.float32)}, "16 wide, but small-seed1-.* was trained with 8"),
        ({"vectors_MD": np.full((8, DIM), 1e6, np.float32)}, "not finite in float16"),
        ({"ids": pa.array([f"p{i}" for i in range(7)])}, "none of the 7 product ids of the log has a vector"),
    ],
)
def test_vectors_of_another_space_are_refused_and_nothing_changes(
    small_run: Path, package: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        refresh(package, vectors={"product": product_vectors(small_run, **changes)})
    assert (current_generation(package), generation_names(package)) == ("000001", ["000001"])


def test_a_log_that_the_schema_cannot_read_is_refused_and_nothing_changes(
    package: Path, grown_log: Path
) -> None:
    products = pq.read_table(grown_log / "products.parquet").drop_columns(["brand"])
    pq.write_table(products, grown_log / "products.parquet")
    with pytest.raises(ValueError, match="brand"):
        refresh(package, snapshot=SnapshotSource(grown_log, AS_OF_US))
    assert (current_generation(package), generation_names(package)) == ("000001", ["000001"])


def test_a_refresh_of_nothing_is_refused(package: Path) -> None:
    with pytest.raises(PackageError, match="nothing to refresh"):
        refresh(package)


def test_a_damaged_package_is_not_refreshed(small_run: Path, package: Path) -> None:
    """Files of the live generation are linked: their new checksums would hide the damage."""
    path = package / "generations/000001/vectors/product/vectors.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"vectors\.npy has changed"):
        refresh(package, snapshot=SnapshotSource(small_run / "data", LATER_US))


def test_a_rollback_brings_the_old_scores_back(small_run: Path, package: Path) -> None:
    predictor = Predictor.load(package)
    before = ask(predictor)
    refresh(package, vectors={"product": product_vectors(small_run)})
    predictor.reload_if_changed(wait=True)
    assert not np.array_equal(ask(predictor).scores_N, before.scores_N)
    rollback(package)
    predictor.reload_if_changed(wait=True)
    np.testing.assert_array_equal(ask(predictor).scores_N, before.scores_N)


def test_a_damaged_generation_is_not_served_and_the_reason_is_said(small_run: Path, package: Path) -> None:
    predictor = Predictor.load(package)
    before = ask(predictor)
    refresh(package, vectors={"product": product_vectors(small_run)})
    (package / "generations/000002/vectors/product/rows.npy").write_bytes(b"")
    assert predictor.reload_if_changed(wait=True)
    assert predictor.facts()["generation"] == "000001"
    assert "rows.npy has 0 bytes" in predictor.facts()["refused_generation"]
    np.testing.assert_array_equal(ask(predictor).scores_N, before.scores_N)


def test_a_package_exchanged_for_another_model_is_not_mixed_with_this_one(package: Path) -> None:
    predictor = Predictor.load(package)
    manifest = PackageManifest.read(package)
    manifest.model_copy(update={"model_version": "another-model"}).write(package)
    (package / "CURRENT").write_text("000001\n")
    assert predictor.reload_if_changed(wait=True)
    assert "holds another-model now" in predictor.facts()["refused_generation"]
    assert ask(predictor).model_version == manifest.model_version


def test_nothing_is_reloaded_while_nothing_changed(package: Path) -> None:
    assert Predictor.load(package).reload_if_changed(wait=True) is False


def test_no_request_fails_or_mixes_generations_while_they_are_exchanged(
    small_run: Path, package: Path
) -> None:
    predictor = Predictor.load(package)
    sources = [product_vectors(small_run, seed=seed) for seed in (0, 2, 3)]  # vectors whose scores differ
    replies: list[ScoreReply] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def score() -> None:
        while not stop.is_set():
            try:
                predictor.reload_if_changed()
                replies.append(ask(predictor))
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    for source in sources:
        refresh(package, vectors={"product": source})
        predictor.reload_if_changed(wait=True)
    stop.set()
    for thread in threads:
        thread.join()
    predictor.reload_if_changed(wait=True)
    assert failures == []
    scores = {reply.generation: reply.scores_N.tobytes() for reply in replies}
    assert all(scores[reply.generation] == reply.scores_N.tobytes() for reply in replies)
    assert len(set(scores.values())) == len(scores) > 1


def test_a_pinned_generation_is_refreshed_by_force_alone_and_the_pin_goes_along(
    small_run: Path, package: Path
) -> None:
    vectors = {"product": product_vectors(small_run, seed=3)}
    pin(package)
    with pytest.raises(PackageError, match=r"generation 000001 of .* is pinned"):
        refresh(package, vectors=vectors)
    assert generation_names(package) == ["000001"]
    assert refresh(package, vectors=vectors, force=True).now.name == "000002"
    assert pinned(package)
    with pytest.raises(PackageError, match=r"generation 000002 of .* is pinned"):
        refresh(package, vectors=vectors)

"""The predictor's edges: cold users, unknown ids, unseen queries, thousands of candidates, threads."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import serving.scoring.live_generation
from features.online.request import MAX_CANDIDATES, RequestError, ScoreRequest
from serving.package import residency
from serving.package.residency import mappings_of
from serving.package.sealed_folder import PackageError
from serving.scoring.predictor import Predictor, load_to_serve
from serving.wire.reply import ScoreReply
from tests.serving.small_packages import AS_OF_US, copy_generation


@pytest.fixture(scope="module")
def predictor(small_run: Path) -> Predictor:
    return Predictor.load(small_run / "package")


def ask(predictor: Predictor, **changes: object) -> ScoreReply:
    fields = {"user_id": 1, "query": "query 1", "candidates": [0, 2, 4], "timestamp_us": AS_OF_US}
    return predictor.score(ScoreRequest(**{**fields, **changes}))  # type: ignore[arg-type]


def test_the_order_is_that_of_the_scores_and_equal_ones_stay_as_they_came(predictor: Predictor) -> None:
    reply = ask(predictor, candidates=[0, 4, 2, 4, 0])
    assert np.all(np.diff(reply.scores_N[reply.order_N]) <= 0)
    order = reply.order_N.tolist()
    assert order.index(0) < order.index(4)
    assert order.index(1) < order.index(3)


@pytest.mark.parametrize("user_id", [999_999, None])
def test_a_cold_user_is_scored_and_counted(predictor: Predictor, user_id: int | None) -> None:
    reply = ask(predictor, user_id=user_id)
    assert np.isfinite(reply.scores_N).all()
    assert (reply.unknown["users"], reply.history_length) == (int(user_id is not None), 0)


def test_an_id_of_the_wrong_kind_is_refused_with_the_field(predictor: Predictor) -> None:
    with pytest.raises(RequestError, match="user_id"):
        ask(predictor, user_id="someone")


def test_unknown_products_are_scored_and_counted(predictor: Predictor) -> None:
    reply = ask(predictor, candidates=[4, 77_777, 88_888])
    assert (reply.unknown["products"], reply.unknown["product_vectors"]) == (2, 2)
    assert reply.scores_N[1] != reply.scores_N[0]
    assert np.isfinite(reply.scores_N).all()


def test_an_unseen_query_has_no_vector_without_an_encoder(predictor: Predictor) -> None:
    assert ask(predictor, query="never asked").unknown["query_vectors"] == 1
    assert ask(predictor, query="query 2").unknown["query_vectors"] == 0
    assert ask(predictor, query=None).unknown["query_vectors"] == 0


def test_an_unseen_query_is_encoded_once_and_only_then(small_run: Path) -> None:
    asked: list[list[str]] = []

    class Encoder:
        def embed(self, texts: list[str]) -> np.ndarray:
            asked.append(list(texts))
            return np.full((len(texts), 8), 0.5, np.float32)

    predictor = Predictor.load(small_run / "package")
    without = ask(predictor, query="never asked")
    live = predictor.live
    live._model = replace(live._model, encoder=Encoder())  # type: ignore[arg-type]
    with_vector = ask(predictor, query="never asked")
    ask(predictor, query="query 2")
    ask(predictor, query=None)
    assert asked == [["never asked"]]
    assert with_vector.unknown["query_vectors"] == 0
    assert not np.array_equal(with_vector.scores_N, without.scores_N)
    many = [ScoreRequest(user_id=1, query=query, candidates=[2]) for query in ("a", "b", "query 2", "a")]
    predictor.score_many(many)
    assert asked[1] == ["a", "b"]  # in one go; the encoder remembers them


def test_a_history_in_the_request_replaces_the_snapshot_s(predictor: Predictor) -> None:
    none, some = ask(predictor, history=[]), ask(predictor, history=[4, 6])
    assert (none.history_length, some.history_length) == (0, 2)
    assert not np.array_equal(none.scores_N, some.scores_N)
    assert ask(predictor, history=[4, 5_555]).unknown["history"] == 1


def test_what_a_request_gives_once_is_refused_per_candidate_unless_it_is_one_value(
    predictor: Predictor,
) -> None:
    once = ask(predictor, context={"store_id": 3})
    same = ask(predictor, candidate_columns={"store_id": [3, 3, 3]})
    np.testing.assert_array_equal(once.scores_N, same.scores_N)
    with pytest.raises(RequestError, match="store_id"):
        ask(predictor, candidate_columns={"store_id": [3, 4, 3]})


def test_thousands_of_candidates_get_what_each_gets_alone(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = (np.arange(MAX_CANDIDATES) % 20).tolist()
    whole = ask(predictor, candidates=candidates)
    few = ask(predictor, candidates=candidates[:20])
    np.testing.assert_allclose(whole.scores_N, np.tile(few.scores_N, MAX_CANDIDATES // 20), atol=1e-6)
    monkeypatch.setattr(serving.scoring.live_generation, "CALL_CANDIDATES", 7)
    requests = [
        ScoreRequest(user_id=user, query="query 1", candidates=candidates[:n], timestamp_us=AS_OF_US)
        for user, n in ((1, 5), (11, 20), (21, 1))
    ]
    cut = predictor.score_many(requests)
    monkeypatch.undo()
    for reply, request in zip(cut, requests, strict=True):
        assert isinstance(reply, ScoreReply)
        np.testing.assert_allclose(reply.scores_N, predictor.score(request).scores_N, atol=1e-6)


def test_an_empty_call_scores_nothing(predictor: Predictor) -> None:
    assert predictor.score_many([]) == []


def test_the_clock_is_used_where_a_request_has_no_time(predictor: Predictor) -> None:
    assert np.isfinite(ask(predictor, timestamp_us=None).scores_N).all()


def test_a_worker_imports_no_training_code() -> None:
    heavy = (
        "torchrec",
        "fbgemm_gpu",
        "transformers",
        "duckdb",
        "pandas",
        "sklearn",
        "ranking.model",
        "faiss",
    )
    code = f"import sys, serving.scoring.predictor; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_what_is_served_is_in_memory_before_it_is_served(package: Path) -> None:
    predictor = load_to_serve(package)
    memory = predictor.facts()["memory"]
    assert memory["tables"] == "resident"
    assert memory["resident_bytes"] == memory["mapped_bytes"] > 0
    copy_generation(package)
    assert predictor.reload_if_changed(wait=True)
    assert predictor.facts()["generation"] == "000002"
    vectors = package / "generations/000002/vectors/product/vectors.npy"
    (found,) = [one for one in mappings_of(package) if one.path == str(vectors)]
    assert found.resident == found.size
    assert Predictor.load(package).facts()["memory"]["tables"] == "mapped"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_a_server_that_may_not_lock_what_it_is_told_to_says_so(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "serving.toml").write_text('tables = "locked"', encoding="utf-8")
    monkeypatch.setattr(residency, "_lock", lambda *_: True)
    with pytest.raises(PackageError, match=r"of locked memory.*or use tables = .resident."):
        load_to_serve(package)

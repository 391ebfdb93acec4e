"""Routing, shadows and the feature log behind one endpoint, as both servers assemble it."""

import json
import shutil
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest

from features.online.request import ScoreRequest
from serving.client import ScoreClient
from serving.feature_log.feature_log import FeatureLogSettings
from serving.feature_log.log_files import logged_files
from serving.observers.assembly import build_endpoint, open_scorer
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.scoring.routed_scorer import ROUTING, RoutedScorer, Routing
from serving.servers.endpoint import Body
from serving.servers.healing import HealingScorer
from serving.wire import arrow_codec, json_codec
from serving.wire.reply import CHAMPION, ScoreReply, best_first
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer


def body(number: int, **fields: object) -> Body:
    request = {"user_id": number, "query": "q", "candidates": [101, 7], **fields}
    return Body(json.dumps(request).encode(), request_id=f"r{number}")


def routed(tmp_path: Path, routing: Routing) -> RoutedScorer:
    routing.write(tmp_path / ROUTING)
    return RoutedScorer(stand_in_scorer(), {"b": stand_in_scorer()}, routing_file=tmp_path / ROUTING)


def test_variant_salt_and_version_are_in_the_reply_and_in_the_metrics(tmp_path: Path) -> None:
    endpoint = build_endpoint(routed(tmp_path, Routing(shares={"b": 0.5, CHAMPION: 0.5}, salt="s1")))
    answers = endpoint.answer([body(number) for number in range(40)])
    said = [json.loads(answer.content) for answer in answers]
    assert {one["salt"] for one in said} == {"s1"}
    series = endpoint.measures().series()
    for variant in ("b", CHAMPION):
        mine = [one for one in said if one["variant"] == variant]
        assert mine
        assert series["dashclip_variant_requests_total", variant, "stand-in", "s1"] == len(mine)
        assert series["dashclip_variant_candidates_total", variant] == 2 * len(mine)
        scores = sum(sum(one["scores"]) for one in mine)
        assert series["dashclip_variant_score_sum_total", variant] == pytest.approx(scores)
    page = endpoint.measures().page().decode()
    assert 'dashclip_variant_requests_total{model_version="stand-in",salt="s1",variant="b"}' in page


@pytest.mark.parametrize("codec", [json_codec, arrow_codec])
def test_a_client_reads_the_variant_and_one_package_says_none(tmp_path: Path, codec: object) -> None:
    request = ScoreRequest(user_id=1, query="q", candidates=[101])
    content = codec.encode_request(request)  # type: ignore[attr-defined]
    for scorer, variant in ((routed(tmp_path, Routing(shares={"b": 1.0})), "b"), (stand_in_scorer(), None)):
        (answer,) = build_endpoint(scorer).answer([Body(content)])
        reply = codec.decode_reply(answer.content)  # type: ignore[attr-defined]
        assert reply.variant == variant
        assert (b"variant" in answer.content) == (variant is not None)


def test_a_shadow_scores_what_was_served_and_only_the_metrics_say_so(tmp_path: Path) -> None:
    routing = Routing(shares={CHAMPION: 1.0}, shadow=("b",))
    scorer = routed(tmp_path, routing)
    endpoint = build_endpoint(scorer)
    answers = endpoint.answer([body(1), body(2, candidates=[13]), body(3, candidates=[14])])
    endpoint.close()
    assert [answer.status for answer in answers] == [200, 500, 400]
    assert "shadow" not in answers[0].content.decode()
    series = endpoint.measures().series()
    assert series["dashclip_shadow_candidates_total", "b"] == 2
    assert series["dashclip_shadow_difference_sum_total", "b"] == 0
    assert (
        "dashclip_variant_requests_total",
        "b",
        "stand-in",
        scorer.facts()["routing"]["salt"],
    ) not in series


def test_the_difference_of_a_shadow_adds_up_and_its_failures_are_counted(tmp_path: Path) -> None:
    class Other:
        def score_many(self, requests: list[ScoreRequest]) -> list[ScoreReply]:
            if requests[0].user_id == 2:
                raise ZeroDivisionError
            scores_N = pa.array([0.25] * len(requests[0].candidates), pa.float32()).to_numpy()
            return [ScoreReply(scores_N, best_first(scores_N), "other", "000001", "2026-01-01", {})]

        def reload_if_changed(self) -> None: ...

        def facts(self) -> dict[str, str]:
            return {"model_version": "other", "as_of": "2026-01-01"}

    Routing(shares={CHAMPION: 1.0}, shadow=("b",)).write(tmp_path / ROUTING)
    scorer = RoutedScorer(stand_in_scorer(), {"b": Other()}, routing_file=tmp_path / ROUTING)  # type: ignore[dict-item]
    endpoint = build_endpoint(scorer)
    endpoint.answer([body(1), body(2)])
    endpoint.close()
    series = endpoint.measures().series()
    # 101 and 7 score 1/3 and 1/8
    assert series["dashclip_shadow_difference_sum_total", "b"] == pytest.approx(1 / 3 - 1 / 4 + 1 / 4 - 1 / 8)
    assert series["dashclip_shadow_lost_total", "b"] == 1


def test_a_faulty_routing_file_and_what_falls_back_are_seen_in_the_metrics(tmp_path: Path) -> None:
    scorer = routed(tmp_path, Routing(shares={"b": 1.0}))
    endpoint = build_endpoint(scorer)
    assert endpoint.measures().series()["dashclip_routing_refused", ""] == 0
    (tmp_path / ROUTING).write_text("{")
    scorer.reload_if_changed()
    assert endpoint.measures().series()["dashclip_routing_refused", ""] == 1
    endpoint.answer([body(1, candidates=[14])])  # both refuse: it is the request that is bad
    assert endpoint.measures().series()["dashclip_variant_fallbacks_total", CHAMPION] == 0
    assert endpoint.measures().series()["dashclip_refused_total", "400"] == 1


def test_an_observer_that_fails_costs_no_request(tmp_path: Path) -> None:
    class Broken:
        def saw(self, *_: object) -> None:
            raise RuntimeError("secret query text")

        def close(self) -> None: ...

    endpoint = build_endpoint(stand_in_scorer())
    endpoint._observers = (Broken(),)  # type: ignore[assignment]
    (answer,) = endpoint.answer([body(1)])
    assert answer.status == 200


def test_served_and_shadow_answers_of_real_packages_are_logged_together(
    small_run: Path, tmp_path: Path
) -> None:
    package = small_run / "package"
    Routing(shares={"b": 0.5, CHAMPION: 0.5}, salt="s1", shadow=("b", CHAMPION)).write(tmp_path / ROUTING)
    scorer = RoutedScorer(
        Predictor.load(package), {"b": Predictor.load(package)}, routing_file=tmp_path / ROUTING
    )
    settings = FeatureLogSettings(folder=tmp_path / "log", share=0.5, limit_mb=10, key_file=tmp_path / "key")
    settings.prepare()
    endpoint = build_endpoint(scorer, log=settings)
    requests = read_requests(package) * 3
    bodies = [
        Body(json_codec.encode_request(request), request_id=f"r{number}")
        for number, request in enumerate(requests)
    ]
    answers = [json.loads(answer.content) for answer in endpoint.answer(bodies)]
    endpoint.close()
    table = pa.concat_tables(file.table() for file in logged_files(settings.folder))
    drawn = set(table["request_id"].to_pylist())
    assert 0 < len(drawn) < len(requests)
    for number, answer in enumerate(answers):
        rows = table.filter(pa.compute.equal(table["request_id"], f"r{number}"))
        if f"r{number}" not in drawn:
            continue
        for is_shadow in (False, True):
            mine = rows.filter(pa.compute.equal(rows["is_shadow"], is_shadow)).sort_by("candidate")
            variants = set(mine["variant"].to_pylist())
            assert variants == ({"b", CHAMPION} - {answer["variant"]} if is_shadow else {answer["variant"]})
            assert mine["score"].to_pylist() == pytest.approx(answer["scores"], abs=1e-6)
            assert set(mine["salt"].to_pylist()) == {"s1"}
            assert set(mine["generation"].to_pylist()) == {"000001"}
            assert mine["rank"].to_pylist() == [
                answer["order"].index(candidate) for candidate in range(len(mine))
            ]
    assert endpoint.measures().series()["dashclip_feature_log_requests_total", ""] == 2 * len(drawn)


def test_a_challenger_that_cannot_be_opened_hurts_nobody_and_serves_once_it_can(
    small_run: Path, tmp_path: Path
) -> None:
    package, broken = small_run / "package", tmp_path / "broken"
    Routing(shares={"b": 1.0}).write(tmp_path / ROUTING)
    with pytest.raises(ValueError, match="broken"):
        open_scorer(package, {"b": broken}, state=tmp_path, heals=False)
    scorer = open_scorer(package, {"b": broken}, state=tmp_path)
    endpoint = build_endpoint(scorer)
    request = Body(json_codec.encode_request(read_requests(package)[0]))
    (answer,) = endpoint.answer([request])
    said = json.loads(answer.content)
    assert (answer.status, said["variant"], said["instead_of"]) == (200, CHAMPION, "b")
    assert endpoint.measures().series()["dashclip_variant_fallbacks_total", "b"] == 1
    assert "broken" in scorer.facts()["variants"]["b"]["unavailable"]
    shutil.copytree(package, broken)
    assert isinstance(scorer, RoutedScorer)
    healing = scorer.variants["b"]
    assert isinstance(healing, HealingScorer)
    salt = said["salt"]
    healing.open()
    scorer.reload_if_changed()
    (answer,) = endpoint.answer([request])
    said = json.loads(answer.content)
    assert said["variant"] == "b"
    assert "instead_of" not in said
    assert said["salt"] != salt, "the salt follows from the versions of what is there"


def test_fastapi_routes_and_logs_by_the_same_assembly(small_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra `fastapi` is not installed")
    from serving.servers.fastapi.app import create_app
    from tests.serving.servers.fastapi.test_app import root_of, served

    package = small_run / "package"
    Routing(shares={"b": 1.0}, shadow=(CHAMPION,)).write(tmp_path / ROUTING)
    settings = FeatureLogSettings(folder=tmp_path / "log", share=1.0, limit_mb=10, key_file=tmp_path / "key")
    settings.prepare()
    scorer = open_scorer(package, {"b": package}, state=tmp_path)
    request = read_requests(package)[0]
    with served(create_app(scorer, log=settings)) as server:
        with ScoreClient(f"{root_of(server)}/score") as client:
            assert client.score(request).variant == "b"
        health = json.load(urllib.request.urlopen(f"{root_of(server)}/health", timeout=60))
        assert health["routing"]["shares"] == {"b": 1.0}
    (file,) = logged_files(settings.folder)
    assert set(file.table()["variant"].to_pylist()) == {"b", CHAMPION}, "written as the server ends"

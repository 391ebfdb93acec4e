"""Bodies to answers: a bad one does not fail its neighbours, a fault of ours says nothing of the request."""

import json
import logging
import time
from pathlib import Path

import pytest

from features.online.request import MAX_BODY_BYTES, ScoreRequest
from serving.drift.count_files import window_of
from serving.servers.background import Background
from serving.servers.endpoint import FORM, Body, Endpoint
from serving.servers.measures import Series
from serving.wire import arrow_codec, json_codec
from tests.serving.drift.made import Clock, live_counts, reply, serve, some_record
from tests.serving.servers.torchserve.stand_in_handler import stand_in_score, stand_in_scorer


def body(candidates: list[int], **fields: object) -> Body:
    return Body(json.dumps({"user_id": 1, "query": "q", "candidates": candidates, **fields}).encode())


def test_a_bad_request_does_not_fail_its_neighbours() -> None:
    bodies = [body([101]), Body(b"{"), body([14]), body([13, 2]), body([]), body([7])]
    answers = Endpoint(stand_in_scorer()).answer(bodies)
    assert [answer.status for answer in answers] == [200, 400, 400, 500, 400, 200]
    scores = [json.loads(answers[position].content)["scores"][0] for position in (0, 5)]
    assert scores == pytest.approx([stand_in_score(101), stand_in_score(7)])


def test_an_arrow_request_gets_an_arrow_reply_and_says_the_same_as_json() -> None:
    request = ScoreRequest(user_id=1, query="q", candidates=[303, 2, 35])
    bodies = [
        Body(json_codec.encode_request(request), "application/json; charset=utf-8"),
        Body(arrow_codec.encode_request(request), arrow_codec.CONTENT_TYPE),
        Body(arrow_codec.encode_request(request), "application/octet-stream"),
        Body(json_codec.encode_request(request)),
    ]
    answers = Endpoint(stand_in_scorer()).answer(bodies)
    kinds = [answer.content_type for answer in answers]
    assert kinds == [
        json_codec.CONTENT_TYPE,
        arrow_codec.CONTENT_TYPE,
        arrow_codec.CONTENT_TYPE,
        json_codec.CONTENT_TYPE,
    ]
    by_json, by_arrow = (
        json_codec.decode_reply(answers[0].content),
        arrow_codec.decode_reply(answers[1].content),
    )
    assert by_json.scores_N.tobytes() == by_arrow.scores_N.tobytes()
    assert by_json.order_N.tolist() == by_arrow.order_N.tolist() == [1, 0, 2]


def test_errors_are_json_whatever_the_request_was() -> None:
    (answer,) = Endpoint(stand_in_scorer()).answer([Body(b"\xff\xff\xff\xff", arrow_codec.CONTENT_TYPE)])
    assert (answer.status, answer.content_type) == (400, json_codec.CONTENT_TYPE)
    said = json.loads(answer.content)["error"]
    assert said["field"] == "body"
    assert said["message"] == f"{said['field']}: {said['came']} came; {said['advice']}"


def test_a_score_that_is_not_finite_is_the_clients_fault_only_if_it_sent_values() -> None:
    bodies = [
        body([16], candidate_columns={"price": [1e300]}),
        body([16], context={"ctr": 1e300}),
        body([16]),
    ]
    answers = Endpoint(stand_in_scorer()).answer(bodies)
    assert [answer.status for answer in answers] == [400, 400, 500]
    fields = [json.loads(answer.content)["error"].get("field") for answer in answers]
    assert fields == ["candidate_columns", "context", None]


def test_too_large_a_body_is_413_and_says_the_limit() -> None:
    (answer,) = Endpoint(stand_in_scorer()).answer([Body(b" " * (MAX_BODY_BYTES + 1))])
    assert answer.status == 413
    assert f"{MAX_BODY_BYTES:,}" in json.loads(answer.content)["error"]["advice"]


def test_a_large_request_is_told_where_it_is_scored() -> None:
    endpoint = Endpoint(stand_in_scorer())
    endpoint.large_at = "/predictions/dashclip-large"
    small, large = endpoint.answer([body([101]), body(list(range(10**6, 10**6 + 2_000)))])
    assert (small.status, large.status) == (200, 413)
    assert "/predictions/dashclip-large" in json.loads(large.content)["error"]["advice"]


def test_a_form_is_told_which_content_type_to_use() -> None:
    (answer,) = Endpoint(stand_in_scorer()).answer([Body(b"", FORM)])
    assert answer.status == 400
    assert "application/json" in json.loads(answer.content)["error"]["advice"]


def test_a_fault_of_ours_is_logged_by_its_place_without_a_value_of_the_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        (answer,) = Endpoint(stand_in_scorer()).answer([body([13])])
    assert answer.status == 500
    assert b"secret" not in answer.content
    assert "ZeroDivisionError" in caplog.text
    assert "stand_in_handler.py" in caplog.text
    assert "secret query text" not in caplog.text.replace('raise ZeroDivisionError("secret query text")', "")


def test_measures_tell_scored_refused_and_failed() -> None:
    endpoint = Endpoint(stand_in_scorer())
    endpoint.answer([body([1, 2], history=[3]), body([3], user_id=None), body([]), body([13])])
    series = endpoint.measures().series()
    assert series["dashclip_requests_total", ""] == 2
    assert series["dashclip_candidates_total", ""] == 3
    assert series["dashclip_empty_history_total", ""] == 1
    assert series["dashclip_unknown_total", "users"] == 1
    assert series["dashclip_refused_total", "400"] == 1
    assert series["dashclip_failed_total", ""] == 1
    assert series["dashclip_snapshot_age_seconds", ""] > 0


def test_the_background_reloads_and_exports() -> None:
    scorer = stand_in_scorer()
    endpoint = Endpoint(scorer)
    endpoint.answer([body([101])])
    exported: list[Series] = []
    background = Background(endpoint, export=exported.append, period_s=0.01)
    background.start()
    while len(exported) < 3:
        pass
    background.stop()
    assert scorer.reloads >= 3  # type: ignore[attr-defined]
    assert exported[0]["dashclip_requests_total", ""] == 1


def test_the_background_writes_counts_and_tells_the_measures_what_moved(tmp_path: Path) -> None:
    clock = Clock(time.time() - 4 * 3_600)
    live = live_counts(some_record(), clock)
    serve(live, clock, tmp_path, requests=600)  # all of one price
    endpoint = Endpoint(stand_in_scorer(), live=live)
    clock.now_s = time.time()
    live.count(reply(), 1)
    background = Background(endpoint, counts_folder=tmp_path)
    background.stop()
    assert len({window_of(path) for path in tmp_path.iterdir()}) >= 3  # the hour of then and now, and a day
    background.beat(1)
    series = endpoint.measures().series()
    assert series["dashclip_drift_requests", "hour"] == 600
    assert series["dashclip_drift_columns_moved", "hour"] >= 1
    assert series["dashclip_drift_shift", "hour", "price"] > 0.5


def test_what_fails_in_the_background_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    def export(series: Series) -> None:
        raise OSError("no space")

    background = Background(Endpoint(stand_in_scorer()), export=export)
    background.beat(1)
    background.beat(2)
    assert [record.getMessage().split(" failed")[0] for record in caplog.records] == [
        "exporting measures"
    ] * 2

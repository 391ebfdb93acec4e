"""The soak's judgement: which failures a killed worker explains, and which scores are wrong."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from experiments.serving_checks import soak
from experiments.serving_checks.soak_counts import (
    LOST,
    Failure,
    SoakPlan,
    SoakResult,
    explained,
    soak_summary,
    worker_growth,
)
from experiments.serving_checks.soak_requests import Expectations, extend_log, make_pool, new_product_ids
from features.inputs.tables import InputTables
from serving.wire.reply import ScoreReply, best_first
from tests.features.small_logs import random_tables, write_tables

PLAN = SoakPlan(minutes=1, refreshes=())


def _reply(scores: list[float], generation: str = "000001", order: list[int] | None = None) -> ScoreReply:
    scores_N = np.array(scores, np.float32)
    order_N = best_first(scores_N) if order is None else np.array(order)
    return ScoreReply(scores_N, order_N, "model", generation, "", {})


def _expectations() -> Expectations:
    return Expectations([], {"model 000001": [np.array([0.1, 0.3], np.float32)]})


def test_a_failure_under_way_at_a_kill_is_explained() -> None:
    assert explained([Failure(9.9, 10.2, "507")], [10.0], in_flight=1) == 1


def test_a_failure_that_ended_before_the_kill_or_began_long_after_is_not() -> None:
    failures = [Failure(8.0, 9.0, "500"), Failure(12.0, 13.0, "500")]
    assert explained(failures, [10.0], in_flight=1) == 0


def test_a_kill_explains_as_many_failures_as_its_worker_held_requests() -> None:
    failures = [Failure(9.9, 10.2, "507"), Failure(9.95, 10.3, "507"), Failure(19.9, 20.1, "507")]
    assert explained(failures, [10.0, 20.0], in_flight=1) == 2
    assert explained(failures, [10.0, 20.0], in_flight=2) == 3


def test_equal_scores_pass_and_others_do_not() -> None:
    expectations = _expectations()
    expectations.check(0, _reply([0.1, 0.3]))
    assert expectations.wrong == []
    expectations.check(0, _reply([0.1, 0.3001]))
    expectations.check(0, _reply([0.1]))
    expectations.check(0, _reply([0.1, float("nan")]))
    expectations.check(0, _reply([0.1, 0.3], order=[0, 1]))
    assert len(expectations.wrong) == 4


def test_a_reply_of_a_generation_that_is_not_known_yet_waits() -> None:
    expectations = _expectations()
    expectations.check(0, _reply([0.1, 0.3], generation="000002"))
    summary = soak_summary(SoakResult(), expectations, PLAN)
    assert (summary["wrong_scores"], summary["unchecked_replies"]) == (0, 1)


def test_errors_without_a_kill_are_unexplained_and_refusals_are_counted_apart() -> None:
    result = SoakResult(seconds=60, kills_s=[10.0])
    result.statuses.update({"200": 5, "507": 1, "503": 1, "400": 1})
    result.bad_outcomes.update({"400": 2, "200": 1})
    result.hostile_outcomes.update({"400": 2, "413": 1, "507": 1, LOST: 1})
    result.failures = [Failure(9.9, 10.1, "507"), Failure(30, 31, "503"), Failure(40, 41, "400")]
    summary = soak_summary(result, _expectations(), PLAN)
    assert (summary["explained_5xx"], summary["unexplained_5xx"]) == (1, 1)
    assert summary["refused_good_requests"] == 1
    assert summary["bad_requests_not_refused_with_400"] == 1
    assert summary["requests"] == 11
    assert (summary["hostile_requests"], summary["hostile_not_refused"]) == (5, 2)


@pytest.mark.parametrize(("status", "fails"), [("400", False), ("200", False), ("507", True), (LOST, True)])
def test_a_wrong_body_that_a_killed_worker_held_is_a_failure_that_the_kill_explains(
    monkeypatch: pytest.MonkeyPatch, *, status: str, fails: bool
) -> None:
    monkeypatch.setattr(soak, "_post", lambda *_: (status, b"", ""))
    result = SoakResult()
    soak._send_wrong(None, b"", "", result, result.bad_outcomes, time.monotonic())  # type: ignore[arg-type]
    assert [one.outcome for one in result.failures] == [status] * fails
    assert result.bad_outcomes == ({} if fails else {status: 1})


def test_a_lost_connection_is_a_reset_and_no_explained_error() -> None:
    result = SoakResult(seconds=60, failures=[Failure(30, 31, LOST)])
    summary = soak_summary(result, _expectations(), PLAN)
    assert (summary["resets"], summary["unexplained_5xx"]) == (1, 1)


def test_growth_is_that_of_the_worker_that_grew_most_after_its_warm_up() -> None:
    grows = [50.0] * 10 + [100.0] * 15 + [102.0] * 15
    assert worker_growth([[100.0] * 40, grows]) == pytest.approx(0.02)
    assert worker_growth([[100.0, 200.0]]) is None  # it has not lived for long


def test_scores_of_two_packages_are_told_apart_by_the_reply() -> None:
    expectations = _expectations()
    expectations.by_generation["other 000001"] = [np.array([0.2, 0.4], np.float32)]
    expectations.check(0, replace(_reply([0.2, 0.4]), model_version="other"))
    assert expectations.wrong == []
    expectations.check(0, _reply([0.2, 0.4]))
    assert len(expectations.wrong) == 1
    assert expectations.checked == {"model 000001": 1, "other 000001": 1}


def test_memory_is_compared_between_the_first_and_last_tenth_after_the_start() -> None:
    result = SoakResult(memory_mib=[100, *([200] * 10), *([300] * 9)])
    summary = soak_summary(result, _expectations(), PLAN)
    assert (summary["memory_mib_start"], summary["memory_mib_end"]) == (200, 300)


@pytest.mark.parametrize("text_ids", [False, True])
def test_the_pool_mixes_what_a_server_meets(tmp_path: Path, *, text_ids: bool) -> None:
    tables = random_tables(5, impressions=200, text_ids=text_ids)
    log = InputTables.open(write_tables(tmp_path / "data", tables))
    pool = make_pool(log, timestamp_us=10**15, size=200, seed=1)
    requests = [one.request for one in pool]
    assert {len(one.candidates) for one in requests} == {1, 5, 20, 100, 300}
    assert {one.content_type for one in pool} == {
        "application/json",
        "application/vnd.apache.arrow.stream",
    }
    assert any(one.user_id is None for one in requests)
    assert any(one.query is None for one in requests)
    assert any(one.history is not None for one in requests)
    again = make_pool(log, timestamp_us=10**15, size=200, seed=1)
    assert [one.body for one in pool] == [one.body for one in again]


def test_a_refresh_brings_products_that_requests_name_already(tmp_path: Path) -> None:
    log = InputTables.open(write_tables(tmp_path / "data", random_tables(5, impressions=200)))
    extended = InputTables.open(extend_log(log, tmp_path / "more"))
    before, after = (_products(one) for one in (log, extended))
    assert set(after) - set(before) <= set(new_product_ids(before))
    assert len(after) > len(before)


def _products(log: InputTables) -> list[int]:
    import pyarrow.parquet as pq

    return pa.concat_tables(pq.read_table(path) for path in log.files("products"))["product_id"].to_pylist()

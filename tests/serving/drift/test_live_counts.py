"""Counts by hour and day, on disk and over workers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from serving.drift import count_files
from serving.drift.count_files import read_counts, remove_old, windows_on_disk
from serving.drift.live_counts import LiveCounts
from serving.drift.watch import DriftWatch, reports
from tests.serving.drift.made import NOON_S, Clock, live_counts, reader, reply, serve, some_record

HOUR_S = 3_600.0


def test_an_hour_and_its_day_count_the_same_requests_and_the_next_hour_starts_at_nothing(
    tmp_path: Path,
) -> None:
    record, clock = some_record(), Clock()
    live = live_counts(record, clock)
    serve(live, clock, tmp_path, requests=7)
    clock.now_s = NOON_S + HOUR_S
    serve(live, clock, tmp_path, requests=2)
    counted = read_counts(tmp_path, record, model_version="model").windows
    assert {window: tally.requests for window, tally in counted.items()} == {
        "2026-11-30": 9,
        "2026-11-30T07": 7,
        "2026-11-30T08": 2,
    }
    assert counted["2026-11-30"].candidates == 18


def test_windows_end_even_if_nobody_asks_any_more(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    live = live_counts(record, clock)
    live.count(reply(), 1)
    clock.now_s += 3 * HOUR_S
    live.write(tmp_path)
    assert windows_on_disk(tmp_path) == ["2026-11-30", "2026-11-30T07"]


def test_counts_of_workers_add_up_and_those_of_others_are_left_out_and_said(tmp_path: Path) -> None:
    record = some_record()
    for at in range(3):
        clock = Clock(NOON_S + at)  # which tells workers of one process apart
        serve(live_counts(record, clock), clock, tmp_path, requests=4)
    clock = Clock(NOON_S + 3)
    serve(live_counts(record, clock, model_version="another"), clock, tmp_path, requests=5)
    clock = Clock(NOON_S + 4)
    serve(live_counts(some_record(seed=8), clock), clock, tmp_path, requests=5)
    counted = read_counts(tmp_path, record, model_version="model")
    assert counted.windows["2026-11-30T07"].requests == 12
    assert counted.of_others == 4


def test_of_many_requests_at_once_some_are_left_out_evenly(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    live = LiveCounts(record, reader(record), model_version="model", most_a_second=5, clock=clock)
    for _ in range(1_000):
        clock.now_s += 0.01
        live.count(reply(), 1)
    live.write(tmp_path)
    requests = read_counts(tmp_path, record, model_version="model").windows["2026-11-30"].requests
    assert 45 <= requests <= 51


def test_what_a_reply_says_is_read_from_its_features(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    live = live_counts(record, clock)
    live.count(reply(age=5, history_length=0, product_rows=(1, 2), price=(4, 8), scores=(0.5, 0.25)), None)
    clock.now_s += 1
    live.count(reply(product_rows=(0, 3), price=(0, 0), scores=(0, 0.25)), 3)  # row 0 is a missing id
    live.count(dataclasses.replace(reply(), rows=None), 3)  # of a scorer without features
    live.write(tmp_path)
    tally = read_counts(tmp_path, record, model_version="model").windows["2026-11-30"]
    means = {column.name: tally.mean(at) for at, column in enumerate(tally.columns)}
    assert means == {"age": 17.5, "no purchases": 0.5, "score": 0.25, "price": 3.0, "product unknown": 0.5}


def test_files_hold_no_ids(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    live = live_counts(record, clock)
    live.count(reply(), "a user who is known")
    live.write(tmp_path)
    assert not any(b"a user" in path.read_bytes() for path in tmp_path.iterdir())


def test_old_windows_go_and_days_stay_longer_than_hours(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    live = live_counts(record, clock)
    for _ in range(60):
        serve(live, clock, tmp_path, requests=1)
        clock.now_s += HOUR_S
    live.write(tmp_path)
    found = windows_on_disk(tmp_path)
    assert len([window for window in found if "T" in window]) == 48
    assert [window for window in found if "T" not in window] == ["2026-11-30", "2026-12-01", "2026-12-02"]


def test_workers_that_die_again_and_again_leave_a_bounded_number_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count_files, "MOST_FILES", 10)
    record = some_record()
    for at in range(12):
        clock = Clock(NOON_S + at)
        serve(live_counts(record, clock), clock, tmp_path, requests=1)
    (tmp_path / "a note.safetensors").touch()  # of somebody else
    remove_old(tmp_path)
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 11
    assert not any(name.startswith("2026-11-30T") for name in names)


@pytest.mark.parametrize("content", [b"{", b"", np.zeros(9).tobytes()])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "2026-11-30.9-1.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"2026-11-30\.9-1\.safetensors .*; delete it"):
        read_counts(tmp_path, some_record(), model_version="model")


def test_files_that_counted_candidates_are_said_and_removed_at_a_start(tmp_path: Path) -> None:
    (tmp_path / "worker-17.json").write_text('{"model_version": "model", "requests": 9}')
    assert read_counts(tmp_path, some_record(), model_version="model").of_earlier_version == 1
    count_files.begin_counts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_window_has_a_verdict_once_it_is_over_and_the_workers_have_written(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    serve(live_counts(record, clock), clock, tmp_path, requests=600)  # all with one price
    counted = read_counts(tmp_path, record, model_version="model")
    by_window = {report.window: report for report in reports(record, counted, now_s=NOON_S + HOUR_S)}
    assert list(by_window) == ["2026-11-30", "2026-11-30T07"]
    assert not by_window["2026-11-30T07"].is_over
    assert by_window["2026-11-30T07"].alarms == []
    later = reports(record, counted, now_s=NOON_S + HOUR_S + 121)[1]
    assert later.is_over
    assert "price" in [one.name for one in later.alarms]


def test_the_watch_tells_of_the_newest_finished_window_of_each_kind(tmp_path: Path) -> None:
    record, clock = some_record(), Clock()
    watch = DriftWatch(tmp_path)
    live = live_counts(record, clock)
    assert watch.look(record, model_version="model", now_s=clock()) == {}
    for requests in (600, 30):
        serve(live, clock, tmp_path, requests=requests)
        clock.now_s += HOUR_S
    live.write(tmp_path)
    seen = watch.look(record, model_version="model", now_s=NOON_S + 2 * HOUR_S)
    assert (seen["hour"].window, seen["hour"].requests) == ("2026-11-30T07", 600)
    assert "price" in [one.name for one in seen["hour"].alarms]
    assert "day" not in seen
    seen = watch.look(record, model_version="model", now_s=NOON_S + 24 * HOUR_S)
    assert (seen["hour"].requests, len(seen["hour"].alarms)) == (30, 0)
    assert (seen["day"].window, seen["day"].requests) == ("2026-11-30", 630)


def test_a_record_of_columns_that_the_model_does_not_read_is_refused() -> None:
    from serving.drift.watched import Reader

    with pytest.raises(ValueError, match="make the package again"):
        Reader(some_record().columns, dense_columns=["price"], sparse_columns=["product"])

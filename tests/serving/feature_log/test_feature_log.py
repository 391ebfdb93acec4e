"""What is logged is what the model read; users are hidden, room and disk bounded, no file is ever half."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.online.request import ScoreRequest
from serving.feature_log import feature_log, log_files
from serving.feature_log.feature_log import FeatureLog, FeatureLogSettings
from serving.feature_log.log_files import DENSE, SPARSE, logged_files, make_room
from serving.feature_log.user_keys import hidden_user, make_key, read_key
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.servers.measures import Measures
from serving.wire.reply import ScoreReply

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def predictor(small_run: Path) -> Predictor:
    return Predictor.load(small_run / "package")


@pytest.fixture(scope="module")
def recorded(small_run: Path) -> list[ScoreRequest]:
    return read_requests(small_run / "package")


def settings_in(folder: Path, **changes: object) -> FeatureLogSettings:
    fields = {"folder": folder / "log", "share": 1.0, "limit_mb": 10, "key_file": folder / "key", **changes}
    settings = FeatureLogSettings.model_validate(fields)
    settings.prepare()
    return settings


def log_all(settings: FeatureLogSettings, predictor: Predictor, requests: list[ScoreRequest]) -> Measures:
    measures = Measures()
    log = FeatureLog(settings, measures)
    for number, request in enumerate(requests):
        log.saw(request, predictor.score(request), f"r{number}")
    log.close()
    return measures


def read_all(settings: FeatureLogSettings) -> pa.Table:
    return pa.concat_tables(file.table() for file in logged_files(settings.folder))


def test_the_features_in_the_log_are_those_that_the_model_read(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    log_all(settings, predictor, recorded)
    table = read_all(settings)
    assert table.num_rows == sum(len(request.candidates) for request in recorded)
    for number, request in enumerate(recorded):
        rows = table.filter(pa.compute.equal(table["request_id"], f"r{number}")).sort_by("candidate")
        reply, features = predictor.score(request), predictor.feature_rows(request)
        assert rows["product_id"].to_pylist() == request.candidates.to_pylist()
        assert rows["score"].to_numpy().tobytes() == reply.scores_N.tobytes()
        assert set(rows["timestamp"].cast(pa.int64()).to_pylist()) == {request.timestamp_us}
        assert set(rows["query"].to_pylist()) == {request.query}
        for at, name in enumerate(predictor.manifest.dense_columns):
            np.testing.assert_array_equal(rows[DENSE + name].to_numpy(), features.dense_NF[:, at])
        for at, name in enumerate(predictor.manifest.sparse_rows):
            if name != "user":
                np.testing.assert_array_equal(rows[SPARSE + name].to_numpy(), features.sparse_NS[:, at])


def test_no_column_tells_a_user_from_the_others_without_the_key(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path)
    nobody = replace(recorded[0], user_id=None)
    log_all(settings, predictor, [*recorded, nobody])
    (file,) = logged_files(settings.folder)
    assert file.left_out == ("user", "user_missing")
    table = file.table()
    assert SPARSE + "user" not in table.column_names
    assert "user_id" not in str(table.schema)
    key = read_key(settings.key_file)
    expected = {hidden_user(request.user_id, key) for request in recorded if request.user_id is not None}
    assert set(table["user"].to_pylist()) == {*expected, None}
    written = file.path.read_bytes()
    assert key not in written
    assert key.hex().encode() not in written
    assert settings.key_file.stat().st_mode & 0o077 == 0
    assert {path.name for path in tmp_path.iterdir()} == {"log", "key"}


def test_another_key_gives_other_names_and_numbers_are_named_as_their_digits(tmp_path: Path) -> None:
    make_key(tmp_path / "a")
    make_key(tmp_path / "b")
    one, other = read_key(tmp_path / "a"), read_key(tmp_path / "b")
    assert hidden_user(7, one) == hidden_user("7", one) != hidden_user(7, other)
    make_key(tmp_path / "a")
    assert read_key(tmp_path / "a") == one, "a key that is there stays"


@pytest.mark.parametrize("content", ["", "00", "zz" * 32, "é" * 64])
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ValueError, match="is not a key"):
        settings_in(tmp_path)


def test_a_key_inside_the_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--log-key"):
        settings_in(tmp_path, key_file=tmp_path / "log" / "key")
    assert not (tmp_path / "log").exists()


def test_a_share_of_the_requests_is_logged_whole(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path
) -> None:
    settings = settings_in(tmp_path, share=0.2)
    reply = predictor.score(recorded[0])
    log = FeatureLog(settings, Measures())
    for number in range(500):
        log.saw(recorded[0], reply, f"request {number}")
    log.close()
    table = read_all(settings)
    requests = len(set(table["request_id"].to_pylist()))
    assert abs(requests - 100) < 4.5 * (500 * 0.2 * 0.8) ** 0.5
    assert table.num_rows == requests * len(recorded[0].candidates)
    assert {file.share for file in logged_files(settings.folder)} == {0.2}


def test_the_oldest_files_go_so_that_the_limit_holds(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 0
    write_rows = log_files.write_rows

    def watched(log: Path, table: pa.Table, *, limit_bytes: int) -> Path:
        nonlocal largest
        path = write_rows(log, table, limit_bytes=60_000)
        largest = max(largest, sum(file.path.stat().st_size for file in logged_files(log)))
        return path

    monkeypatch.setattr(feature_log, "write_rows", watched)
    monkeypatch.setattr(feature_log, "_FILE_BYTES", 2_000)
    settings = settings_in(tmp_path)
    log_all(settings, predictor, recorded * 12)
    assert 30_000 < largest <= 60_000
    last = f"r{12 * len(recorded) - 1}"
    assert last in read_all(settings)["request_id"].to_pylist(), "the newest stay"
    assert "r0" not in read_all(settings)["request_id"].to_pylist()


def test_room_is_made_by_age_over_all_model_versions(tmp_path: Path) -> None:
    for number, version in enumerate(("a", "b", "a", "b")):
        (tmp_path / version).mkdir(exist_ok=True)
        (tmp_path / version / f"{number:016d}-1-x.parquet").write_bytes(b"x" * 100)
    make_room(tmp_path, 250)
    assert sorted(path.name[:16] for path in tmp_path.glob("*/*")) == ["0000000000000002", "0000000000000003"]


def test_what_a_killed_worker_left_half_written_goes_when_it_is_old(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    old, fresh = tmp_path / "a" / ".1.parquet.x.writing", tmp_path / "a" / ".2.parquet.x.writing"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 3_600, time.time() - 3_600))
    make_room(tmp_path, 1)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_a_request_never_waits_for_the_disk_and_what_is_lost_is_counted(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        writing.set()
        go_on.wait(60)

    monkeypatch.setattr(feature_log, "write_rows", slow)
    monkeypatch.setattr(feature_log, "_FILE_BYTES", 1)
    reply = predictor.score(recorded[0])
    room = 10 * len(reply.scores_N)
    monkeypatch.setattr(feature_log, "_ROOM", room)
    measures = Measures()
    log = FeatureLog(settings_in(tmp_path), measures)
    log.saw(recorded[0], reply, "first")
    assert writing.wait(60)
    for number in range(30):  # returns although the disk does not
        log.saw(recorded[0], reply, f"r{number}")
    assert measures.series()["dashclip_feature_log_lost_total", ""] == 30 - 9
    go_on.set()
    log.close()
    assert measures.series()["dashclip_feature_log_requests_total", ""] == 10


def test_a_full_disk_loses_rows_and_no_more(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    settings = settings_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        measures = log_all(settings, predictor, recorded)
    assert measures.series()["dashclip_feature_log_lost_total", ""] == len(recorded)
    assert [*settings.folder.rglob("*.parquet")] == [*settings.folder.rglob(".*")] == []
    log_all(settings, predictor, recorded)
    assert len(set(read_all(settings)["request_id"].to_pylist())) == len(recorded)


def test_rows_are_written_when_they_are_old_although_they_are_few(
    predictor: Predictor, recorded: list[ScoreRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_log, "_FILE_S", 0.0)
    settings = settings_in(tmp_path)
    log = FeatureLog(settings, Measures())
    log.saw(recorded[0], predictor.score(recorded[0]), "r0")
    deadline = time.monotonic() + 60
    while not [*logged_files(settings.folder)] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read_all(settings).num_rows == len(recorded[0].candidates)
    log.close()


def test_replies_of_a_scorer_that_shows_no_features_are_not_logged(
    recorded: list[ScoreRequest], tmp_path: Path
) -> None:
    log = FeatureLog(settings_in(tmp_path), Measures())
    scores_N = np.zeros(len(recorded[0].candidates), np.float32)
    log.saw(recorded[0], ScoreReply(scores_N, scores_N.argsort(), "v", "1", "2026-01-01", {}), "r0")
    log.close()
    assert [*logged_files(tmp_path / "log")] == []


_WRITER = """
import sys
from pathlib import Path
from serving.feature_log import feature_log
from serving.feature_log.feature_log import FeatureLog, FeatureLogSettings
from serving.package.parity import read_requests
from serving.scoring.predictor import Predictor
from serving.servers.measures import Measures

package, folder, heavy = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
feature_log._FILE_BYTES = 20_000
settings = FeatureLogSettings(folder=folder / "log", share=1.0, limit_mb=1000, key_file=folder / "key")
settings.prepare()
log = FeatureLog(settings, Measures())
predictor, requests = Predictor.load(package), read_requests(package)
number = 0
while True:
    for request in requests:
        number += 1
        log.saw(request, predictor.score(request), f"r{number}")
    if [*settings.folder.rglob("*.parquet")]:
        print([name for name in heavy if name in sys.modules], flush=True)
"""


def test_a_kill_in_the_middle_of_writing_leaves_whole_files_only_and_nothing_heavy_is_imported(
    small_run: Path, tmp_path: Path
) -> None:
    heavy = "torchrec,fbgemm_gpu,duckdb,sklearn,scipy"  # Arrow itself imports pandas where there is one
    command = [sys.executable, "-c", _WRITER, str(small_run / "package"), str(tmp_path), heavy]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[]\n"
        deadline = time.monotonic() + 60
        while not [*tmp_path.rglob(".*.writing")] and time.monotonic() < deadline:
            pass
        process.send_signal(signal.SIGKILL)
    files = [*logged_files(tmp_path / "log")]
    assert files
    for file in files:
        table = file.table()
        assert table.num_rows > 0
        table.validate(full=True)

"""Every line that a server leaves is JSON with a level, names its requests, and lies in a rotated file."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from serving.servers import log_stream
from serving.servers.json_lines import JsonLines, about, at_work
from serving.servers.log_stream import LogStream

ROOT = Path(__file__).resolve().parents[3]


def test_what_is_no_json_line_becomes_one_and_nothing_is_lost_where_nobody_reads(tmp_path: Path) -> None:
    ours = '{"time": "t", "level": "ERROR", "message": "x"}'
    text = b"Segmentation fault \xff\n\n" + ours.replace('"time": ', '"time":').encode() + b"\n{broken\n"

    def nobody(line: str) -> None:
        raise BrokenPipeError

    for write in (io.StringIO().write, nobody):
        path = tmp_path / write.__name__ / "server.jsonl"
        stream = LogStream(io.BytesIO(text), write, path=path)  # type: ignore[arg-type]
        stream.start()
        stream.join(60)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["message"] for line in lines] == ["Segmentation fault \ufffd", "x", "{broken"]
        assert [line["level"] for line in lines] == ["INFO", "ERROR", "INFO"]


def test_a_log_is_rotated_and_so_many_old_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "ROTATED_MB", 0.001)
    monkeypatch.setattr(log_stream, "ROTATED_KEPT", 2)
    text = b"".join(b"%099d\n" % number for number in range(200))
    stream = LogStream(io.BytesIO(text), lambda _: None, path=tmp_path / "server.jsonl")
    stream.start()
    stream.join(60)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "server.jsonl",
        "server.jsonl.1",
        "server.jsonl.2",
    ]
    assert all(path.stat().st_size <= 1_000 for path in tmp_path.iterdir())
    assert "0199" in (tmp_path / "server.jsonl").read_text()


def test_a_line_names_its_own_requests_or_those_at_work() -> None:
    record = logging.makeLogRecord({"msg": "something", "levelname": "WARNING", "name": "a.library"})
    with at_work(["a", None, "b"]):
        assert json.loads(JsonLines().format(record))["request_ids"] == ["a", "b"]
        own = logging.makeLogRecord({"msg": "x", **about(["b"])})
        assert json.loads(JsonLines().format(own))["request_ids"] == ["b"]
    assert "request_ids" not in json.loads(JsonLines().format(record))


def test_warnings_and_the_end_of_a_thread_or_process_are_json_lines_too() -> None:
    code = (
        "import threading, warnings\n"
        "from serving.servers.json_lines import log_as_json\n"
        "log_as_json()\n"
        "warnings.warn('old thing')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\n"
        "thread.start(); thread.join()\n"
        "raise KeyError('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["level"] for line in lines] == ["WARNING", "CRITICAL", "CRITICAL"]
    for line, said in zip(lines, ("old thing", "ZeroDivisionError", "KeyError"), strict=True):
        assert said in line["message"]

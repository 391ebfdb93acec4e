"""Hosts side by side: the same, or a sentence for each difference."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from serving.servers.fleet import differences, look

SAID = {
    "ready": True,
    "model_version": "m-1",
    "package": "aaaa",
    "generation": "000002",
    "generation_files": "bbbb",
    "as_of": "2026-11-01T00:00:00+00:00",
    "fallen_back": False,
}


def host(folder: Path, name: str, **changes: Any) -> str:
    (folder / name).write_text(json.dumps({**SAID, **changes}))
    return str(folder / name)


def test_hosts_that_say_the_same_are_a_fleet_whichever_server_they_run(tmp_path: Path) -> None:
    lists = {name: [value] for name, value in SAID.items() if isinstance(value, str)}
    hosts = [look(host(tmp_path, "fastapi")), look(host(tmp_path, "torchserve", **lists))]
    assert differences(hosts) == []
    assert hosts[1].age_hours(datetime(2026, 11, 2, tzinfo=UTC)) == 24


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_version": "m-2"}, "model versions differ: m-1 at {a}; m-2 at {b}"),
        ({"package": "cccc"}, "packages differ: aaaa at {a}; cccc at {b}"),
        ({"generation": "000001"}, "generations differ: 000002 at {a}; 000001 at {b}"),
        ({"generation_files": "dddd"}, "files of the generation differ: bbbb at {a}; dddd at {b}"),
        ({"ready": False}, "{b} is not ready: it says so (status 200)"),
        ({"fallen_back": True}, "{b} has fallen back to an older generation"),
        ({"generation": ["000001", "000002"]}, "generations differ: 000002 at {a}; 000001 and 000002 at {b}"),
    ],
)
def test_each_difference_is_a_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    a, b = host(tmp_path, "a"), host(tmp_path, "b", **changes)
    assert differences([look(a), look(b)]) == [sentence.format(a=a, b=b)]


def test_a_host_that_cannot_be_asked_is_not_ready_and_hides_no_other_difference(tmp_path: Path) -> None:
    there, other = host(tmp_path, "a"), host(tmp_path, "b", package="cccc")
    found = differences([look(there), look("http://127.0.0.1:9"), look(other), look(str(tmp_path / "none"))])
    assert [sentence.split(" ", 1)[1].split("(")[0] for sentence in found] == [
        "is not ready: it cannot be asked ",
        "is not ready: it cannot be asked ",
        f"differ: aaaa at {there}; cccc at {other}",
    ]


def test_the_command_shows_all_and_its_exit_code_says_whether_they_agree(tmp_path: Path) -> None:
    a, b = host(tmp_path, "a"), host(tmp_path, "b", generation="000001")
    done = CliRunner().invoke(app, ["fleet", a, a])
    assert done.exit_code == 0, done.output
    assert "all 2 hosts are ready and serve the same" in done.output
    done = CliRunner().invoke(app, ["fleet", a, b])
    assert done.exit_code == 1
    assert f"generations differ: 000002 at {a}; 000001 at {b}" in done.output.replace("\n", "")
    done = CliRunner().invoke(app, ["fleet", a, "--max-hours", "1"])
    assert done.exit_code == 1
    assert "hours old, 1 may be" in done.output

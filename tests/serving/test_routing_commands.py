"""`dashclip route`, and challengers from the command line to a server."""

import shutil
import time
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from experiments.cli import app
from features.online.request import ScoreRequest
from serving.client import ScoreClient
from serving.feature_log.log_files import logged_files
from serving.scoring.routed_scorer import ROUTING, Routing
from serving.scoring.routing import assign
from serving.servers.torchserve import archive as archive_module
from serving.servers.torchserve.archive import archive_package, example_request, find_archive
from serving.servers.torchserve.server import running
from serving.wire.reply import CHAMPION
from tests.serving.servers.torchserve.test_server import free_ports


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of a server with two challengers."""
    Routing.of(["a", "b"]).write(tmp_path / "state" / ROUTING)
    return tmp_path / "state"


def routing_in(state: Path) -> Routing:
    return Routing.read(state / ROUTING)


def test_a_share_is_changed_and_the_champion_gets_the_rest(state: Path) -> None:
    done = run("route", state, "--share", "a=0.1", "--share", "b=0.25")
    assert done.exit_code == 0, done.output
    assert routing_in(state).shares == {"a": 0.1, "b": 0.25, CHAMPION: 0.65}
    assert "65.00%" in done.output
    run("route", state, "--share", "a=0.2")
    assert routing_in(state).shares == {"a": 0.2, "b": 0.25, CHAMPION: 0.55}


def test_what_is_not_given_stays(state: Path) -> None:
    run("route", state, "--salt", "s1", "--nobody", "a", "--shadow", "b", "--share", "a=0.5")
    run("route", state, "--kill")
    assert routing_in(state).killed
    done = run("route", state)
    assert "killed" in done.output
    run("route", state, "--resume")
    expected = Routing(shares={"a": 0.5, "b": 0.0, CHAMPION: 0.5}, salt="s1", nobody="a", shadow=("b",))
    assert routing_in(state) == expected
    run("route", state, "--salt", "auto", "--shadow", "none")
    assert (routing_in(state).salt, routing_in(state).shadow) == (None, ())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--share", "c=0.1"), "c is not served here; there are a, b, champion"),
        (("--nobody", "c"), "c is not served here"),
        (("--shadow", "c"), "c is not served here"),
        (("--share", "a=1.5"), "add up to 1.5"),
        (("--share", "a=-0.5"), "from 0 to 1"),
        (("--share", "a=x"), "write NAME=0.1"),
        (("--share", "champion=0.5"), "what the challengers leave"),
        (("--salt", "a b"), "salt"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_changes(
    state: Path, arguments: tuple[str, ...], words: str
) -> None:
    before = (state / ROUTING).read_bytes()
    done = run("route", state, *arguments)
    assert isinstance(done.exception, ValueError)
    assert words in str(done.exception)
    assert (state / ROUTING).read_bytes() == before


def test_a_kill_works_although_the_file_is_broken(state: Path) -> None:
    (state / ROUTING).write_text("{")
    done = run("route", state)
    assert "cannot be used" in str(done.exception)
    done = run("route", state, "--kill")
    assert done.exit_code == 0, done.output
    assert routing_in(state) == Routing(shares={CHAMPION: 1.0}, killed=True)


def test_a_place_that_routes_nothing_says_where_challengers_are_given(tmp_path: Path) -> None:
    done = run("route", tmp_path, "--share", "a=0.1")
    assert "--challenger NAME=PACKAGE" in str(done.exception)


def test_an_archive_remembers_its_challengers_and_the_store_is_routed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "check_archive", lambda *_, **__: None)
    store = tmp_path / "store"
    done = run("archive", package, store, "--challenger", f"b={package}")
    assert done.exit_code == 0, done.output
    assert find_archive(store).challengers() == {"b": str(package.resolve())}
    assert run("route", store, "--share", "b=0.5").exit_code == 0
    run("archive", package, store, "--challenger", f"b={package}")
    assert routing_in(store / "server").shares["b"] == 0.5, "a routing that is there stays"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("b",), "write NAME=PACKAGE"),
        (("=x",), "write NAME=PACKAGE"),
        (("b={package}", "b={package}"), "given twice"),
        (("champion={package}",), "cannot name a challenger"),
        (("b=nowhere",), "nowhere"),
    ],
)
def test_a_challenger_that_cannot_be_one_is_refused(
    package: Path, tmp_path: Path, texts: tuple[str, ...], words: str
) -> None:
    options = [part for text in texts for part in ("--challenger", text.format(package=package))]
    done = run("archive", package, tmp_path / "store", *options)
    assert isinstance(done.exception, ValueError)
    assert words in str(done.exception)
    assert not (tmp_path / "store").exists()


def test_a_mar_takes_no_challengers(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without --embed"):
        archive_package(package, tmp_path, name="x", embed=True, challengers={"b": package})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java")
def test_a_running_torchserve_routes_is_rerouted_and_logs_what_it_served(
    package: Path, tmp_path: Path
) -> None:
    store, log, state = tmp_path / "store", tmp_path / "log", tmp_path / "state"
    assert run("archive", package, store, "--challenger", f"b={package}").exit_code == 0
    arguments = ("--feature-log", log, "--log-share", 1, "--state-dir", state)
    try:
        done = run("serve", store, "--port", free_ports(), *arguments)
        assert done.exit_code == 0, done.output
        server = running(state)
        assert server is not None
        example = example_request(package)
        with server.client(timeout_s=30) as client:
            assert {_variant(client, example, user) for user in range(20)} == {CHAMPION}
            assert run("route", state, "--share", "b=0.5", "--salt", "s1", "--shadow", "b").exit_code == 0
            shares = {"b": 0.5, CHAMPION: 0.5}
            deadline = time.monotonic() + 60
            expected = [assign(str(user), "s1", shares) for user in range(20)]
            while [_variant(client, example, user) for user in range(20)] != expected:
                assert time.monotonic() < deadline
        time.sleep(2)  # metrics are exported once a second
        page = urllib.request.urlopen(server.metrics_url, timeout=30).read().decode()
        assert 'dashclip_variant_requests_total{ModelName="dashclip",variant="b"' in page
        assert "dashclip_shadow_candidates_total" in page
        deadline = time.monotonic() + 90
        while not [*logged_files(log)]:
            assert time.monotonic() < deadline
            time.sleep(1)
    finally:
        assert run("stop", state).output == "stopped\n"
    table = pa.concat_tables(file.table() for file in logged_files(log))
    assert {CHAMPION, "b"} >= set(table["variant"].to_pylist()) >= {CHAMPION}
    assert (state / "feature_log.key").is_file()


def _variant(client: ScoreClient, request: ScoreRequest, user: int) -> str | None:
    from dataclasses import replace

    return client.score(replace(request, user_id=user)).variant

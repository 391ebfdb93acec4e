"""archive, serve, stop, drift and fuzz as a user meets them; once a real TorchServe with a real predictor."""

import json
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from experiments.cli import app
from experiments.commands.serving.serve import _curl
from features.online.request import MAX_CANDIDATES
from serving.drift.live_counts import LiveCounts
from serving.package.manifest import PackageManifest
from serving.package.parity import read_requests
from serving.package.sealed_folder import write_manifest
from serving.scoring.predictor import Predictor
from serving.servers.endpoint import Body, Endpoint
from serving.servers.torchserve import archive as archive_module
from serving.servers.torchserve.archive import archive_package, example_request, torchserve_version
from serving.servers.torchserve.server import RunningServer
from serving.wire.reply import ScoreReply
from tests.serving.drift.made import Clock
from tests.serving.servers.torchserve.test_server import free_ports


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_example_is_short_and_known(small_run: Path) -> None:
    request = example_request(small_run / "package")
    assert 1 <= len(request.candidates) <= 5
    assert Predictor.load(small_run / "package").score(request).unknown["products"] == 0


@pytest.mark.parametrize(
    "command",
    [
        ("refresh", "{}", "--data", "{}"),
        ("refresh", "{}", "--rollback"),
        ("archive", "{}", "{}/store"),
        ("schema", "{}"),
        ("drift", "{}", "{}"),
    ],
)
def test_a_folder_that_is_no_package_is_called_that(tmp_path: Path, command: tuple[str, ...]) -> None:
    failed = run(*(part.format(tmp_path / "nowhere") for part in command))
    assert failed.exit_code != 0
    assert "is not a package" in str(failed.exception), command


@pytest.mark.parametrize(
    ("model_version", "safe"), [("a-seed1-0f", "a-seed1-0f"), ("a b/ç:1", "a-b---1"), ("1.0_x", "1.0_x")]
)
def test_a_version_can_stand_in_a_url(model_version: str, safe: str) -> None:
    assert torchserve_version(model_version) == safe


def test_a_mar_names_no_place_of_the_machine_that_built_it(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "check_archive", lambda *_, **__: None)
    assert PackageManifest.read(small_run / "package").sources
    built = archive_package(small_run / "package", tmp_path / "store", name="dashclip", embed=True)
    with zipfile.ZipFile(built.path) as packed:
        packed.extractall(tmp_path / "unpacked")
    places = [str(place).encode() for place in (small_run, tmp_path, Path.home(), Path.cwd())]
    files = [path for path in (tmp_path / "unpacked").rglob("*") if path.is_file()]
    assert [path.name for path in files if any(place in path.read_bytes() for place in places)] == []
    assert Predictor.load(tmp_path / "unpacked" / "package", verify=True).manifest.sources == {}


@pytest.mark.parametrize("as_folder", [True, False])
def test_the_printed_curl_hands_logged_text_over_and_runs_none_of_it(tmp_path: Path, as_folder: bool) -> None:
    folder = tmp_path / "it's $(touch a) `touch b`"
    folder.mkdir()
    body = b'{"query": "it\'s $(touch c) `touch d` \\u0022; touch e"}'
    key_file = folder / "key_file.json"
    key_file.with_name("inference_key.json").write_text('{"inference": {"key": "the key"}}')
    store = folder / "dashclip"
    if as_folder:
        store.mkdir()
        (store / "example.json").write_bytes(body)
    else:
        store = folder / "dashclip.mar"
        with zipfile.ZipFile(store, "w") as packed:
            packed.writestr("example.json", body)
    server = RunningServer(1, "http://x/y", "", "", key_file, folder, folder)
    printed = _curl(archive_module.Archive(store, "dashclip", "1"), server)
    script = 'curl() { for one in "$@"; do printf \'%s\\0\' "$one"; done; }\n' + printed
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    sent = f"@{store / 'example.json'}".encode() if as_folder else body
    assert done.stdout.split(b"\0")[-4:-1] == [b"authorization: Bearer the key", b"--data-binary", sent]
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="TorchServe needs java")
def test_a_package_is_archived_served_asked_with_the_printed_curl_and_stopped(
    package: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    assert run("stop", store).output == f"no server runs for {store}\n"
    done = run("archive", package, store)
    assert done.exit_code == 0, done.output
    assert (store / "server" / "config.properties").is_file()
    try:
        done = run("serve", store, "--port", free_ports())
        assert done.exit_code == 0, done.output
        curl = done.output.split("try it with:\n")[1]
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, check=True).stdout
        assert len(json.loads(answer)["scores"]) == len(example_request(package).candidates)
        done = run("fuzz", store, "--requests", package, "--bodies", 300)
        assert done.exit_code == 0, done.output
        done = run("loadtest", store, "--requests", package, "--rate", 20, "--seconds", 1)
        assert done.exit_code == 0, done.output
    finally:
        assert run("stop", store).output == "stopped\n"


def test_an_archive_may_not_replace_the_package(package: Path) -> None:
    done = run("archive", package, package.parent, "--name", package.name)
    assert isinstance(done.exception, ValueError)
    assert "would replace the input" in str(done.exception)
    assert PackageManifest.read(package)


def test_a_damaged_package_is_not_archived_and_its_file_is_named(package: Path, tmp_path: Path) -> None:
    table = next((package / "model" / "tables").glob("*.npy"))
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)
    with pytest.raises(ValueError, match=table.name):
        archive_package(package, tmp_path / "store", name="dashclip", embed=False)
    assert list((tmp_path / "store").iterdir()) == []


def test_the_real_predictor_answers_every_client_error_with_400_or_413(small_run: Path) -> None:
    endpoint = Endpoint(Predictor.load(small_run / "package"))
    good = json.loads((small_run / "package" / "parity" / "requests.jsonl").read_bytes().splitlines()[0])
    ids = good["candidates"]
    bad = [
        {"candidates": []},
        {"candidates": [*ids[:-1], "x"]},
        {"candidates": [*ids[:-1], 1.5]},
        {"candidates": [*ids[:-1], None]},
        {"candidates": ids * (MAX_CANDIDATES // len(ids) + 1)},
        {"user_id": [1]},
        {"query": 7},
        {"timestamp_us": "now"},
        {"context": {"no_such_column": 1}},
        {"candidate_columns": {"no_such_column": [1] * len(ids)}},
        {"candidate_columns": {"price": [1.0] * (len(ids) + 1)}},
        {"candidate_columns": {"price": ["cheap"] * len(ids)}},
        {"history": "milk"},
        {"no_such_field": 1},
    ]
    answers = endpoint.answer([Body(json.dumps({**good, **fields}).encode()) for fields in bad])
    for fields, answer in zip(bad, answers, strict=True):
        assert answer.status in (400, 413), fields
        said = json.loads(answer.content)["error"]
        assert said["field"], fields
        assert said["advice"], fields
    (answer,) = endpoint.answer([Body(json.dumps(good).encode())])
    assert answer.status == 200


def test_drift_shows_the_windows_names_the_columns_that_moved_and_is_exit_code_1(
    package: Path, tmp_path: Path
) -> None:
    manifest = PackageManifest.read(package)
    assert manifest.training_record is not None
    assert manifest.training_record.groups < 16  # the log has few users
    of_many = manifest.training_record.model_copy(update={"groups": 32})
    manifest = manifest.model_copy(update={"training_record": of_many})
    manifest.write(package)
    requests = read_requests(package)
    predictor = Predictor.load(package)
    for name, shift in (("as trained", 0.0), ("moved", 50.0)):
        clock = Clock(time.time() - 3 * 86_400)
        live = LiveCounts.of_package(manifest)
        assert live is not None
        live._clock, live._pause_s = clock, 0
        replies = [reply for reply in predictor.score_many(requests) if isinstance(reply, ScoreReply)]
        for reply in replies:
            assert reply.rows is not None
            reply.rows.__dict__["dense_NF"] = reply.rows.dense_NF + np.float32(shift)
        for at in range(600):
            clock.now_s += 0.001
            live.count(replies[at % len(replies)], at)
        live.write(tmp_path / name)
    (tmp_path / "moved" / "worker-3.json").write_text("{}")
    done = run("drift", package, tmp_path / "moved", "--out", tmp_path / "drift.json")
    assert done.exit_code == 1, done.output
    assert "1 files of an earlier version" in done.output
    written = json.loads((tmp_path / "drift.json").read_text())
    day = written["windows"][0]
    assert (day["requests"], day["is_over"]) == (600, True)
    prices = [column for column in day["columns"] if column["name"] == "price"]
    assert [column["verdict"] for column in prices] == ["moved"]
    assert prices[0]["live"] > prices[0]["trained"]
    assert {column["by"] for column in day["columns"]} == {"request", "candidate"}
    with pytest.raises(ValueError, match="no counts of 2020-01-01"):
        raise run("drift", package, tmp_path / "moved", "--window", "2020-01-01").exception  # type: ignore[misc]
    (tmp_path / "none").mkdir()
    done = run("drift", package, tmp_path / "none")
    assert done.exit_code == 0, done.output
    assert "no request" in done.output


def test_a_package_whose_record_counted_impressions_is_served_and_its_drift_refused(package: Path) -> None:
    manifest = PackageManifest.read(package)
    earlier = {"rows": 3, "scores": {"edges": [], "shares": [1.0]}, "features": {}}
    write_manifest(package, {**manifest.model_dump(mode="json"), "training_record": earlier})
    assert LiveCounts.of_package(Predictor.load(package).manifest) is None
    done = run("drift", package, package.parent)
    assert isinstance(done.exception, ValueError)
    assert "make it again with `dashclip package`" in str(done.exception)


def test_hostile_bodies_in_process_end_in_scores_or_refusals(small_run: Path) -> None:
    package = small_run / "package"
    done = run("fuzz", package, "--requests", package, "--bodies", 1_500, "--seed", 5)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "nowhere"), "dashclip archive"),
        (("serve", "nowhere", "--port", "80"), "port 80"),
        (("loadtest", "nowhere", "--requests", "x.jsonl"), "no server runs"),
        (("loadtest", "http://x", "--requests", "x.jsonl", "--format", "xml"), "json or arrow"),
    ],
)
def test_what_cannot_work_says_what_to_do(
    arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert isinstance(done.exception, ValueError)
    assert words in str(done.exception)

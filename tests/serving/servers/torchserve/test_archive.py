"""An archive appears in the store only after it answered a request in a fresh process."""

import dataclasses
import json
import logging
import re
import socket
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from serving.servers.json_lines import WORKER_MARK, WorkerLines
from serving.servers.torchserve.archive import (
    HANDLER_NAME,
    SETTINGS_NAME,
    ArchiveError,
    build_archive,
    find_archive,
)
from serving.servers.torchserve.files import (
    NOWHERE,
    ServerSettings,
    config_text,
    logging_text,
    metrics_text,
)

STAND_IN = Path(__file__).with_name("stand_in_handler.py")
EXAMPLE = b'{"user_id": 1, "query": "q", "candidates": [101, 2]}'


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_folder_points_to_the_package_and_is_found(package: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    built = build_archive(package, store, version="7", example=EXAMPLE, handler=STAND_IN)
    assert built == find_archive(store) == find_archive(store, "dashclip")
    assert (built.name, built.version, built.example()) == ("dashclip", "7", EXAMPLE)
    settings = yaml.safe_load((built.path / SETTINGS_NAME).read_text())
    assert settings["dashclip"]["package"] == str(package)
    assert not (built.path / "package").exists()
    assert sorted(path.name for path in store.iterdir()) == ["dashclip"]


@pytest.mark.slow
def test_an_embedded_archive_is_one_file_with_the_package_inside(package: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "dashclip" / "MAR-INF").mkdir(parents=True)
    (store / "dashclip" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelVersion": "6"}}')
    built = build_archive(package, store, version="7", example=EXAMPLE, handler=STAND_IN, embed=True)
    assert built == find_archive(store)
    assert built.example() == EXAMPLE
    with zipfile.ZipFile(built.path) as archive:
        names = set(archive.namelist())
        assert {"MAR-INF/MANIFEST.json", HANDLER_NAME, "package/manifest.json"} <= names
        assert yaml.safe_load(archive.read(SETTINGS_NAME))["dashclip"]["package"] == "package"
    assert sorted(path.name for path in store.iterdir()) == ["dashclip.mar"]


def test_a_handler_that_cannot_be_imported_is_refused_in_its_own_words(package: Path, tmp_path: Path) -> None:
    handler = tmp_path / "broken.py"
    handler.write_text("import no_such_library_at_all\n")
    store = tmp_path / "store"
    with pytest.raises(ArchiveError, match="No module named 'no_such_library_at_all'"):
        build_archive(package, store, version="7", example=EXAMPLE, handler=handler)
    assert list(store.iterdir()) == []


def test_an_archive_that_refuses_its_example_does_not_replace_the_old_one(
    package: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    (store / "dashclip" / "MAR-INF").mkdir(parents=True)
    (store / "dashclip" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelVersion": "7"}}')
    with pytest.raises(ArchiveError, match="answered with status 400"):
        build_archive(package, store, version="8", example=b"{}", handler=STAND_IN)
    assert find_archive(store).version == "7"


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
def test_a_name_that_cannot_be_part_of_a_url_is_refused(package: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArchiveError, match="letters, digits"):
        build_archive(package, tmp_path / "store", version="7", example=EXAMPLE, name=name)


def test_a_store_with_none_or_several_archives_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="dashclip archive"):
        find_archive(tmp_path)
    with pytest.raises(ArchiveError, match="nowhere is not a folder"):
        find_archive(tmp_path / "nowhere")
    for name in ("a", "b"):
        (tmp_path / name / "MAR-INF").mkdir(parents=True)
        (tmp_path / name / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelVersion": 3}}')
    with pytest.raises(ArchiveError, match="--name"):
        find_archive(tmp_path)
    assert find_archive(tmp_path, "b").version == "3"


def test_the_configuration_is_safe_and_avoids_the_traps(tmp_path: Path) -> None:
    (tmp_path / "dashclip" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "dashclip" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelVersion": "1"}}')
    archive = find_archive(tmp_path)
    text = config_text(tmp_path / "server", archive, ServerSettings(workers=2, batch_size=8))
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert properties["disable_token_authorization"] == "false"
    assert properties["enable_model_api"] == "true"  # by tokens, at loopback
    assert all(
        properties[f"{use}_address"].startswith("http://127.0.0.1:") for use in ("inference", "management")
    )
    assert properties["grpc_inference_address"] == "127.0.0.1"
    assert properties["allowed_urls"].startswith("file://")
    assert properties["decode_input_request"] == "false"
    model = json.loads(properties["models"])["dashclip"]["1"]
    assert (model["minWorkers"], model["batchSize"], model["maxBatchDelay"]) == (2, 8, 1)


@pytest.mark.parametrize("token", [True, False])
def test_management_stays_on_loopback_whatever_predictions_are_bound_to(tmp_path: Path, token: bool) -> None:
    (tmp_path / "dashclip" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "dashclip" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelVersion": "1"}}')
    settings = ServerSettings(address="0.0.0.0", token_authorization=token, token_minutes=90)
    text = config_text(tmp_path / "server", find_archive(tmp_path), settings)
    properties = dict(line.split("=", 1) for line in text.splitlines())
    assert properties["inference_address"].startswith("http://0.0.0.0:")
    closed_or_loopback = "127.0.0.1" if token else NOWHERE
    assert properties["management_address"].startswith(f"http://{closed_or_loopback}:")
    assert properties["grpc_management_address"] == closed_or_loopback
    assert properties["token_expiration_min"] == "90"


def test_a_worker_sees_what_is_allowed_of_the_environment_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "dashclip" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "dashclip" / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelVersion": "1"}}')
    text = config_text(tmp_path / "server", find_archive(tmp_path), ServerSettings())
    hidden = re.compile(dict(line.split("=", 1) for line in text.splitlines())["blacklist_env_vars"])
    for name in (
        "PATH",
        "PYTHONPATH",
        "LC_ALL",
        "OMP_NUM_THREADS",
        "LD_PRELOAD",
        "TMPDIR",
        "TS_DECODE_INPUT_REQUEST",
    ):
        assert not hidden.fullmatch(name), name
    for name in ("DATABASE_URL", "AWS_ACCESS_KEY_ID", "PATH_TO_KEYS", "XPATH", "path", "", "PGPASSWORD"):
        assert hidden.fullmatch(name), name


@pytest.mark.parametrize(
    ("name", "value"), [("port", 80), ("port", 65_531), ("workers", 0), ("batch_delay_ms", 0)]
)
def test_settings_that_cannot_work_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(ServerSettings(), **{name: value})  # type: ignore[arg-type]


def test_each_port_has_an_address_of_its_own_and_management_stays_where_it_is() -> None:
    uses = ("inference", "management", "metrics", "grpc_inference", "grpc_management", "probes")

    def addresses(settings: ServerSettings) -> list[str]:
        return [settings.address_of(use) for use in uses]

    here, there = "127.0.0.1", "10.0.0.7"
    assert addresses(ServerSettings()) == [here] * 6
    assert addresses(ServerSettings(address=there)) == [there, here, there, there, here, there]
    own = ServerSettings(metrics_address="10.0.0.1", grpc_address="10.0.0.2", probe_address="10.0.0.3")
    assert addresses(own) == [here, here, "10.0.0.1", "10.0.0.2", here, "10.0.0.3"]
    moved = ServerSettings(management_address=there)
    assert addresses(moved) == [here, there, here, here, there, here]


def test_workers_for_large_requests_are_a_model_of_their_own(package: Path, tmp_path: Path) -> None:
    built = build_archive(package, tmp_path / "store", version="7", example=EXAMPLE, handler=STAND_IN)
    text = config_text(tmp_path, built, ServerSettings(workers=3, large_workers=2))
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert lines["load_models"] == "dashclip=dashclip,dashclip-large=dashclip"
    models = json.loads(lines["models"])
    assert {name: model["7"]["minWorkers"] for name, model in models.items()} == {
        "dashclip": 3,
        "dashclip-large": 2,
    }
    assert models["dashclip-large"]["7"]["jobQueueSize"] < models["dashclip"]["7"]["jobQueueSize"]


def test_without_tokens_management_is_where_nobody_gets_and_cannot_be_moved(tmp_path: Path) -> None:
    settings = ServerSettings(address="0.0.0.0", token_authorization=False)
    assert settings.address_of("management") == settings.address_of("grpc_management") == NOWHERE
    with pytest.raises(ValueError, match="management_address"):
        ServerSettings(token_authorization=False, management_address="0.0.0.0")
    with socket.socket() as nowhere, socket.socket() as caller:
        nowhere.bind((NOWHERE, 0))
        nowhere.listen()
        with pytest.raises(OSError, match="unreachable"):
            caller.connect(nowhere.getsockname())


def test_the_access_log_is_off_unless_it_is_asked_for() -> None:
    assert 'name="ACCESS_LOG" level="off"' in logging_text(access_log=False)
    assert 'name="ACCESS_LOG" level="info"' in logging_text(access_log=True)


def test_every_log_is_rotated_and_what_our_handler_says_lies_apart_from_what_workers_print() -> None:
    root = ElementTree.fromstring(logging_text(access_log=False))
    files = {one.get("name"): one for one in root.iter("RollingFile")}
    assert set(files) == {"server", "workers", "workers_output", "access"}
    for one in files.values():
        assert one.find("SizeBasedTriggeringPolicy") is not None
        assert one.find("DefaultRolloverStrategy").get("max") == "5"  # type: ignore[union-attr]
    rules = [files[name].find("RegexFilter") for name in ("workers", "workers_output")]
    assert [rule.get("onMatch") for rule in rules if rule is not None] == ["ACCEPT", "DENY"]
    record = logging.LogRecord("serving.servers.endpoint", 40, "", 0, "a\n%s", ("b",), None)
    record.request_ids = ["r1"]
    line = WorkerLines().format(record)
    assert re.fullmatch(rules[0].get("regex"), line)  # type: ignore[union-attr,arg-type]
    pattern = next(one.text for one in root.iter("Property") if one.get("name") == "worker_line")
    unwrapped = pattern.split(",%replace")[0].split("%d")[0] + 'now",' + line.removeprefix(WORKER_MARK)  # type: ignore[union-attr]
    assert json.loads(unwrapped) == {
        "time": "now",
        "level": "ERROR",
        "logger": "serving.servers.endpoint",
        "message": "a\nb",
        "request_ids": ["r1"],
    }
    record.name = "ts.metrics.caching_metric"
    assert WorkerLines().format(record) == "a\nb"


def test_every_measure_has_a_place_in_the_metrics_file() -> None:
    model_metrics = yaml.safe_load(metrics_text())["model_metrics"]
    names = {entry["name"] for entries in model_metrics.values() for entry in entries}
    assert {"dashclip_requests_total", "dashclip_snapshot_age_seconds", "PredictionTime"} <= names

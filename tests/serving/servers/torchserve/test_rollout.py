"""The steps of a deployment as TorchServe takes them, by a management API that remembers what it was told."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.package.manifest import PackageManifest
from serving.scoring.routed_scorer import ROUTING
from serving.servers.background import WORKERS_FOLDER
from serving.servers.torchserve import archive as archive_module
from serving.servers.torchserve import rollout as module
from serving.servers.torchserve.archive import Archive, archive_package
from serving.servers.torchserve.files import CONFIG_NAME, ServerSettings, write_server_files
from serving.servers.torchserve.management import Management, ManagementError, ModelVersion
from serving.servers.torchserve.rollout import TorchServeRollout
from serving.servers.torchserve.server import EXAMPLE, RunningServer

LIKE = ModelVersion("old", ((11, "READY"),), min_workers=1, batch_size=2, batch_delay_ms=3, waiting=0)


class StandIn:
    """What TorchServe would say. `workers` are those of a version that is registered."""

    def __init__(self, workers: Callable[[], tuple[tuple[int, str], ...]]) -> None:
        self.told: list[tuple[str, ...]] = []
        self.registered: dict[str, dict[str, ModelVersion]] = {}
        self.defaults: dict[str, str] = {}
        self.folders: dict[str, Path] = {}
        self._workers = workers

    def add(self, name: str, version: str) -> None:
        self.registered.setdefault(name, {})[version] = replace(LIKE, version=version)
        self.defaults.setdefault(name, version)

    def default(self, name: str) -> ModelVersion:
        return self.registered[name][self.defaults[name]]

    def versions(self, name: str) -> list[ModelVersion]:
        new = [one for one in self.registered[name] if one not in ("old", "left")]
        for one in new:
            self.registered[name][one] = replace(self.registered[name][one], workers=self._workers())
        return list(self.registered[name].values())

    def register(self, archive: Archive, name: str, like: ModelVersion) -> None:
        self.told.append(("register", name, archive.version))
        self.folders[name] = archive.path
        self.registered[name][archive.version] = replace(like, version=archive.version, workers=())

    def set_default(self, name: str, version: str) -> None:
        self.told.append(("set_default", name, version))
        self.defaults[name] = version

    def unregister(self, name: str, version: str) -> None:
        self.told.append(("unregister", name, version))
        del self.registered[name][version]


@pytest.fixture
def state(tmp_path: Path, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(archive_module, "check_archive", lambda *_, **__: None)
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    return tmp_path / "state"


def prepared(
    small_run: Path,
    other_package: Path,
    state: Path,
    workers: Callable[[], tuple[tuple[int, str], ...]],
    **options: Any,
) -> tuple[TorchServeRollout, StandIn, Archive]:
    """A rollout of the other package, before its first step."""
    large = options.pop("large_url", None)
    old = archive_package(small_run / "package", state.parent / "store", name="dashclip", embed=False)
    write_server_files(state, old, ServerSettings(large_workers=int(large is not None)))
    (state / EXAMPLE).write_bytes(old.example())
    new = archive_package(other_package, state.parent / "new", name="dashclip", embed=False)
    server = RunningServer(
        1, "http://127.0.0.1:9/predictions/dashclip", "", "", state / "key", state, state, large_url=large
    )
    management = StandIn(workers)
    management.add("dashclip", "old")
    if large is not None:
        management.add("dashclip-large", "old")
    rollout = TorchServeRollout(
        server, state, old, **{"timeout_s": 5, "drain_s": 0, "management": management, **options}
    )
    return rollout, management, new


def says(state: Path, pid: int, **facts: Any) -> None:
    (state / WORKERS_FOLDER).mkdir(parents=True, exist_ok=True)
    (state / WORKERS_FOLDER / f"worker-{pid}.json").write_text(json.dumps(facts))


def opened(state: Path, pid: int, package: Path) -> None:
    says(state, pid, model_version=PackageManifest.read(package).model_version, generation="000001")


def test_workers_are_ready_once_they_say_that_they_have_opened_the_package(
    small_run: Path, other_package: Path, state: Path
) -> None:
    looks = iter(range(100))

    def workers() -> tuple[tuple[int, str], ...]:
        look = next(looks)
        if look == 3:
            says(state, 21, model_version=None, generation=None)
        if look == 5:
            opened(state, 21, other_package)
        return ((21, "READY" if look > 1 else "LOADING"),)

    rollout, management, new = prepared(small_run, other_package, state, workers)
    rollout.start(new)
    assert management.told == [("register", "dashclip", new.version)]
    rollout.wait_until_ready()
    assert next(looks) == 6


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"unavailable": "the signature is not that of key.pem"}, "cannot open the package: the signature"),
        ({"refused": "its scores differ"}, "refuses the current generation: its scores differ"),
        ({"model_version": "another", "generation": "000001"}, "0 of 1 new workers have opened"),
        ({}, "0 of 1 new workers have opened"),
    ],
)
def test_workers_that_cannot_open_it_say_why(
    facts: dict[str, Any], sentence: str, small_run: Path, other_package: Path, state: Path
) -> None:
    rollout, _, new = prepared(small_run, other_package, state, lambda: ((21, "READY"),), timeout_s=0.05)
    says(state, 21, **facts)
    rollout.start(new)
    with pytest.raises(ValueError, match=sentence):
        rollout.wait_until_ready()


def test_a_worker_that_ends_while_it_opens_the_package_is_a_failure_at_once(
    small_run: Path, other_package: Path, state: Path
) -> None:
    pids = iter((21, 21, 22, 22))

    def workers() -> tuple[tuple[int, str], ...]:
        return ((next(pids), "LOADING"),)

    rollout, _, new = prepared(small_run, other_package, state, workers, timeout_s=900)
    rollout.start(new)
    with pytest.raises(ValueError, match="worker 21 ended; the workers' log ends"):
        rollout.wait_until_ready()


def test_what_a_killed_deployment_left_is_ended_and_the_same_model_gets_a_name_of_its_own(
    small_run: Path, other_package: Path, state: Path
) -> None:
    rollout, management, new = prepared(small_run, other_package, state, tuple)
    management.add("dashclip", "left")
    assert rollout.version_for("left", 7) == "left-7"
    assert rollout.version_for("fresh", 7) == "fresh"
    rollout.start(new)
    assert management.told[0] == ("unregister", "dashclip", "left")
    rollout.withdraw()
    assert management.told[-1] == ("unregister", "dashclip", new.version)
    rollout.withdraw()  # there is nothing left to end


def test_large_requests_have_workers_of_the_new_package_with_their_short_queue(
    small_run: Path, other_package: Path, state: Path
) -> None:
    url = "http://127.0.0.1:9/predictions/dashclip-large"
    rollout, management, new = prepared(small_run, other_package, state, tuple, large_url=url)
    rollout.start(new)
    assert [told[1] for told in management.told] == ["dashclip", "dashclip-large"]
    settings = [
        yaml.safe_load((management.folders[name] / "model-config.yaml").read_text())
        for name in ("dashclip", "dashclip-large")
    ]
    assert [one.get("jobQueueSize") for one in settings] == [None, 8]
    assert settings[0]["dashclip"] == settings[1]["dashclip"]
    rollout.adopt(new)
    lines = (state / CONFIG_NAME).read_text().splitlines()
    (models,) = [json.loads(line.removeprefix("models=")) for line in lines if line.startswith("models=")]
    assert {name: list(of) for name, of in models.items()} == {
        "dashclip": [new.version],
        "dashclip-large": [new.version],
    }
    assert models["dashclip-large"][new.version]["jobQueueSize"] == 8


def test_a_shift_after_which_nobody_answers_is_taken_back(
    small_run: Path, other_package: Path, state: Path
) -> None:
    rollout, management, new = prepared(small_run, other_package, state, tuple)
    (state / "key").write_text('{"inference": {"key": "k"}}')
    rollout.start(new)
    with pytest.raises(RuntimeError, match="refused"):
        rollout.shift()
    assert management.defaults == {"dashclip": new.version}
    rollout.shift_back()
    assert management.defaults == {"dashclip": "old"}
    assert not (state / ROUTING).exists()


def test_the_old_version_ends_once_nothing_waits_for_it(
    small_run: Path, other_package: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout, management, new = prepared(small_run, other_package, state, tuple)
    rollout.start(new)
    waiting = iter((3, 1, 0))
    old = management.registered["dashclip"]
    monkeypatch.setattr(
        management, "versions", lambda _: [replace(old["old"], waiting=next(waiting))], raising=True
    )
    rollout.retire_old()
    assert management.told[-1] == ("unregister", "dashclip", "old")
    assert next(waiting, None) is None
    monkeypatch.setattr(module, "_QUEUE_S", 0.0)
    monkeypatch.setattr(management, "versions", lambda _: [replace(LIKE, waiting=1)])
    with pytest.raises(ValueError, match="requests still wait for the old version"):
        rollout.retire_old()


def test_without_tokens_and_with_management_elsewhere_nothing_is_deployed(
    small_run: Path, other_package: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = RunningServer(1, "http://127.0.0.1:9/predictions/dashclip", "", "", None, state, state)
    with pytest.raises(ManagementError, match="runs without tokens"):
        TorchServeRollout(server, state, Archive(state, "dashclip", "1"), timeout_s=1)
    assert ServerSettings().deployable
    assert not ServerSettings(token_authorization=False).deployable
    assert not ServerSettings(management_address="10.0.0.1").deployable
    management = Management("http://127.0.0.1:9", state / "key")
    monkeypatch.setattr(management, "_once", lambda *_: (405, b'{"message": "not allowed"}'))
    with pytest.raises(ManagementError, match="--manage-address"):
        management.register(Archive(state, "dashclip", "1"), "dashclip", LIKE)
    with pytest.raises(ManagementError, match="405 to GET /models/dashclip: not allowed"):
        management.default("dashclip")

"""Every step of a deployment may fail: what served before then serves, and the step is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.package.manifest import PackageManifest
from serving.package.sealed_folder import PackageError
from serving.scoring.routed_scorer import ROUTING, Routing
from serving.servers import deploy as module
from serving.servers.deploy import OPEN, PARITY, READY, RECORD, SHIFT, START, deploy, roll_back
from serving.servers.deployments import HISTORY, DeployError, Deployments, deployment_folder
from serving.servers.torchserve import archive as archive_module
from serving.servers.torchserve.archive import Archive, archive_package, find_archive


class Recorder:
    """A server that does everything, but for the step that it fails at; keeps what it was asked."""

    def __init__(self, *, fails_at: str = "", error: Callable[[str], Exception] = ValueError) -> None:
        self.asked: list[str] = []
        self.archives: list[Archive] = []
        self._fails_at = fails_at
        self._error = error

    def _do(self, step: str) -> None:
        self.asked.append(step)
        if step == self._fails_at:
            raise self._error(f"{step} went wrong")

    def version_for(self, model_version: str, number: int) -> str:
        return f"{model_version}-{number}"

    def start(self, archive: Archive) -> None:
        self.archives.append(archive)
        self._do("start")

    def wait_until_ready(self) -> None:
        self._do("wait_until_ready")

    def check(self) -> int:
        self._do("check")
        return 12

    def shift(self) -> None:
        self._do("shift")

    def adopt(self, archive: Archive) -> None:
        self._do("adopt")

    def shift_back(self) -> None:
        self._do("shift_back")

    def withdraw(self) -> None:
        self._do("withdraw")

    def retire_old(self) -> None:
        self._do("retire_old")


STEPS = ["start", "wait_until_ready", "check", "shift", "adopt"]


@pytest.fixture
def store(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(archive_module, "check_archive", lambda *_, **__: None)
    archive_package(small_run / "package", tmp_path / "store", name="dashclip", embed=False)
    return tmp_path / "store"


def state_of(store: Path) -> dict[str, bytes]:
    """All files of a store but its lock."""
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != ".deploy.lock"]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in files}


def test_a_package_takes_the_place_of_another_and_the_store_names_it(
    store: Path, small_run: Path, other_package: Path
) -> None:
    server = Recorder()
    done = deploy(other_package, find_archive(store), server)
    assert server.asked == [*STEPS, "retire_old"]
    assert (done.compared, done.left_over) == (12, "")
    assert find_archive(store).package == str(other_package.resolve())
    versions = [PackageManifest.read(one).model_version for one in (small_run / "package", other_package)]
    known = Deployments.of(find_archive(store)).known
    assert [(one.number, one.how, one.model_version) for one in known] == [
        (1, "archive", versions[0]),
        (2, "deploy", versions[1]),
    ]
    assert known[0].since <= known[1].since


@pytest.mark.parametrize(
    ("fails_at", "step", "undone"),
    [
        ("start", START, ["withdraw"]),
        ("wait_until_ready", READY, ["withdraw"]),
        ("check", PARITY, ["withdraw"]),
        ("shift", SHIFT, ["shift_back", "withdraw"]),
        ("adopt", RECORD, ["shift_back", "withdraw"]),
    ],
)
@pytest.mark.parametrize("error", [ValueError, RuntimeError, OSError])
def test_a_step_that_fails_is_named_and_what_served_before_serves(
    fails_at: str,
    step: str,
    undone: list[str],
    error: type[Exception],
    store: Path,
    small_run: Path,
    other_package: Path,
) -> None:
    before = state_of(store)
    server = Recorder(fails_at=fails_at, error=error)
    with pytest.raises(
        DeployError, match=f"^{step}: {fails_at} went wrong; .*package is still served"
    ) as raised:
        deploy(other_package, find_archive(store), server)
    assert raised.value.step == step
    assert server.asked == [*STEPS[: STEPS.index(fails_at) + 1], *undone]
    assert state_of(store) == before
    assert find_archive(store).package == str((small_run / "package").resolve())


def test_a_damaged_package_never_reaches_the_server(store: Path, tmp_path: Path) -> None:
    server = Recorder()
    with pytest.raises(DeployError, match=f"^{OPEN}: .* is not a package"):
        deploy(tmp_path / "nothing", find_archive(store), server)
    assert server.asked == ["withdraw"]  # of nothing


def test_a_store_that_cannot_be_written_gives_the_requests_back(
    store: Path, other_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = state_of(store)
    monkeypatch.setattr(module, "_promote", full)
    server = Recorder()
    with pytest.raises(DeployError, match=f"^{RECORD}: .*No space left"):
        deploy(other_package, find_archive(store), server)
    assert server.asked[-2:] == ["shift_back", "withdraw"]
    assert state_of(store) == before


def test_who_is_interrupted_undoes_too(store: Path, other_package: Path) -> None:
    server = Recorder(fails_at="check", error=lambda _: KeyboardInterrupt())  # type: ignore[arg-type,return-value]
    with pytest.raises(KeyboardInterrupt):
        deploy(other_package, find_archive(store), server)
    assert server.asked[-1] == "withdraw"


def test_old_workers_that_do_not_end_are_told_and_no_failure(store: Path, other_package: Path) -> None:
    done = deploy(other_package, find_archive(store), Recorder(fails_at="retire_old"))
    assert done.left_over == "retire_old went wrong"
    assert find_archive(store).package == str(other_package.resolve())


def test_a_rollback_goes_back_by_the_same_steps_and_twice_two_steps(
    store: Path, small_run: Path, other_package: Path, tmp_path: Path
) -> None:
    first = str((small_run / "package").resolve())
    third = Path(shutil.copytree(small_run / "package", tmp_path / "third"))
    for package in (other_package, third):
        deploy(package, find_archive(store), Recorder())
    server = Recorder()
    assert roll_back(find_archive(store), server).now.package == str(other_package.resolve())
    assert server.asked == [*STEPS, "retire_old"]
    assert roll_back(find_archive(store), Recorder()).now.package == first
    with pytest.raises(ValueError, match="is the first package"):
        roll_back(find_archive(store), Recorder())
    known = Deployments.of(find_archive(store)).known
    assert [one.how for one in known] == ["archive", "deploy", "deploy", "rollback", "rollback"]
    deploy(third, find_archive(store), Recorder())
    assert roll_back(find_archive(store), Recorder()).now.package == first


def test_a_rollback_to_a_package_that_is_gone_says_so(
    store: Path, other_package: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(other_package, tmp_path / "copy"))
    deploy(copy, find_archive(store), None)
    deploy(other_package, find_archive(store), None)
    shutil.rmtree(copy)
    with pytest.raises(DeployError, match="copy, which served before, is no longer there"):
        roll_back(find_archive(store), None)


def test_without_a_server_the_next_one_serves_it(store: Path, other_package: Path) -> None:
    assert deploy(other_package, find_archive(store), None).compared is None
    assert find_archive(store).package == str(other_package.resolve())


def test_archives_of_earlier_deployments_go(store: Path, small_run: Path, other_package: Path) -> None:
    for package in (other_package, small_run / "package"):
        deploy(package, find_archive(store), Recorder())
    assert not deployment_folder(store, 2).exists()
    assert (deployment_folder(store, 3) / "dashclip" / "model-config.yaml").is_file()


def test_an_archive_made_by_hand_is_part_of_the_history(
    store: Path, small_run: Path, other_package: Path
) -> None:
    deploy(other_package, find_archive(store), None)
    archive_package(small_run / "package", store, name="dashclip", embed=False)
    assert roll_back(find_archive(store), None).now.package == str(other_package.resolve())


def test_challengers_stay_unless_others_or_none_are_given(
    store: Path, small_run: Path, other_package: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    deploy(other_package, find_archive(store), None, challengers={"b": small_run / "package"}, state=state)
    assert set(Routing.read(state / ROUTING).shares) == {"b", "champion"}
    Routing.read(state / ROUTING).with_shares({"b": 0.25}).write(state / ROUTING)
    deploy(small_run / "package", find_archive(store), None, state=state)
    assert set(find_archive(store).challengers()) == {"b"}
    assert Routing.read(state / ROUTING).shares["b"] == 0.25
    deploy(other_package, find_archive(store), None, challengers={}, state=state)
    assert find_archive(store).challengers() == {}
    assert dict(Routing.read(state / ROUTING).shares) == {"champion": 1.0}


def test_two_deployments_at_once_and_a_mar_are_refused(
    store: Path, other_package: Path, tmp_path: Path
) -> None:
    class Nested(Recorder):
        def start(self, archive: Archive) -> None:
            deploy(other_package, find_archive(store), None)

    with pytest.raises(DeployError, match="another process deploys"):
        deploy(other_package, find_archive(store), Nested())
    with pytest.raises(DeployError, match="without --embed"):
        deploy(other_package, Archive(tmp_path / "dashclip.mar", "dashclip", "1"), None)


def test_a_history_that_cannot_be_read_says_what_to_do(store: Path) -> None:
    (store / HISTORY).write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="delete it to begin anew"):
        Deployments.of(find_archive(store))


def test_the_error_of_a_step_is_kept(store: Path, other_package: Path) -> None:
    with pytest.raises(DeployError) as raised:
        deploy(other_package, find_archive(store), Recorder(fails_at="check", error=PackageError))
    assert isinstance(raised.value.__cause__, PackageError)

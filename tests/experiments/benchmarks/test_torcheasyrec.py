"""What stands in for the packages that TorchEasyRec lacks, its config, and the refusal of other folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmarks.measure import last_json, measure_module
from experiments.benchmarks.training.peers import protocol
from experiments.benchmarks.training.peers import torcheasyrec as checkouts
from experiments.benchmarks.training.peers.environments import PEERS, PeerEnvironmentError, ensure_environment
from experiments.benchmarks.training.peers.torcheasyrec import prepared_checkout, torcheasyrec_version
from experiments.benchmarks.training.peers.torcheasyrec_runner import Nothing, Stubs, config_text


def test_any_name_of_a_package_that_is_lacking_can_be_imported() -> None:
    stubs = Stubs()
    spec = stubs.find_spec("odps.apis.storage_api", None)
    assert spec is not None
    assert spec.submodule_search_locations == []  # a package, so that its modules are asked for, too
    assert stubs.find_spec("numpy", None) is None
    code = (
        "import sys; from experiments.benchmarks.training.peers.torcheasyrec_runner import Stubs\n"
        "sys.meta_path.append(Stubs())\n"
        "import pyfg; from odps.apis.storage_api import Reader; import common_io\n"
        "class Mine(common_io.table.TableReader): pass\n"
        "print(isinstance(Mine(), Reader), pyfg.FgArrowHandler.Options.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "Options"]


def test_nothing_has_no_special_names() -> None:
    with pytest.raises(AttributeError):
        Nothing("Empty", (), {}).__wrapped__  # noqa: B018


def test_its_model_has_the_widths_of_the_others() -> None:
    request = protocol.Request(Path("data"), "train", 4096, 8, 0, "bfloat16", threads=1)
    text = config_text(request, {"id_00": 12, "id_01": 1002}, ["number_00"], Path("work"))
    assert "cross { cross_num: 3 low_rank: 16 }" in text  # half of 1 + 2 x 16
    assert "deep { hidden_units: 512 hidden_units: 256 hidden_units: 128 }" in text
    assert "num_buckets: 1002 embedding_dim: 16" in text
    assert "batch_size: 4096" in text
    assert 'mixed_precision: "BF16"' in text
    float32 = protocol.Request(Path("data"), "train", 4096, 8, 0, "float32", threads=1)
    assert "mixed_precision" not in config_text(float32, {"id_00": 12}, [], Path("work"))


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerEnvironmentError, match=r"no checkout of TorchEasyRec; clone https://"):
        torcheasyrec_version(tmp_path)


def test_a_checkout_is_prepared_once_and_not_left_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "checkout" / "tzrec"
    (source / "protos").mkdir(parents=True)
    (source / "version.py").write_text('__version__ = "9.8.7"\n')
    (source / "protos" / "data.proto").write_text('syntax = "proto2";')
    ran: list[str] = []
    monkeypatch.setattr(checkouts, "_run", lambda _title, command, **_: ran.append(command[2]))
    folders = prepared_checkout(tmp_path / "checkout", tmp_path / "environments")
    assert ran == ["pip", "grpc_tools.protoc"]
    assert (folders[0] / "tzrec" / "protos" / "data.proto").is_file()
    assert prepared_checkout(tmp_path / "checkout", tmp_path / "environments") == folders
    assert len(ran) == 2

    def fail(*_args: object, **_named: object) -> None:
        raise PeerEnvironmentError("no network")

    monkeypatch.setattr(checkouts, "_run", fail)
    (source / "version.py").write_text('__version__ = "9.9.0"\n')
    with pytest.raises(PeerEnvironmentError, match="no network"):
        prepared_checkout(tmp_path / "checkout", tmp_path / "environments")
    assert not folders[0].exists()


def test_a_peer_that_is_installed_here_runs_by_our_interpreter(tmp_path: Path) -> None:
    dlrm = next(peer for peer in PEERS if peer.name == "torchrec-dlrm-dcn")
    assert ensure_environment(dlrm, tmp_path) == Path(sys.executable)
    assert list(tmp_path.iterdir()) == []


def test_a_measured_module_finds_what_lies_in_other_folders(tmp_path: Path) -> None:
    (tmp_path / "lying_elsewhere.py").write_text('print("{}")')
    assert last_json(measure_module("lying_elsewhere", imports=[tmp_path])) == {}

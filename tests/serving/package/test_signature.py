"""Who signed a package, and what a server with a key of somebody refuses."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.cli import app
from serving.package.sealed_folder import PackageError
from serving.package.signature import SignatureError, SigningKey, TrustedKey, is_signed
from serving.packaging.build_generation import SnapshotSource
from serving.packaging.refresh import refresh
from serving.scoring.predictor import Predictor, load_to_serve
from serving.servers.torchserve import archive
from tests.serving.small_packages import AS_OF_US, copy_generation, write_keys

pytest.importorskip("cryptography", reason="the extra `signing` is not installed")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "ours")


@pytest.fixture
def signed(package: Path, keys: tuple[Path, Path]) -> Path:
    done = CliRunner().invoke(app, ["sign", str(package), str(keys[0])])
    assert done.output == "signed the package and 1 of its generations\n"
    return package


def test_a_signed_package_is_served_with_the_key_and_without(signed: Path, keys: tuple[Path, Path]) -> None:
    assert load_to_serve(signed, keys[1]).facts()["signature"] == f"checked by {keys[1]}"
    assert Predictor.load(signed).facts()["signature"] == "not checked"


def test_an_unsigned_package_is_served_unless_a_key_is_given_and_that_is_said(
    package: Path, keys: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert load_to_serve(package).facts()["signature"] == "none"
    assert "its signature: none" in caplog.text
    with pytest.raises(SignatureError, match="is not signed"):
        load_to_serve(package, keys[1])


def exchange_program(package: Path) -> None:
    """As somebody would who may write all files, and seals the manifest again."""
    from serving.package.manifest import FIXED_PARTS, PackageManifest
    from serving.package.sealed_folder import record_files

    path = next((package / "model").rglob("*.json"))
    path.write_bytes(path.read_bytes() + b" ")
    manifest = PackageManifest.read(package)
    manifest.model_copy(update={"files": record_files(package, FIXED_PARTS)}).write(package)


def cut_signature(package: Path) -> None:
    path = package / "manifest.json.sig"
    path.write_bytes(path.read_bytes()[:20])


def blur_signature(package: Path) -> None:
    (package / "manifest.json.sig").write_bytes(b"\xff no base64")


def lose_signature(package: Path) -> None:
    (package / "manifest.json.sig").unlink()


def take_that_of_the_generation(package: Path) -> None:
    shutil.copy(package / "generations/000001/manifest.json.sig", package / "manifest.json.sig")


@pytest.mark.parametrize(
    "change",
    [exchange_program, cut_signature, blur_signature, lose_signature, take_that_of_the_generation],
)
def test_what_the_key_has_not_signed_is_refused(
    signed: Path, keys: tuple[Path, Path], change: Callable[[Path], None]
) -> None:
    change(signed)
    with pytest.raises(SignatureError, match=r"manifest\.json\.sig"):
        load_to_serve(signed, keys[1])
    Predictor.load(signed)  # whole all the same


def test_another_key_is_not_trusted(signed: Path, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="not the signature of this package"):
        load_to_serve(signed, write_keys(tmp_path, "theirs")[1])


def test_a_generation_that_nobody_signed_is_refused_and_the_signed_one_goes_on(
    signed: Path, keys: tuple[Path, Path]
) -> None:
    serving = load_to_serve(signed, keys[1])
    name = copy_generation(signed)
    (signed / "generations" / name / "manifest.json.sig").unlink()
    assert serving.reload_if_changed(wait=True)
    for predictor in (serving, load_to_serve(signed, keys[1])):
        assert predictor.facts()["generation"] == "000001"
        assert "is not signed" in predictor.facts()["refused_generation"]


def test_a_generation_of_another_model_is_none_of_this_one(signed: Path, keys: tuple[Path, Path]) -> None:
    key, trusted = SigningKey.read(keys[0]), TrustedKey.read(keys[1])
    folder = signed / "generations/000001"
    key.sign_generation(folder, "another-model")
    with pytest.raises(SignatureError, match="not the signature"):
        trusted.check_generation(folder, "this-model")
    trusted.check_generation(folder, "another-model")


def test_a_refresh_of_a_signed_package_signs_or_says_that_it_should(
    signed: Path, small_run: Path, keys: tuple[Path, Path]
) -> None:
    snapshot = SnapshotSource(small_run / "data", AS_OF_US)
    with pytest.raises(PackageError, match="--signing-key"):
        refresh(signed, snapshot=snapshot)
    refresh(signed, snapshot=snapshot, signing_key=SigningKey.read(keys[0]))
    assert is_signed(signed / "generations/000002")
    facts = load_to_serve(signed, keys[1]).facts()
    assert (facts["generation"], facts["refused_generation"]) == ("000002", None)


def test_a_mar_without_the_paths_of_its_maker_is_signed_still(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "check_archive", lambda *_, **__: None)
    built = archive.archive_package(signed, tmp_path / "store", name="dashclip", embed=True)
    with zipfile.ZipFile(built.path) as packed:
        packed.extractall(tmp_path / "unpacked")
    predictor = load_to_serve(tmp_path / "unpacked" / "package", keys[1])
    assert predictor.manifest.sources == {}


def test_what_is_no_key_is_refused(keys: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    other = tmp_path / "curve.pem"
    curve = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(curve.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    (tmp_path / "text").write_text("key")
    for path in (keys[1], other, tmp_path / "text", tmp_path / "none"):
        with pytest.raises(SignatureError, match="openssl genpkey"):
            SigningKey.read(path)
    for path in (keys[0], other, tmp_path / "text", tmp_path / "none"):
        with pytest.raises(SignatureError, match="openssl genpkey"):
            TrustedKey.read(path)


def test_a_worker_without_a_key_imports_no_cryptography() -> None:
    code = "import sys, serving.servers.torchserve.handler; print('cryptography' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

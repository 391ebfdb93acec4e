"""Detached Ed25519 signatures of a package's manifests: who made it, not only that it is whole.

A compiled program is native code, so whoever may exchange a package may run anything in its servers. A
signature lies beside the manifest that it signs, `manifest.json.sig`, one for the package and one for each
generation; a manifest lists the checksum of every other file. What is signed names the kind and the model, so
that a generation cannot be moved into another package. It does not stop an older signed generation from being
named live again. The paths that a package was made from are not signed: a .mar leaves them out.

Keys are PEM files: `openssl genpkey -algorithm ed25519 -out private.pem`, and `openssl pkey -in private.pem
-pubout -out public.pem`. Needs the package `cryptography`, for signing and for checking only.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from features.artifacts import MANIFEST, atomic_write_bytes
from serving.package.generations import generation_folder, generation_names
from serving.package.manifest import PackageManifest
from serving.package.sealed_folder import SEAL, SIGNATURE, PackageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class SignatureError(PackageError):
    """A signature that is missing or wrong, or a key that is none."""


@dataclass(frozen=True)
class SigningKey:
    """Who signs."""

    key: "Ed25519PrivateKey"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an unencrypted PEM file.

        Raises:
            SignatureError: there is none, or it is no private Ed25519 key.
        """
        asymmetric, serialization = _cryptography()
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise SignatureError(f"{path} is no private key ({error}); {_MAKE}") from None
        if not isinstance(key, asymmetric.Ed25519PrivateKey):
            raise SignatureError(f"{path} is no private Ed25519 key, but {type(key).__name__}; {_MAKE}")
        return cls(key)

    def sign_package(self, package: Path) -> list[Path]:
        """Sign the manifests of a package and of all its generations; returns the files written.

        Raises:
            PackageError: it is no package.
        """
        version = PackageManifest.read(package).model_version
        signed = [self._sign(package, "package", version)]
        names = generation_names(package)
        return signed + [self.sign_generation(generation_folder(package, name), version) for name in names]

    def sign_generation(self, folder: Path, model_version: str) -> Path:
        """Sign one generation of the package of this version."""
        return self._sign(folder, "generation", model_version)

    def _sign(self, folder: Path, kind: str, model_version: str) -> Path:
        signature = self.key.sign(_message(folder, kind, model_version))
        atomic_write_bytes(folder / SIGNATURE, base64.b64encode(signature) + b"\n")
        return folder / SIGNATURE


@dataclass(frozen=True)
class TrustedKey:
    """Whose packages are served."""

    key: "Ed25519PublicKey"
    path: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a PEM file.

        Raises:
            SignatureError: there is none, or it is no public Ed25519 key.
        """
        asymmetric, serialization = _cryptography()
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise SignatureError(f"{path} is no public key ({error}); {_MAKE}") from None
        if not isinstance(key, asymmetric.Ed25519PublicKey):
            raise SignatureError(f"{path} is no public Ed25519 key, but {type(key).__name__}; {_MAKE}")
        return cls(key, path)

    def check_package(self, package: Path) -> None:
        """
        Raises:
            SignatureError: the manifest has no signature of this key.
        """
        self._check(package, "package", PackageManifest.read(package).model_version)

    def check_generation(self, folder: Path, model_version: str) -> None:
        """
        Raises:
            SignatureError: the manifest has no signature of this key for a generation of this version.
        """
        self._check(folder, "generation", model_version)

    def _check(self, folder: Path, kind: str, model_version: str) -> None:
        path = folder / SIGNATURE
        advice = f"sign it with `dashclip sign`, or serve without the key {self.path}"
        try:
            signature = base64.b64decode(path.read_bytes().strip(), validate=True)
        except FileNotFoundError:
            raise SignatureError(f"{folder} is not signed: it has no {SIGNATURE}; {advice}") from None
        except (OSError, binascii.Error) as error:
            raise SignatureError(f"{path} holds no signature ({error}); {advice}") from None
        from cryptography.exceptions import InvalidSignature

        try:
            self.key.verify(signature, _message(folder, kind, model_version))
        except InvalidSignature:
            raise SignatureError(
                f"{path} is not the signature of this {kind} of {model_version} by the key {self.path}; "
                f"{advice}"
            ) from None


def is_signed(folder: Path) -> bool:
    """Whether a package or a generation has a signature, of whomever."""
    return (folder / SIGNATURE).is_file()


# Paths, and a checksum that has them in it.
_NOT_SIGNED = ("sources", SEAL)
_MAKE = "make one with `openssl genpkey -algorithm ed25519`"


def _message(folder: Path, kind: str, model_version: str) -> bytes:
    content = json.loads((folder / MANIFEST).read_bytes())
    signed = {name: value for name, value in content.items() if name not in _NOT_SIGNED}
    return f"dashclip {kind} of {model_version}\n{json.dumps(signed, sort_keys=True)}".encode()


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise SignatureError(f"{error}; signatures need it: pip install cryptography") from None
    return ed25519, serialization

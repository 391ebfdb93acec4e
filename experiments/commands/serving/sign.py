"""`dashclip sign`: say who made a package."""

from pathlib import Path
from typing import Annotated

import typer


def sign(
    package: Annotated[Path, typer.Argument(help="Folder that `dashclip package` wrote.")],
    key: Annotated[Path, typer.Argument(help="Private Ed25519 key, a PEM file without a password.")],
) -> None:
    """Sign a package and all of its generations; `dashclip serve --trusted-key` serves no others.

    A key is made by `openssl genpkey -algorithm ed25519 -out private.pem`, its public half by `openssl pkey
    -in private.pem -pubout -out public.pem`. Keep the private one where packages are built.

    Example: `dashclip sign runs/package private.pem`
    """
    from serving.package.signature import SigningKey

    signed = SigningKey.read(key).sign_package(package)
    typer.echo(f"signed the package and {len(signed) - 1} of its generations")

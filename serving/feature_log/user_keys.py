"""Users of a feature log under other names: a keyed hash, so that only who has the key can tell who they are.

The key lies in a file of its own, outside the log. Without it the names cannot be undone by hashing all ids.
"""

import hashlib
import os
import secrets
from pathlib import Path

_KEY_BYTES = 32
_NAME_BYTES = 16


def make_key(path: Path) -> None:
    """Write a new key, readable by its owner only; one that is there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(_KEY_BYTES) + "\n")


def read_key(path: Path) -> bytes:
    """A key from its file.

    Raises:
        ValueError: the file is not there, or holds something else.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ValueError(f"the key of the feature log, {path}, cannot be read: {error.strerror}") from None
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{path} is not a key of a feature log: it has to hold {2 * _KEY_BYTES} hex digits")
    return key


def hidden_user(user_id: int | str, key: bytes) -> str:
    """The name of a user in the log; of the integer 7 and the text "7" the same, as in routing."""
    return hashlib.blake2b(str(user_id).encode(), digest_size=_NAME_BYTES, key=key).hexdigest()

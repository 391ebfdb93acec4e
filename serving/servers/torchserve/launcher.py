"""`python -m ….torchserve.launcher --start …`: TorchServe's launcher, which becomes TorchServe.

Its own launcher starts Java as a child and leaves: nobody would then learn how that ended, and its process id
would come by a file. Here the process is replaced by Java, so whoever started it is its parent.
"""

import os
import subprocess
from collections.abc import Sequence
from typing import NoReturn

from ts.model_server import start


def become(command: Sequence[str]) -> NoReturn:
    """Replace this process by a command."""
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    subprocess.Popen = become  # type: ignore[assignment,misc]
    start()

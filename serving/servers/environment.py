"""What a server's processes may see of the environment: an allow list.

Where things are and how many threads to use. Nothing else: database addresses and cloud keys have names that
no list of bad words knows.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

#: A regular expression, because TorchServe's configuration wants one. TS_ are its frontend's own.
ALLOWED = (
    "PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|TEMP|PYTHON[A-Z]+|VIRTUAL_ENV|CONDA_PREFIX|"
    "JAVA_HOME|LD_LIBRARY_PATH|LD_PRELOAD|MALLOC_[A-Z_]+|(OMP|MKL|KMP|OPENBLAS)_[A-Z_]+|TORCHINDUCTOR_CACHE_DIR|"
    "CUDA_VISIBLE_DEVICES|LOG_LOCATION|METRICS_LOCATION|LOGLEVEL|TS_[A-Z_]+|PROMETHEUS_MULTIPROC_DIR"
)


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that processes of a server may see."""
    return {name: value for name, value in environment.items() if re.fullmatch(ALLOWED, name)}


@contextmanager
def only_allowed() -> Iterator[None]:
    """This process's environment without the rest, so that what it starts inherits none of it."""
    before = dict(os.environ)
    try:
        for name in before.keys() - allowed(before).keys():
            os.environ.pop(name)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def importable(environment: dict[str, str]) -> dict[str, str]:
    """The same, so that this code is found from any working directory, installed or not."""
    places = (str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", ""))
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, places))}

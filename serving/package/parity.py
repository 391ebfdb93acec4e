"""The parity record: requests of the log with everything they saw, and the scores they must get.

PACKAGE/parity/requests.jsonl holds the requests; each generation holds their scores, since its vectors decide
them: those
of the offline ranker for the first generation, those of the uncompiled model in float32 for the later ones.

Shapes: C candidates of all requests together.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.artifacts import atomic_write_bytes
from features.online.request import RequestError, ScoreRequest
from serving.package.generations import PARITY_SCORES
from serving.package.manifest import PARITY
from serving.package.sealed_folder import PackageError
from serving.wire.json_codec import decode_request, encode_request
from serving.wire.reply import ScoreReply

REQUESTS = "requests.jsonl"
#: Largest difference of a probability, by type of the product vectors and by the program's arithmetic:
#: rounding, not another model.
TOLERANCE = {"float32": 1e-4, "float16": 1e-3, "int8": 1e-2, "bfloat16": 1e-2}


def write_requests(package: Path, requests: Sequence[ScoreRequest]) -> None:
    """Record the requests, one line of JSON each."""
    lines = b"\n".join(encode_request(request) for request in requests)
    atomic_write_bytes(package / PARITY / REQUESTS, lines + b"\n")


def read_requests(path: Path) -> list[ScoreRequest]:
    """The recorded requests of a package, or those of a file with one JSON request per line.

    Raises:
        RequestError: a line is not a request.
        ValueError: there is none.
    """
    file = path / PARITY / REQUESTS if path.is_dir() else path
    requests = [decode_request(line) for line in file.read_bytes().splitlines() if line.strip()]
    if not requests:
        raise ValueError(f"{file} holds no request; it needs one JSON request per line")
    return requests


def write_scores(generation: Path, scores_C: npt.NDArray[np.floating]) -> None:
    """Record the probabilities that a generation must give, candidates of all requests in one row."""
    np.save(generation / PARITY_SCORES, scores_C.astype(np.float32))


def read_scores(generation: Path) -> npt.NDArray[np.float32]:
    """The recorded probabilities."""
    scores_C: npt.NDArray[np.float32] = np.load(generation / PARITY_SCORES, allow_pickle=False)
    return scores_C


def scores_of(replies: Sequence[ScoreReply | RequestError]) -> npt.NDArray[np.float32]:
    """Probabilities of all candidates in one row [C].

    Raises:
        PackageError: a recorded request was refused.
    """
    scores: list[npt.NDArray[np.float32]] = [np.zeros(0, np.float32)]
    for reply in replies:
        if isinstance(reply, RequestError):
            raise PackageError(
                f"a recorded request is refused ({reply}): the code that serves is not the one that made the "
                "package; make it again with `dashclip package`"
            )
        scores.append(reply.scores_N)
    return np.concatenate(scores)


def largest_difference(served_C: npt.NDArray[np.float32], expected_C: npt.NDArray[np.float32]) -> float:
    """Between served and recorded probabilities; infinite if one is NaN, 0 if there are none.

    Raises:
        PackageError: there is another number of them.
    """
    if served_C.shape != expected_C.shape:
        raise PackageError(
            f"the recorded requests have {len(served_C):,} candidates, but {len(expected_C):,} scores are "
            "recorded; make the package again with `dashclip package`"
        )
    difference_C = np.abs(served_C - expected_C)
    return float(np.nan_to_num(difference_C, nan=np.inf).max(initial=0.0))

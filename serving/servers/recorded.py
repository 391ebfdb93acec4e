"""Whether a server gives what its package says: the recorded requests, sent to it, against their scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from features.online.request import ScoreRequest
from serving.package.generations import current_generation, generation_folder
from serving.package.manifest import PackageManifest
from serving.package.parity import largest_difference, read_requests, read_scores
from serving.package.sealed_folder import PackageError
from serving.wire.reply import CHAMPION, ScoreReply


def check_recorded(package: Path, score: Callable[[ScoreRequest], ScoreReply]) -> int:
    """Send the recorded requests of a package and compare; returns how many were compared.

    What a challenger answers is not compared: the record is the champion's.

    Raises:
        PackageError: another package or generation answers, or with other scores; says which.
    """
    manifest = PackageManifest.read(package)
    requests = read_requests(package)
    starts_R = np.cumsum([0, *(len(request.candidates) for request in requests)])
    scores: dict[str, np.ndarray] = {}
    compared = 0
    for request, start in zip(requests, starts_R, strict=False):
        reply = score(request)
        if reply.variant not in (None, CHAMPION):
            continue
        if reply.model_version != manifest.model_version:
            raise PackageError(
                f"a recorded request is answered by {reply.model_version}, not by {manifest.model_version}"
            )
        if reply.generation not in scores:
            wanted = current_generation(package)
            if reply.generation != wanted:
                raise PackageError(
                    f"generation {reply.generation} answers, {wanted} is the current one of {package}"
                )
            scores[wanted] = read_scores(generation_folder(package, wanted))
        expected_N = scores[reply.generation][start : start + len(request.candidates)]
        difference = largest_difference(reply.scores_N, expected_N)
        if not difference <= manifest.parity.tolerance:
            raise PackageError(
                f"a recorded request gets probabilities up to {difference:.2g} away from what {package} "
                f"records, {manifest.parity.tolerance:.0e} is allowed"
            )
        compared += 1
    if not compared:
        raise PackageError(
            "no recorded request was answered by the package itself, but by challengers; `dashclip route` "
            "gives it users again"
        )
    return compared

"""Recorded requests against what answers them."""

from dataclasses import replace
from pathlib import Path

import pytest

from features.online.request import ScoreRequest
from serving.package.sealed_folder import PackageError
from serving.scoring.predictor import Predictor
from serving.servers.recorded import check_recorded
from serving.wire.reply import ScoreReply


def test_a_package_agrees_with_itself_request_by_request(small_run: Path) -> None:
    assert check_recorded(small_run / "package", Predictor.load(small_run / "package").score) == 12


def test_another_package_another_generation_and_other_scores_are_refused(
    small_run: Path, other_package: Path
) -> None:
    package, predictor = small_run / "package", Predictor.load(small_run / "package")
    with pytest.raises(PackageError, match="is answered by other-seed2"):
        check_recorded(package, Predictor.load(other_package).score)

    with pytest.raises(PackageError, match="generation 000009 answers, 000001 is the current one"):
        check_recorded(package, lambda request: replace(predictor.score(request), generation="000009"))

    def off(request: ScoreRequest) -> ScoreReply:
        reply = predictor.score(request)
        return replace(reply, scores_N=reply.scores_N + 0.01)

    with pytest.raises(PackageError, match=r"probabilities up to 0\.01 away"):
        check_recorded(package, off)


def test_answers_of_challengers_are_not_compared_and_nothing_compared_is_no_agreement(
    small_run: Path,
) -> None:
    predictor = Predictor.load(small_run / "package")
    turn = iter(range(100))

    def now_and_then(request: ScoreRequest) -> ScoreReply:
        reply = predictor.score(request)
        if next(turn) % 2:
            return replace(reply, variant="b", model_version="b", scores_N=reply.scores_N * 0)
        return replace(reply, variant="champion")

    assert check_recorded(small_run / "package", now_and_then) == 6
    with pytest.raises(PackageError, match="by challengers"):
        check_recorded(small_run / "package", lambda request: replace(predictor.score(request), variant="b"))

"""Score a request: package a trained ranker, and rank candidates with it in this process.

    python -m experiments.examples.score_a_request RUN DATA PACKAGE

RUN is a finished run (`rank_your_log` leaves one in OUT/dcn) and DATA the tables that its features were built
from. PACKAGE is written once. Over HTTP it is the same request: `ScoreClient(url).score(request)`.
"""

import sys
from pathlib import Path

from experiments.api import (
    PackageOptions,
    Predictor,
    ScoreReply,
    ScoreRequest,
    example_request,
    package_run,
)


def score(run: Path, data: Path, package: Path) -> tuple[ScoreRequest, ScoreReply]:
    """One request that the package knows, and its reply."""
    if not package.exists():
        # "auto" compiles the model: a minute once, and then faster requests.
        package_run(run, package, data=data, options=PackageOptions(backend="eager"))
    predictor = Predictor.load(package)
    known = example_request(package)
    request = ScoreRequest(user_id=known.user_id, query=known.query, candidates=known.candidates)
    return request, predictor.score(request)


if __name__ == "__main__":
    request, reply = score(*map(Path, sys.argv[1:4]))
    print(f"user {request.user_id}, query {request.query!r}, model {reply.model_version} as of {reply.as_of}")
    for place in reply.order_N:
        print(f"{reply.scores_N[place]:.4f}  product {request.candidates[place]}")

"""A worker for tests that count answers, whatever else the machine has to do."""

from serving.servers.fastapi import lanes
from serving.wire.reply import Scorer
from tests.serving.servers.torchserve.stand_in_handler import stand_in_scorer


def patient_scorer() -> Scorer:
    """The stand-in, in a worker that tells nobody to come back.

    Within the real budget a busy machine answers 503 now and then, to a request that is counted all the same.
    """
    lanes.BUDGET_S = 600.0
    return stand_in_scorer()

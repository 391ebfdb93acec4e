"""Replay of logged impressions: do served scores equal offline predictions?

Shapes: N candidates of a request, M impressions of the split, R requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from features.online.request import RequestError, ScoreRequest
from features.progress import Progress, silent
from ranking.metrics import log_loss, roc_auc
from serving.packaging.logged_requests import LoggedImpressions
from serving.wire.reply import ScoreReply

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Scores requests, in their order: a package in this process, or a server.
Score = Callable[[Sequence[ScoreRequest]], Sequence[ScoreReply | RequestError]]
#: Requests scored at once: enough to show that neighbours do not mix, few enough to move the bar.
BATCH_REQUESTS = 8
#: Offline probabilities that are closer are ties: no ranking hangs on them, and served vectors are rounded.
TIE = 1e-5
_WORST = 5


@dataclass(frozen=True)
class Difference:
    """One impression whose served score is far from the offline one."""

    impression_id: int | str
    offline: float
    served: float


@dataclass(frozen=True)
class Replay:
    """What came back for logged requests.

    Attributes:
        max_difference: largest |served - offline| probability.
        same_order: share of requests whose served order is an order of the offline scores, too; of candidates
            that TIE or less apart are, either may be first.
        reordered: the largest offline difference that was turned around.
        auc: of the offline predictions and of the served scores over the same impressions; None with one
            class only.
        refused: requests that were refused, and the first reason.
    """

    requests: int
    impressions: int
    max_difference: float
    mean_difference: float
    same_order: float
    reordered: float
    auc_offline: float | None
    auc_served: float | None
    log_loss_offline: float | None
    log_loss_served: float | None
    refused: int
    first_refusal: str | None
    model_versions: tuple[str, ...]
    generations: tuple[str, ...]
    as_of: str
    unknown: dict[str, int] = field(default_factory=dict)
    worst: tuple[Difference, ...] = ()

    def holds(self, *, tolerance: float, same_order: float) -> bool:
        """Whether nothing was refused, no score is further off, and enough orders are the same."""
        return self.refused == 0 and self.max_difference <= tolerance and self.same_order >= same_order


def replay(
    logged: LoggedImpressions,
    groups: Sequence[Ints],
    offline_M: Floats,
    score: Score,
    *,
    live: bool = True,
    progress: Progress = silent,
) -> Replay:
    """Send logged requests and compare with offline probabilities.

    Args:
        groups: rows of each request; see `LoggedImpressions.groups`.
        offline_M: predicted probability of each impression of the split.
        live: send the counters and purchases that the impressions saw.

    Raises:
        ValueError: every request was refused; gives the first reason.
    """
    served_M = np.full(len(logged), np.nan)
    replies: list[ScoreReply] = []
    refusals: list[RequestError] = []
    same_order = 0
    reordered = 0.0
    for first in range(0, len(groups), BATCH_REQUESTS):
        batch = groups[first : first + BATCH_REQUESTS]
        requests = [logged.request(rows_N, live=live) for rows_N in batch]
        for rows_N, reply in zip(batch, score(requests), strict=True):
            if isinstance(reply, RequestError):
                refusals.append(reply)
                continue
            replies.append(reply)
            served_M[rows_N] = reply.scores_N
            inversion = largest_inversion(offline_M[rows_N], reply.order_N)
            same_order += inversion <= TIE
            reordered = max(reordered, inversion)
        progress("replaying", first + len(batch), len(groups))
    if not replies:
        raise ValueError(f"no request was scored: {refusals[0] if refusals else 'there are none'}")
    return _summary(logged, offline_M, served_M, replies, refusals, same_order, reordered)


def largest_inversion(offline_N: Floats, order_N: Ints) -> float:
    """By how much the offline scores rise, at most, along the served order; 0 if it is an offline order, too.

    Offline [.3, .1, .2] served in the order 0, 1, 2 rises by .1.
    """
    along_N = offline_N[order_N]
    lowest_N = np.minimum.accumulate(along_N)
    return float((along_N - lowest_N).max(initial=0.0))


def _summary(
    logged: LoggedImpressions,
    offline_M: Floats,
    served_M: Floats,
    replies: list[ScoreReply],
    refusals: list[RequestError],
    same_order: int,
    reordered: float,
) -> Replay:
    row_K = np.flatnonzero(~np.isnan(served_M))
    offline_K, served_K = offline_M[row_K], served_M[row_K]
    difference_K = np.abs(served_K - offline_K)
    clicked_K = logged.rows["clicked"].to_numpy()[row_K]
    both_classes = 0 < int(clicked_K.sum()) < len(clicked_K)
    unknown: dict[str, int] = {}
    for reply in replies:
        for kind, count in reply.unknown.items():
            unknown[kind] = unknown.get(kind, 0) + count
    worst_K = np.argsort(-difference_K, kind="stable")[:_WORST]
    ids = logged.rows["impression_id"]
    return Replay(
        requests=len(replies),
        impressions=len(row_K),
        max_difference=float(difference_K.max()),
        mean_difference=float(difference_K.mean()),
        same_order=same_order / len(replies),
        reordered=reordered,
        auc_offline=roc_auc(clicked_K, offline_K) if both_classes else None,
        auc_served=roc_auc(clicked_K, served_K) if both_classes else None,
        log_loss_offline=log_loss(clicked_K, _logit(offline_K)),
        log_loss_served=log_loss(clicked_K, _logit(served_K)),
        refused=len(refusals),
        first_refusal=str(refusals[0]) if refusals else None,
        model_versions=tuple(sorted({reply.model_version for reply in replies})),
        generations=tuple(sorted({reply.generation for reply in replies})),
        as_of=max(reply.as_of for reply in replies),
        unknown=unknown,
        worst=tuple(
            Difference(ids[int(row_K[k])].as_py(), float(offline_K[k]), float(served_K[k])) for k in worst_K
        ),
    )


def _logit(probability_K: Floats) -> npt.NDArray[np.float32]:
    clipped_K = np.clip(probability_K, 1e-7, 1 - 1e-7)
    logit_K: npt.NDArray[np.float32] = np.log(clipped_K / (1 - clipped_K)).astype(np.float32)
    return logit_K

"""A scorer that may not be there yet: opened once it can be, and asked for again and again until then.

A server process that ends because its package cannot be opened is only replaced by one that ends likewise,
and who asks meanwhile waits in a queue or finds no server. This one stays, answers 503 at once, and tries
again.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from features.online.request import RequestError, ScoreRequest
from serving.scoring.backoff import Backoff
from serving.servers.endpoint import place_of
from serving.wire.reply import Scorer, ScoreReply, Unavailable

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
#: Why there are no scores, in the measures.
NO_MODEL = "no_model"


class HealingScorer:
    """Scores by what `open_scorer` gives, once it gives something."""

    def __init__(
        self, open_scorer: Callable[[], Scorer], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.scorer: Scorer | None = None
        #: Told of what has been opened, before it scores.
        self.on_open: Callable[[Scorer], None] = lambda _: None
        self._open_scorer = open_scorer
        self._again = Backoff(first_s=_FIRST_PAUSE_S, longest_s=_LONGEST_PAUSE_S, clock=clock)
        self._why = "it has not been opened"

    def open(self, *, raises: bool = False) -> None:
        """Try to open it now.

        A failure is logged, and `reload_if_changed` tries again, for ever; or it is raised with `raises`.
        """
        try:
            scorer = self._open_scorer()
            self.on_open(scorer)
            self.scorer = scorer
            self._again.succeeded()
        except Exception as error:
            if raises:
                raise
            self._why = str(error)
            pause_s = self._again.failed()
            _log.error(
                "the scorer cannot be opened, next attempt in %.0f s: %s\n%s", pause_s, error, place_of(error)
            )

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply | RequestError]:
        """Scores, or the news that there are none now.

        Raises:
            Unavailable: it has not been opened.
        """
        if self.scorer is None:
            raise Unavailable(NO_MODEL, retry_after_s=self._again.wait_s)
        return self.scorer.score_many(requests)

    def reload_if_changed(self) -> object:
        """Open it if that is due, or have it look for a new generation."""
        if self.scorer is not None:
            return self.scorer.reload_if_changed()
        if self._again.due:
            self.open()
        return self.scorer is not None

    def facts(self) -> Mapping[str, Any]:
        """What is served; until something is, `unavailable` says why nothing is."""
        return {"unavailable": self._why} if self.scorer is None else self.scorer.facts()

"""Shadow scoring: a challenger scores what another variant has served, and nobody sees its answers."""

import threading
from dataclasses import replace

import torch

from features.online.request import ScoreRequest
from serving.observers.observer import Observer
from serving.observers.waiting_line import WaitingLine
from serving.servers.measures import Measures
from serving.wire.reply import ScoreReply

#: Candidates that may wait for a shadow: seconds of work, not minutes.
_ROOM = 20_000


class ShadowScoring:
    """Scores for nobody, after the answer and in a thread of its own; what is not scored is counted."""

    def __init__(self, measures: Measures, *, observers: tuple[Observer, ...] = ()) -> None:
        """
        Args:
            observers: see the answers of shadows, too.
        """
        self._measures = measures
        self._observers = observers
        self._starting = threading.Lock()  # requests may come in several threads
        self._line: WaitingLine[tuple[ScoreRequest, ScoreReply, str | None]] | None = None

    def saw(self, request: ScoreRequest, reply: ScoreReply, request_id: str | None) -> None:
        """Line up a request that has shadows."""
        if not reply.shadows:
            return
        with self._starting:
            if self._line is None:  # most servers never have a shadow
                self._line = WaitingLine(self._score, name="shadow", room=_ROOM)
        size = len(reply.scores_N) * len(reply.shadows)
        if not self._line.offer((request, reply, request_id), size=size):
            for shadow in reply.shadows:
                self._measures.shadowed(shadow.variant, None, reply)

    def close(self) -> None:
        """Score what waits."""
        if self._line is not None:
            self._line.close()

    def _score(self, work: tuple[ScoreRequest, ScoreReply, str | None]) -> None:
        request, served, request_id = work
        torch.set_num_threads(1)  # of this thread, as in the one that serves
        for shadow in served.shadows:
            (reply,) = shadow.score([request])
            scored = reply if isinstance(reply, ScoreReply) else None
            self._measures.shadowed(shadow.variant, scored, served)
            if scored is not None:
                told = replace(scored, variant=shadow.variant, salt=served.salt, is_shadow=True)
                for observer in self._observers:
                    observer.saw(request, told, request_id)

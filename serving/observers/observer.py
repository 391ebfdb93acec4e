"""What an observer of answers is to an endpoint."""

from typing import Protocol

from features.online.request import ScoreRequest
from serving.wire.reply import ScoreReply


class Observer(Protocol):
    """Sees each request that got its scores, after they are made and before they are sent: must be quick."""

    def saw(self, request: ScoreRequest, reply: ScoreReply, request_id: str | None) -> None:
        """One request with its answer, and what the server calls it."""
        ...

    def close(self) -> None:
        """Finish what is under way: the worker ends."""
        ...

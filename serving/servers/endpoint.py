"""From bodies to answers: what every server does with a predictor, so that a server is only its protocol.

A client's mistake is answered with 400 or 413 and says field, what came and what to do. A fault of ours is
answered with 500 and says nothing; the log has the place, and no value of the request.
"""

import logging
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from features.online.request import MAX_BODY_BYTES, RequestError, ScoreRequest
from serving.drift.live_counts import LiveCounts
from serving.observers.observer import Observer
from serving.servers.json_lines import about, at_work
from serving.servers.measures import Measures
from serving.servers.trace_settings import Traces
from serving.wire import arrow_codec, json_codec
from serving.wire.body_weight import is_large
from serving.wire.reply import CHAMPION, Scorer, ScoreReply, Unavailable

_log = logging.getLogger(__name__)

#: What `curl -d` sends unless it is told otherwise.
FORM = "application/x-www-form-urlencoded"
#: Why a server that is about to end gives no scores, and after how many seconds another will.
DRAINING = "draining"
_DRAINED_S = 5


@dataclass(frozen=True)
class Body:
    """One request as it came. An unknown or absent content type is told by the first bytes.

    `request_id` is what the server calls it; log and traces name it.
    """

    content: bytes | bytearray | memoryview
    content_type: str | None = None
    request_id: str | None = None
    #: W3C header `traceparent`, if it came with one.
    traceparent: str | None = None


@dataclass(frozen=True)
class Answer:
    """One answer, ready to be sent."""

    status: int
    content_type: str
    content: bytes
    #: Of 503: seconds after which to ask again.
    retry_after_s: int | None = None


#: None is a fault of ours.
_Outcome = ScoreReply | RequestError | Unavailable | None


class Endpoint:
    """Answers bodies by a predictor, and counts what it does. Threads may share it."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        live: LiveCounts | None = None,
        measures: Measures | None = None,
        observers: Sequence[Observer] = (),
        traces: Traces | None = None,
    ) -> None:
        self.scorer = scorer
        self.live = live
        #: The path that large requests are sent to, if they have workers of their own.
        self.large_at: str | None = None
        #: The server is about to end: what comes now is told to come back.
        self.draining = False
        self._measures = measures or Measures()
        self._observers = observers
        self._traces = traces
        self._scored_at: float | None = None
        self._asked_at: float | None = None
        self._counting = threading.Lock()

    def answer(self, bodies: Sequence[Body]) -> list[Answer]:
        """One answer for each body, in order; a bad one does not fail its neighbours."""
        start, start_ns = time.perf_counter(), time.time_ns()
        self._asked_at = time.monotonic()
        if self.draining:
            return [self.shed(Unavailable(DRAINING, retry_after_s=_DRAINED_S)) for _ in bodies]
        arrow = [_is_arrow(body) for body in bodies]
        decoded = [
            self._elsewhere(body) or _decoded(body, is_arrow)
            for body, is_arrow in zip(bodies, arrow, strict=True)
        ]
        requests = [
            (request, body.request_id)
            for request, body in zip(decoded, bodies, strict=True)
            if isinstance(request, ScoreRequest)
        ]
        decoded_ns = time.time_ns()
        with at_work([request_id for _, request_id in requests]):
            replies = iter(self._score(requests) if requests else [])
        scored_ns = time.time_ns()
        outcomes = [next(replies) if isinstance(one, ScoreRequest) else one for one in decoded]
        answers = [_answer(outcome, is_arrow) for outcome, is_arrow in zip(outcomes, arrow, strict=True)]
        latency_s = time.perf_counter() - start
        self._asked_at = time.monotonic()
        with self._counting:
            for request, outcome in zip(decoded, outcomes, strict=True):
                self._count(request, outcome, latency_s)
        for request, reply, body in zip(decoded, outcomes, bodies, strict=True):
            if isinstance(request, ScoreRequest) and isinstance(reply, ScoreReply):
                self._show(request, reply, body.request_id)
        if self._traces is not None:
            self._trace(bodies, outcomes, answers, (start_ns, decoded_ns, scored_ns, time.time_ns()))
        return answers

    def close(self) -> None:
        """Let the observers finish: the worker ends."""
        for observer in self._observers:
            observer.close()
        if self._traces is not None:
            self._traces.close()

    def shed(self, why: Unavailable) -> Answer:
        """The answer to a request that is not scored; it is counted."""
        self._measures.shed(why.reason)
        return unavailable(why)

    def scored_within(self, seconds: float) -> bool:
        """Whether a request got its scores that short a time ago."""
        return self.scored_s_ago is not None and self.scored_s_ago <= seconds

    @property
    def scored_s_ago(self) -> float | None:
        """Since a request last got its scores; None if none has."""
        return None if self._scored_at is None else time.monotonic() - self._scored_at

    @property
    def asked_s_ago(self) -> float | None:
        """Since a request came or was answered; None if none has."""
        return None if self._asked_at is None else time.monotonic() - self._asked_at

    def measures(self) -> Measures:
        """What was counted up to now."""
        facts = self.scorer.facts()
        if "as_of" in facts:
            as_of = datetime.fromisoformat(str(facts["as_of"]))
            if as_of.tzinfo is None:
                as_of = as_of.replace(tzinfo=UTC)
            self._measures.set_snapshot_age(time.time() - as_of.timestamp())
        self._measures.set_state(
            model_open="as_of" in facts, refused=facts.get("refused_generation") is not None
        )
        self._measures.set_routing_refused(facts.get("routing", {}).get("refused") is not None)
        return self._measures

    def _show(self, request: ScoreRequest, reply: ScoreReply, request_id: str | None) -> None:
        for observer in self._observers:
            try:
                observer.saw(request, reply, request_id)
            except Exception as error:  # whatever is wrong with it, the request has its answer
                _log.error("an observer failed: %s", place_of(error), extra=about([request_id]))

    def _trace(
        self,
        bodies: Sequence[Body],
        outcomes: Sequence["_Outcome"],
        answers: Sequence[Answer],
        times_ns: tuple[int, int, int, int],
    ) -> None:
        assert self._traces is not None
        for body, outcome, answer in zip(bodies, outcomes, answers, strict=True):
            reply = outcome if isinstance(outcome, ScoreReply) else None
            try:
                self._traces.answered(
                    times_ns,
                    request_id=body.request_id,
                    traceparent=body.traceparent,
                    status=answer.status,
                    reply=reply,
                    batch=len(bodies),
                )
            except Exception as error:  # the request has its answer
                _log.error("tracing failed: %s", place_of(error), extra=about([body.request_id]))

    def _elsewhere(self, body: Body) -> RequestError | None:
        """A refusal of what another model is there for."""
        if self.large_at is None or not is_large(body.content):
            return None
        advice = f"send a request of so many candidates to {self.large_at}"
        return RequestError("body", "a large one", advice, status=413)

    def _score(self, requests: list[tuple[ScoreRequest, str | None]]) -> list["_Outcome"]:
        """Of requests with their ids."""
        try:
            replies = self.scorer.score_many([request for request, _ in requests])
            return [_finite(reply, *request) for reply, request in zip(replies, requests, strict=True)]
        except Unavailable as error:
            return [error] * len(requests)
        except Exception as error:
            extra = about([request_id for _, request_id in requests])
            _log.error("scoring %d requests failed: %s", len(requests), place_of(error), extra=extra)
        if len(requests) == 1:
            return [None]
        return [reply for request in requests for reply in self._score([request])]

    def _count(self, request: ScoreRequest | RequestError, outcome: "_Outcome", latency_s: float) -> None:
        if isinstance(outcome, ScoreReply):
            self._scored_at = time.monotonic()
            self._measures.scored(outcome, latency_s=latency_s)
            assert isinstance(request, ScoreRequest)
            if self.live is not None and outcome.variant in (None, CHAMPION):  # whose features they are
                self.live.count(outcome, request.user_id)
        elif isinstance(outcome, RequestError):
            self._measures.refused(outcome.status)
        elif isinstance(outcome, Unavailable):
            self._measures.shed(outcome.reason)
        else:
            self._measures.failed()


def _finite(
    reply: ScoreReply | RequestError, request: ScoreRequest, request_id: str | None
) -> ScoreReply | RequestError | None:
    """The reply, unless a score is not finite: absurd live values do that; without any it is our fault."""
    if isinstance(reply, RequestError) or np.isfinite(reply.scores_N).all():
        return reply
    if not request.context and not request.candidate_columns:
        said = "a request without live values was given a score that is not finite"
        _log.error(said, extra=about([request_id]))
        return None
    field = "candidate_columns" if request.candidate_columns else "context"
    return RequestError(
        field, "a value so extreme that a score is not finite", "send values as they were logged"
    )


def _is_arrow(body: Body) -> bool:
    kind = (body.content_type or "").split(";", 1)[0].strip().lower()
    if kind in (arrow_codec.CONTENT_TYPE, json_codec.CONTENT_TYPE):
        return kind == arrow_codec.CONTENT_TYPE
    return bytes(body.content[:4]) == arrow_codec.FIRST_BYTES


def _decoded(body: Body, is_arrow: bool) -> ScoreRequest | RequestError:
    try:
        if len(body.content) > MAX_BODY_BYTES:
            came = f"{len(body.content):,} bytes"
            raise RequestError("body", came, f"send at most {MAX_BODY_BYTES:,}", status=413)
        if body.content_type == FORM:
            advice = f"send it with content-type {json_codec.CONTENT_TYPE} or {arrow_codec.CONTENT_TYPE}"
            raise RequestError("body", "a form", advice)
        return (arrow_codec if is_arrow else json_codec).decode_request(body.content)
    except RequestError as error:
        return error
    except Exception as error:
        # Nothing but the body is at work here, so it is the body's fault, if in a way nobody thought of.
        _log.error("decoding a request failed: %s", place_of(error), extra=about([body.request_id]))
        return RequestError("body", "bytes that cannot be read", "see docs/serving.md for the two formats")


def _answer(outcome: _Outcome, is_arrow: bool) -> Answer:
    """Errors are JSON, whatever the request was."""
    if isinstance(outcome, ScoreReply):
        codec = arrow_codec if is_arrow else json_codec
        return Answer(200, codec.CONTENT_TYPE, codec.encode_reply(outcome))
    if isinstance(outcome, RequestError):
        return Answer(outcome.status, json_codec.CONTENT_TYPE, json_codec.encode_error(outcome))
    if isinstance(outcome, Unavailable):
        return unavailable(outcome)
    return Answer(
        500, json_codec.CONTENT_TYPE, b'{"error":{"message":"the server failed; its log says where"}}'
    )


def unavailable(why: Unavailable) -> Answer:
    """503 with the seconds after which to ask again."""
    seconds = why.retry_after_s
    content = f'{{"error":{{"message":"no scores now ({why.reason}); ask again in {seconds} s"}}}}'
    return Answer(503, json_codec.CONTENT_TYPE, content.encode(), retry_after_s=seconds)


def readiness(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a probe says of a scorer: package and generation, and whether it is one it has fallen back to.

    `package` and `generation_files` are fingerprints: two hosts that say the same serve the same files. No
    reason and no path: whoever may probe need not know them.
    """
    said = ("model_version", "package", "generation", "generation_files", "as_of")
    return {
        **{name: facts.get(name) for name in said},
        "fallen_back": facts.get("refused_generation") is not None,
    }


def place_of(error: BaseException) -> str:
    """Type and place of an exception; its message may quote the request, which is nobody's business."""
    return type(error).__name__ + " at\n" + "".join(traceback.format_tb(error.__traceback__))

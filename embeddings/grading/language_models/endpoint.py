"""A grader behind any server that speaks OpenAI's chat completions: one token with log probabilities.

Neither the secret nor a text of a pair stands in an error, a log or a file; of a server's bad reply only the
status is kept, as its words may repeat both.

Shapes: N pairs, C = 3 grades.
"""

import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from embeddings.catalog.holdout import HoldoutConfig
from embeddings.grading.language_models.prompt import Prompt, probabilities_of, tokens_of
from embeddings.grading.pairs import GradingError, Pairs
from embeddings.relevance.grades import GRADES
from features.artifacts import StrictModel

FloatArray = npt.NDArray[np.float64]

#: Pairs in a row without an answer after which the rest of a shard is not asked.
GIVE_UP_AFTER = 20
_LONGEST_WAIT_S = 60.0
#: Of one request, which no second try helps; and those that mean the address, the model or the secret.
_BAD_REQUEST = {400, 413, 422}
_NEVER = {401, 403, 404, 405}


class EndpointConfig(StrictModel):
    """Where the model is and how politely it is asked."""

    #: Up to and with "/v1".
    url: str
    model: str
    requests_at_a_time: Annotated[int, Field(ge=1, le=256)] = 8
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    first_wait_s: Annotated[float, Field(ge=0)] = 1.0

    @field_validator("url")
    @classmethod
    def _is_plain_http(cls, url: str) -> str:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the endpoint must be an http or https address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address must hold no secret; put it into an environment variable")
        return url.rstrip("/")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the secret to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(eq=False)
class EndpointGrader:
    """Grades by asking; `problems` counts what went wrong, `tokens` what was used."""

    config: EndpointConfig
    prompt: Prompt
    secret: str | None = field(default=None, repr=False)
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    problems: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def __post_init__(self) -> None:
        self._opener = urllib.request.build_opener(_NoRedirects())
        self._lock = Lock()
        self._next_s = 0.0
        self._failed_in_a_row = 0

    @property
    def name(self) -> str:
        """The model behind the address."""
        return f"endpoint-{self.config.model}"

    @property
    def prompt_sha(self) -> str:
        """Checksum of the prompt."""
        return self.prompt.sha256

    @property
    def holdout(self) -> HoldoutConfig | None:
        """What was kept from the examples that it is shown."""
        return self.prompt.holdout

    @property
    def remarks(self) -> str:
        """What went wrong, in one sentence; empty if nothing did."""
        found = ", ".join(
            f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(self.problems.items())
        )
        return f"the endpoint's troubles, retries included: {found}" if found else ""

    def probabilities(self, pairs: Pairs) -> FloatArray:
        """Probabilities [N, C], NaN for a pair that got no answer.

        Raises:
            GradingError: the server refuses every request of this kind, as with a wrong secret or model.
        """
        self._failed_in_a_row = 0
        with ThreadPoolExecutor(self.config.requests_at_a_time) as pool:
            try:
                rows = list(pool.map(self._ask, pairs.queries, pairs.texts))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return np.array(rows, np.float64).reshape(len(pairs), len(GRADES))

    def grades(self, probabilities_NC: FloatArray) -> npt.NDArray[np.int8]:
        """The most probable."""
        return probabilities_NC.argmax(axis=1).astype(np.int8)

    def _ask(self, query: str, text: str) -> FloatArray:
        nothing_C = np.full(len(GRADES), np.nan)
        body = json.dumps(self.prompt.request(query, text, model=self.config.model)).encode()
        for attempt in range(self.config.retries + 1):
            if self._failed_in_a_row >= GIVE_UP_AFTER:
                self._count("not_asked")
                return nothing_C
            self._wait_for_turn()
            reply, problem, wait_s, retry = self._post(body)
            if not problem:
                found_C, problem = probabilities_of(reply, self.prompt)
                with self._lock:
                    self.tokens += tokens_of(reply)
                    self._failed_in_a_row = 0
                if problem:
                    self._count(problem)
                # The same question gets the same refusal: a second try only costs.
                return nothing_C if found_C is None else found_C
            self._count(problem)
            if not retry:
                return nothing_C
            if attempt < self.config.retries:
                self.sleep(
                    min(max(wait_s, self.config.first_wait_s * 2**attempt * _jitter()), _LONGEST_WAIT_S)
                )
        self._count("given_up")
        with self._lock:
            self._failed_in_a_row += 1
        return nothing_C

    def _post(self, body: bytes) -> tuple[Any, str, float, bool]:
        """The reply; or what went wrong, how long the server wants us to wait, and if we may try again."""
        headers = {"Content-Type": "application/json"}
        if self.secret:
            headers["Authorization"] = f"Bearer {self.secret}"
        request = urllib.request.Request(f"{self.config.url}/chat/completions", body, headers)
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as response:
                return json.loads(response.read()), "", 0.0, True
        except urllib.error.HTTPError as error:
            status = error.code
            wait_s = _seconds(error.headers.get("Retry-After"))
            error.close()
        except (http.client.IncompleteRead, ValueError):
            return None, "broken_reply", 0.0, True
        except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
            slow = isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError)
            return None, "timeout" if slow else "no_connection", 0.0, True
        if status in _NEVER or 300 <= status < 400:
            raise GradingError(
                f"{self.config.url} answers status {status} for model {self.config.model!r}; check the "
                "address, the model's name and the secret in its environment variable. What is graded stays"
            ) from None
        return None, f"status_{status}", wait_s, status not in _BAD_REQUEST

    def _wait_for_turn(self) -> None:
        if self.config.requests_per_minute is None:
            return
        with self._lock:
            now = self.clock()
            turn_s = max(now, self._next_s)
            self._next_s = turn_s + 60 / self.config.requests_per_minute
        if turn_s > now:
            self.sleep(turn_s - now)

    def _count(self, problem: str) -> None:
        with self._lock:
            self.problems[problem] += 1


def _jitter() -> float:
    """Many clients that failed together should not return together."""
    return 0.5 + random.random()  # no secret depends on it


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, min(float(header or 0), _LONGEST_WAIT_S))
    except ValueError:
        return 0.0

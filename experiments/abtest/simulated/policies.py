"""What serves one variant: a package in this process, or any server that speaks our protocol.

Both are asked by the same code, and refreshed at night from the same log.
"""

import math
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from features.artifacts import atomic_folder
from features.columns.clock import iso
from features.online.request import RequestError, ScoreRequest
from serving.client import ClientError, Format, ScoreClient
from serving.package.generations import GenerationManifest, current_generation, generation_folder
from serving.packaging.build_generation import SnapshotSource
from serving.packaging.refresh import refresh
from serving.scoring.predictor import Predictor
from serving.wire.reply import ScoreReply

#: Requests that a package scores at once.
BATCH_REQUESTS = 32
#: A server has so long to take up a new generation of its package.
TAKES_UP_S = 60.0
_CLEARLY_OPTIONAL = "leave it out"


@dataclass(frozen=True)
class Answer:
    """One reply, or why there is none, and how long a server took; NaN where none was asked."""

    reply: ScoreReply | None
    ms: float
    failure: str | None = None


class Policy(ABC):
    """Scores the requests of one variant.

    Attributes:
        left_out: fields of requests that this model does not read, such as `history` or `context.device`;
            found out by its refusals, and not sent again.
    """

    def __init__(self) -> None:
        self.left_out: set[str] = set()

    def answers(self, requests: Sequence[ScoreRequest]) -> list[Answer]:
        """One answer for each request; what fails, fails alone."""
        while True:
            found = self._ask([_without(request, self.left_out) for request in requests])
            unread = {
                answer.field
                for answer, _ in found
                if isinstance(answer, RequestError) and _CLEARLY_OPTIONAL in answer.advice
            }
            if not unread - self.left_out:
                break
            self.left_out |= unread
        return [
            Answer(reply, ms) if isinstance(reply, ScoreReply) else Answer(None, ms, str(reply))
            for reply, ms in found
        ]

    @abstractmethod
    def refresh(self, log: Path, as_of_us: int, *, probe: ScoreRequest) -> bool:
        """Serve the snapshot of a night; False where this policy has none to make.

        Args:
            probe: a request whose reply tells which snapshot is served.

        Raises:
            PackageError: the new generation cannot be served.
            ClientError: the server did not take it up.
        """

    @abstractmethod
    def _ask(
        self, requests: Sequence[ScoreRequest]
    ) -> list[tuple[ScoreReply | RequestError | ClientError, float]]:
        """An answer and its milliseconds for each request."""


class PackagePolicy(Policy):
    """A copy of a package, in this process. It is not timed: a batch here says nothing of a server."""

    def __init__(self, package: Path, working_copy: Path) -> None:
        """
        Args:
            package: stays as it is.
            working_copy: is made if it is not there; an earlier start may have left it.

        Raises:
            PackageError: it is none.
        """
        super().__init__()
        current_generation(package)
        if not working_copy.exists():
            with atomic_folder(working_copy) as folder:
                shutil.copytree(package, folder, dirs_exist_ok=True)
        self.package = working_copy
        self._predictor: Predictor | None = None

    def refresh(self, log: Path, as_of_us: int, *, probe: ScoreRequest) -> bool:
        """See `Policy.refresh`."""
        refresh_package(self.package, log, as_of_us)
        self._predictor = Predictor.load(self.package)
        return True

    def _ask(
        self, requests: Sequence[ScoreRequest]
    ) -> list[tuple[ScoreReply | RequestError | ClientError, float]]:
        if self._predictor is None:
            self._predictor = Predictor.load(self.package)
        found: list[tuple[ScoreReply | RequestError | ClientError, float]] = []
        for first in range(0, len(requests), BATCH_REQUESTS):
            replies = self._predictor.score_many(requests[first : first + BATCH_REQUESTS])
            found += [(reply, math.nan) for reply in replies]
        return found


class EndpointPolicy(Policy):
    """A server, asked over several connections."""

    def __init__(
        self,
        url: str,
        *,
        package: Path | None = None,
        connections: int = 4,
        body_format: Format = "json",
        key_file: Path | None = None,
        management_url: str | None = None,
    ) -> None:
        """
        Args:
            package: what the server serves, in a folder that this process may refresh; without it the server
                keeps the snapshot that it has.
        """
        super().__init__()
        self._package = package
        self._local = threading.local()
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="abtest")

        def client() -> ScoreClient:
            if not hasattr(self._local, "client"):
                self._local.client = ScoreClient(
                    url,
                    body_format=body_format,
                    timeout_s=30.0,
                    key_file=key_file,
                    management_url=management_url,
                )
            opened: ScoreClient = self._local.client
            return opened

        self._client = client
        self._url = url

    def refresh(self, log: Path, as_of_us: int, *, probe: ScoreRequest) -> bool:
        """See `Policy.refresh`; returns once a reply comes from the new snapshot."""
        if self._package is None:
            return False
        refresh_package(self._package, log, as_of_us)
        ends = time.monotonic() + TAKES_UP_S
        while (answer := self.answers([probe])[0]).reply is None or answer.reply.as_of != iso(as_of_us):
            if time.monotonic() > ends:
                raise ClientError(
                    f"{self._url} does not serve the snapshot of {iso(as_of_us)} that was written to "
                    f"{self._package}: does it serve this folder? Its last answer: "
                    f"{answer.failure or (answer.reply and answer.reply.as_of)}"
                )
            time.sleep(0.2)
        return True

    def _ask(
        self, requests: Sequence[ScoreRequest]
    ) -> list[tuple[ScoreReply | RequestError | ClientError, float]]:
        return list(self._threads.map(self._ask_one, requests))

    def _ask_one(self, request: ScoreRequest) -> tuple[ScoreReply | RequestError | ClientError, float]:
        started = time.perf_counter()
        answer: ScoreReply | RequestError | ClientError
        try:
            answer = self._client().score(request)
        except (RequestError, ClientError) as error:
            answer = error
        return answer, (time.perf_counter() - started) * 1000


def refresh_package(package: Path, log: Path, as_of_us: int) -> None:
    """A snapshot of `log` as of a moment, unless the package's is of that moment."""
    live = GenerationManifest.read(generation_folder(package, current_generation(package)))
    if live.as_of != iso(as_of_us):
        refresh(package, snapshot=SnapshotSource(log, as_of_us))


def _without(request: ScoreRequest, fields: set[str]) -> ScoreRequest:
    if not fields:
        return request
    return replace(
        request,
        history=None if "history" in fields else request.history,
        context={k: v for k, v in request.context.items() if f"context.{k}" not in fields},
        candidate_columns={
            k: v for k, v in request.candidate_columns.items() if f"candidate_columns.{k}" not in fields
        },
    )

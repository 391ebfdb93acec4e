"""TorchServe's management API: versions of a model, registered, made the default one, unregistered.

https://docs.pytorch.org/serve/management_api.html. Every call needs the management token, which the attendant
renews while it runs.
"""

import http.client
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from serving.client import TOKEN_REFUSED, ClientError, Tokens
from serving.servers.torchserve.archive import Archive

_TIMEOUT_S = 60.0
#: A token that has just been renewed lies in the file a moment later.
_NOT_ALLOWED = 405
_TOKEN_READS, _TOKEN_PAUSE_S = 5, 0.2


class ManagementError(RuntimeError):
    """TorchServe refused, with a status, or did not answer."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model, as TorchServe describes it.

    Attributes:
        workers: process id and status of each; a worker that is being started has no id yet.
        waiting: requests in its queue.
    """

    version: str
    workers: tuple[tuple[int, str], ...]
    min_workers: int
    batch_size: int
    batch_delay_ms: int
    waiting: int

    @property
    def pids(self) -> list[int]:
        """Of the workers that are ready."""
        return [pid for pid, status in self.workers if status == "READY" and pid > 0]


class Management:
    """Speaks to the management port of one server."""

    def __init__(self, url: str, key_file: Path) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._tokens = Tokens(key_file, url)

    def default(self, name: str) -> ModelVersion:
        """The version that requests without one get."""
        return _version(self._ask("GET", f"/models/{name}")[0])

    def versions(self, name: str) -> list[ModelVersion]:
        """All of a model."""
        return [_version(one) for one in self._ask("GET", f"/models/{name}/all")]

    def register(self, archive: Archive, name: str, like: ModelVersion) -> None:
        """Have workers of an archive started, as many as `like` has; returns at once."""
        wanted = {
            "url": archive.path.resolve(),
            "model_name": name,
            "initial_workers": like.min_workers,
            "batch_size": like.batch_size,
            "max_batch_delay": like.batch_delay_ms,
            "synchronous": "false",
        }
        try:
            self._ask("POST", f"/models?{urlencode(wanted)}")
        except ManagementError as error:
            if error.status != _NOT_ALLOWED:
                raise
            raise ManagementError(
                "the server takes no new models: it does where its management is bound to loopback "
                "(`dashclip serve` without --manage-address)"
            ) from None

    def set_default(self, name: str, version: str) -> None:
        """Requests without a version get this one from now on."""
        self._ask("PUT", f"/models/{name}/{version}/set-default")

    def unregister(self, name: str, version: str) -> None:
        """End a version and its workers; what they hold is lost."""
        self._ask("DELETE", f"/models/{name}/{version}")

    def _ask(self, method: str, path: str) -> Any:
        """The JSON of the answer.

        Raises:
            ManagementError: no answer, or a refusal, in its words.
        """
        for attempt in range(_TOKEN_READS):
            status, text = self._once(method, path)
            if status == 400 and TOKEN_REFUSED in text and attempt < _TOKEN_READS - 1:
                time.sleep(_TOKEN_PAUSE_S)
                continue
            break
        try:
            said = json.loads(text)
        except ValueError:
            said = {}
        if not 200 <= status < 300:
            words = said.get("message") if isinstance(said, dict) else text[:200].decode(errors="replace")
            raise ManagementError(f"TorchServe answers {status} to {method} {path}: {words}", status=status)
        return said

    def _once(self, method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self._address, timeout=_TIMEOUT_S)
        try:
            headers = {"Authorization": f"Bearer {self._tokens.current('management')}"}
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (http.client.HTTPException, OSError, ClientError) as error:
            raise ManagementError(f"no answer to {method} {path}: {error}") from None
        finally:
            connection.close()


def _version(said: dict[str, Any]) -> ModelVersion:
    return ModelVersion(
        version=str(said["modelVersion"]),
        workers=tuple((int(one.get("pid", 0)), str(one["status"])) for one in said.get("workers") or ()),
        min_workers=int(said["minWorkers"]),
        batch_size=int(said["batchSize"]),
        batch_delay_ms=int(said["maxBatchDelay"]),
        waiting=int((said.get("jobQueueStatus") or {}).get("pendingRequests", 0)),
    )

"""What TorchServe does not do itself, in a process beside it: probes without a token, tokens that go on.

    GET /live     200 while TorchServe's process is there
    GET /ready    200 while a worker scores: a request within `READY_S`, or else the example now
    both say which generation the workers serve, and nothing that a stranger may not know

Tokens are renewed after a third of their life, so clients that read inference_key.json need no right to
manage. `dashclip serve` starts one for each server; with --foreground it is part of that process. It ends
when TorchServe does. Light on purpose: no torch here.
"""

import contextlib
import http.server
import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from serving.client import ClientError, Tokens, share_inference_key
from serving.scoring.backoff import Backoff
from serving.servers.background import DRAINING, WORKERS_FOLDER
from serving.servers.json_lines import log_as_json
from serving.servers.torchserve.server import EXAMPLE, RunningServer, running, worker_pids
from serving.wire.json_codec import decode_request

_log = logging.getLogger(__name__)

#: A worker that scored this short a time ago is ready; otherwise it is asked to score its example.
READY_S = 30.0
#: For that example, whose outcome counts for so long.
_PROBE_S, _REMEMBERED_S = 5.0, 1.0
#: Connections at once; beyond, they are closed.
_PROBERS = 32
_REQUEST_S = 5.0
_PERIOD_S = 0.5
_SAID = ("model_version", "package", "generation", "generation_files", "as_of")
_KINDS: tuple[Literal["inference", "management"], ...] = ("inference", "management")


class Attendant:
    """Answers probes and renews tokens from `start` to `stop`, or while `watch` runs."""

    def __init__(self, server: RunningServer, state: Path) -> None:
        self.server = server
        self._state = state
        self._asking = threading.Lock()
        self._asked: tuple[float, bool] = (float("-inf"), False)
        self._stopped = threading.Event()
        self._http = _ProbeServer(server.probes, self)
        self._threads = [threading.Thread(target=self._http.serve_forever, args=(_PERIOD_S,), daemon=True)]
        if server.key_file is not None:
            self._threads.append(threading.Thread(target=self._renew, daemon=True))

    def start(self) -> None:
        """Start to answer."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End."""
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def watch(self) -> None:
        """Return once TorchServe has ended."""
        while self.server.alive:
            time.sleep(_PERIOD_S)

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether a worker scores, and what the workers say of themselves."""
        said = self._statuses()
        model = self.server.url.rsplit("/", 1)[1]  # workers for large requests cannot stand in for the others
        last = max((one["scored_at"] or 0.0 for one in said if one["model"] == model), default=0.0)
        draining = (self._state / DRAINING).exists()
        ready = not draining and (time.time() - last <= READY_S or self._example_is_scored())
        return ready, {
            "ready": ready,
            "draining": draining,
            "workers": len(said),
            **{what: sorted({str(one[what]) for one in said if one.get(what) is not None}) for what in _SAID},
            "fallen_back": any(one.get("fallen_back") for one in said),
        }

    def _statuses(self) -> list[dict[str, Any]]:
        """Of the workers that live."""
        found = []
        for pid in worker_pids(self.server):
            try:
                found.append(json.loads((self._state / WORKERS_FOLDER / f"worker-{pid}.json").read_text()))
            except (OSError, ValueError):  # it has only just begun
                continue
        return found

    def _example_is_scored(self) -> bool:
        if not worker_pids(self.server):
            return False  # TorchServe would let the request wait
        with self._asking:
            at, scored = self._asked
            if time.monotonic() - at > _REMEMBERED_S:
                try:
                    with self.server.client(timeout_s=_PROBE_S) as client:
                        client.score(decode_request((self._state / EXAMPLE).read_bytes()))
                    scored = True
                except (ClientError, OSError, ValueError):
                    scored = False
                self._asked = (time.monotonic(), scored)
            return scored

    def _renew(self) -> None:
        key_file = self.server.key_file
        assert key_file is not None
        tokens = Tokens(key_file, self.server.management_url)
        again = Backoff(first_s=1.0, longest_s=max(1.0, self.server.token_minutes * 60 / 10))
        wait_s = self.server.token_minutes * 60 / 3
        while not self._stopped.wait(_PERIOD_S):  # TorchServe may not have written its file yet
            with contextlib.suppress(ClientError):
                share_inference_key(key_file)
                break
        while not self._stopped.wait(wait_s):
            try:
                for kind in _KINDS:
                    tokens.renew(kind)
                share_inference_key(key_file)
                again.succeeded()
                wait_s = self.server.token_minutes * 60 / 3
            except ClientError as error:
                wait_s = again.failed()
                _log.error("the tokens were not renewed, next attempt in %.0f s: %s", wait_s, error)


class _ProbeServer(http.server.ThreadingHTTPServer):
    """Threads, but so many at most; `allow_reuse_address` is the parent's."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], attendant: Attendant) -> None:
        super().__init__(address, _ProbeHandler)
        self.attendant = attendant
        self._slots = threading.BoundedSemaphore(_PROBERS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no fault."""


class _ProbeHandler(http.server.BaseHTTPRequestHandler):
    server: _ProbeServer
    timeout = _REQUEST_S

    def do_GET(self) -> None:
        attendant = self.server.attendant
        if self.path == "/live":
            alive = attendant.server.alive
            self._reply(200 if alive else 503, {"live": alive})
        elif self.path == "/ready":
            ready, said = attendant.readiness()
            self._reply(200 if ready else 503, said)
        else:
            self._reply(404, {"error": {"message": "there are /live and /ready"}})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response_only(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if status == 503:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *_: Any) -> None:
        """Probes come every few seconds."""


def main(state: Path) -> None:
    """Attend the server of a state folder until that has ended."""
    log_as_json(state / "logs" / "attendant.jsonl")
    server = running(state)
    if server is None:
        _log.error("no server runs for %s", state)
        return
    attendant = Attendant(server, state)
    attendant.start()
    attendant.watch()
    attendant.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

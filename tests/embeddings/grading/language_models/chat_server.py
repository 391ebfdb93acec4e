"""A small server on loopback that speaks chat completions and misbehaves as told."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: (status, headers, body) of a reply; None hangs up without a word.
Reply = tuple[int, dict[str, str], bytes] | None


def answer(probabilities: dict[str, float], *, tokens: int = 50, refusal: str | None = None) -> bytes:
    top = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
    message = {"role": "assistant", "content": next(iter(probabilities), None), "refusal": refusal}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "length"}
    if top:
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return json.dumps({"choices": [choice], "usage": {"total_tokens": tokens}}).encode()


def good(body: dict[str, Any]) -> Reply:
    """High if the query's first word stands in the product's text."""
    query, text = (line.split(": ", 1)[1] for line in body["messages"][-1]["content"].splitlines()[:2])
    high = 0.9 if query.split()[0] in text else 0.1
    return 200, {}, answer({"high": high, " mod": 0.05, "ir": 0.95 - high})


class ChatServer:
    """What came in, and where to ask."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    number = len(outer.requests)
                found = reply(body, number)
                if found is None:
                    self.close_connection = True
                    return
                status, headers, content = found
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def chat_server(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    server = ChatServer(reply)
    server.start()
    try:
        yield server
    finally:
        server.stop()

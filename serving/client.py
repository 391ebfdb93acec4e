"""A client of a scoring server, on the standard library's HTTP.

    url = "http://127.0.0.1:8080/predictions/dashclip"
    with ScoreClient(url, key_file=Path("store/server/key_file.json")) as client:
        reply = client.score(ScoreRequest(user_id=7, query="oat milk", candidates=[101, 102]))

One client holds one connection and belongs to one thread. Scoring changes nothing on the server, so what
failed for a reason that passes (a lost connection, 500, 503, 507) is tried again after a pause.
"""

import http.client
import json
import random
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import orjson

from features.artifacts import replaced_file
from features.online.request import RequestError, ScoreRequest
from serving.wire import arrow_codec, json_codec
from serving.wire.reply import ScoreReply

Format = Literal["json", "arrow"]

#: TorchServe's answers when a worker died, its queue is full, or it is out of memory.
PASSING_STATUSES = (500, 502, 503, 504, 507)
TOKEN_REFUSED = b"Token Authorization failed"
#: Beside key_file.json, without its other keys.
INFERENCE_KEY_FILE = "inference_key.json"
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_CODECS = {"json": json_codec, "arrow": arrow_codec}


class ClientError(RuntimeError):
    """The server did not score: its last status and words.

    Attributes:
        status: of the last answer, None if the connection failed.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ScoreClient:
    """Sends requests to one model of one server.

    TorchServe's side: https://docs.pytorch.org/serve/inference_api.html

    >>> with ScoreClient("http://127.0.0.1:9/score", retries=0) as client:  # nothing listens there
    ...     client.score(ScoreRequest(user_id=7, query="oat milk", candidates=[101, 102]))
    Traceback (most recent call last):
    ...
    serving.client.ClientError: ...
    """

    def __init__(
        self,
        url: str,
        *,
        body_format: Format = "json",
        timeout_s: float = 2.0,
        retries: int = 2,
        key_file: Path | None = None,
        management_url: str | None = None,
        token: str | None = None,
    ) -> None:
        """
        Args:
            url: of the model: `http://host:8080/predictions/dashclip`, or `http://host:8000/score`.
            timeout_s: for the connection, and for each answer.
            retries: further attempts after one that failed for a passing reason.
            key_file: TorchServe's key_file.json; read again, and a new token asked for, when one has expired.
            management_url: where a new token is asked for; needed with `key_file` only.
            token: one token, where another process looks after them.

        Raises:
            ValueError: `url` is not one of http or https.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL; write http://host:port/path")
        self._secure = parts.scheme == "https"
        self._address = (parts.hostname, parts.port or (443 if self._secure else 80))
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._codec = _CODECS[body_format]
        self._timeout_s = timeout_s
        self._retries = retries
        self._tokens = Tokens(key_file, management_url) if key_file else None
        self._token = token
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def score(self, request: ScoreRequest) -> ScoreReply:
        """Scores of one request.

        Raises:
            RequestError: the server refused the request (400, 413): its field, what came and what to do.
            ClientError: no scores after all attempts.
        """
        status, body, kind = self.post(self._codec.encode_request(request), self._codec.CONTENT_TYPE)
        if status == 200:
            codec = arrow_codec if kind == arrow_codec.CONTENT_TYPE else json_codec
            return codec.decode_reply(body)
        raise _refusal(status, body)

    def post(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        """Status, body and content type of the answer to raw bytes; what passes is waited for.

        Raises:
            ClientError: no answer, or none but passing faults, after all attempts.
        """
        refreshed = False
        attempt = 0
        while True:
            try:
                status, answer, kind = self._exchange(body, content_type)
            except (http.client.HTTPException, OSError) as error:
                self.close()
                failure = ClientError(
                    f"{type(error).__name__} at {self._address[0]}:{self._address[1]}: {error}"
                )
            else:
                if status == 400 and TOKEN_REFUSED in answer and self._tokens and not refreshed:
                    self._token = self._tokens.renewed(than=self._token)
                    refreshed = True
                    continue
                if status not in PASSING_STATUSES:
                    return status, answer, kind
                failure = ClientError(f"status {status}: {_words(answer)}", status=status)
            if attempt >= self._retries:
                raise failure
            # Half of the pause is chance, so that clients that failed together do not return together.
            longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
            time.sleep(longest_s * (0.5 + 0.5 * random.random()))
            attempt += 1

    def _exchange(self, body: bytes, content_type: str) -> tuple[int, bytes, str]:
        if self._connection is None:
            cls = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            self._connection = cls(*self._address, timeout=self._timeout_s)
        if self._tokens is not None and self._token is None:
            self._token = self._tokens.current()
        headers = {"Content-Type": content_type}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        self._connection.request("POST", self._path, body, headers)
        response = self._connection.getresponse()
        answer = response.read()
        return response.status, answer, response.headers.get("content-type", "").split(";", 1)[0]


class Tokens:
    """TorchServe's inference token: read from key_file.json, asked for again once it has expired."""

    def __init__(self, key_file: Path, management_url: str | None) -> None:
        self._key_file = key_file
        self._management_url = management_url

    def current(self) -> str:
        """The token in the file.

        Raises:
            ClientError: the file is not there (yet), or not TorchServe's.
        """
        return self._read("inference")

    def renewed(self, *, than: str | None) -> str:
        """A token that is not `than`: the file's if another process has renewed it, else a new one.

        Raises:
            ClientError: the file cannot be read, or the server gives no token.
        """
        token = self.current()
        if token != than:
            return token
        if self._management_url is None:
            raise ClientError(
                f"the token in {self._key_file} has expired; give the management URL to renew it"
            )
        parts = urlsplit(self._management_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {self._read('API')}"}
            connection.request("GET", "/token?type=inference", headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (http.client.HTTPException, OSError) as error:
            raise ClientError(f"no new token from {self._management_url}: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ClientError(f"no new token: status {answer.status}, {_words(text)}", status=answer.status)
        share_inference_key(self._key_file)
        return self.current()

    def _read(self, kind: str) -> str:
        try:
            return str(json.loads(self._key_file.read_text(encoding="utf-8"))[kind]["key"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClientError(f"{self._key_file} holds no {kind} key ({error})") from None


def share_inference_key(key_file: Path) -> Path:
    """Write the inference token alone beside TorchServe's key file: for who may score, but not manage.

    Raises:
        ClientError: the key file cannot be read.
    """
    path = key_file.with_name(INFERENCE_KEY_FILE)
    try:
        keys = {"inference": json.loads(key_file.read_text(encoding="utf-8"))["inference"]}
        with replaced_file(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(keys), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClientError(f"{key_file} holds no inference key ({error})") from None
    return path


def _refusal(status: int, body: bytes) -> Exception:
    try:
        said = orjson.loads(body)["error"]
        return RequestError(said["field"], said["came"], said["advice"], status=413 if status == 413 else 400)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        if status == 413:  # TorchServe's own, or a proxy's
            return RequestError("body", "more than the server takes", "send fewer candidates", status=413)
        return ClientError(f"status {status}: {_words(body)}", status=status)


def _words(body: bytes) -> str:
    return body[:200].decode(errors="replace").replace("\n", " ") or "(empty)"

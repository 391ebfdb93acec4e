"""A client of a scoring server, on the standard library's HTTP.

    url = "http://127.0.0.1:8080/predictions/dashclip"
    with ScoreClient(url, key_file=Path("store/server/key_file.json")) as client:
        reply = client.score(ScoreRequest(user_id=7, query="oat milk", candidates=[101, 102]))

One client holds one connection and belongs to one thread.

What the server has not begun (no connection, 429, 503) is tried again after a pause, of the length that the
server asks for. Nothing else is: a body whose worker died, or that got no answer in time, may have been what
killed it, and would kill the next one.
"""

import contextlib
import http.client
import json
import random
import select
import socket
import ssl
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import orjson

from features.artifacts import replaced_file
from features.online.request import RequestError, ScoreRequest
from serving.wire import arrow_codec, json_codec
from serving.wire.body_weight import is_large
from serving.wire.reply import ScoreReply

Format = Literal["json", "arrow"]

#: The server has not begun with the request: too many of them, or no worker.
PASSING_STATUSES = (429, 503)
TOKEN_REFUSED = b"Token Authorization failed"
#: Beside key_file.json, without its other keys.
INFERENCE_KEY_FILE = "inference_key.json"
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
#: For a token that another process is about to renew.
_RENEWAL_S, _LOOK_S = 3.0, 0.05
_READS = 5
_CODECS = {"json": json_codec, "arrow": arrow_codec}


class ClientError(RuntimeError):
    """The server did not score: its last status and words.

    Attributes:
        status: of the last answer, None if the connection failed.
        retry_after_s: when the server wants to be asked again, if it said so.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


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
        ca_file: Path | None = None,
        large_url: str | None = None,
    ) -> None:
        """
        Args:
            url: of the model: `http://host:8080/predictions/dashclip`, or `http://host:8000/score`.
            timeout_s: for the connection, and for each answer.
            retries: further attempts after one that failed for a passing reason.
            key_file: TorchServe's inference_key.json, read again when its token is refused (`dashclip serve`
                renews it in time); or key_file.json, which can manage, too.
            management_url: where a new token is asked for, with key_file.json.
            token: one token, where another process looks after them.
            ca_file: certificates to trust with https, instead of the system's.
            large_url: of the same server, where its large requests go.

        Raises:
            ValueError: `url` is not one of http or https, or `large_url` of another server.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL; write http://host:port/path")
        self._secure = parts.scheme == "https"
        self._address = (parts.hostname, parts.port or (443 if self._secure else 80))
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._large_path = self._path
        if large_url is not None:
            large = urlsplit(large_url)
            if (large.scheme, large.netloc) != (parts.scheme, parts.netloc):
                raise ValueError(f"{large_url!r} is not at the server of {url!r}; write one of the same host")
            self._large_path = large.path or "/"
        self._codec = _CODECS[body_format]
        self._timeout_s = timeout_s
        self._retries = retries
        self._tls = ssl.create_default_context(cafile=ca_file) if self._secure else None
        self._tokens = Tokens(key_file, management_url, ca_file=ca_file) if key_file else None
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
                self._connect()
            except OSError as error:
                failure = self._lost(error)
            else:
                status, answer, kind, retry_after_s = self._exchange(body, content_type)
                if status == 400 and TOKEN_REFUSED in answer and self._tokens and not refreshed:
                    self._token = self._tokens.renewed(than=self._token)
                    refreshed = True
                    continue
                if status in (502, 504, 507) or (status == 500 and b"Worker died" in answer):
                    raise ClientError(f"status {status}: {_words(answer)}", status=status)
                if status not in PASSING_STATUSES:
                    return status, answer, kind
                failure = ClientError(
                    f"status {status}: {_words(answer)}", status=status, retry_after_s=retry_after_s
                )
            wait_s = failure.retry_after_s or 0.0
            if attempt >= self._retries or wait_s > _LONGEST_PAUSE_S:
                raise failure
            # Half of the pause is chance, so that clients that failed together do not return together.
            longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
            time.sleep(wait_s + longest_s * (0.5 + 0.5 * random.random()))
            attempt += 1

    def _connect(self) -> None:
        """Open a connection, or keep the one there is unless the server has closed it meanwhile."""
        if self._connection is not None:
            sock = self._connection.sock
            if sock is not None and not _has_news(sock):
                return
            self.close()
        if self._tls is not None:
            self._connection = http.client.HTTPSConnection(
                *self._address, timeout=self._timeout_s, context=self._tls
            )
        else:
            self._connection = http.client.HTTPConnection(*self._address, timeout=self._timeout_s)
        try:
            self._connection.connect()
        except OSError:
            self.close()
            raise

    def _exchange(self, body: bytes, content_type: str) -> tuple[int, bytes, str, float | None]:
        """Status, body, content type and Retry-After of the answer.

        Raises:
            ClientError: the connection was lost, or the time is up: nobody knows what became of the body.
        """
        assert self._connection is not None
        if self._tokens is not None and self._token is None:
            self._token = self._tokens.current()
        headers = {"Content-Type": content_type}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            # A server that refuses a body closes its side while we write: its answer is there all the same.
            with contextlib.suppress(BrokenPipeError):
                path = self._large_path if is_large(body) else self._path
                self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (http.client.HTTPException, OSError) as error:
            self.close()
            raise self._lost(error) from None
        kind = response.headers.get("content-type", "").split(";", 1)[0]
        return response.status, answer, kind, _seconds(response.headers.get("retry-after"))

    def _lost(self, error: Exception) -> ClientError:
        return ClientError(f"{type(error).__name__} at {self._address[0]}:{self._address[1]}: {error}")


class Tokens:
    """TorchServe's inference token: read from a key file, and again, or asked for, once it has expired."""

    def __init__(self, key_file: Path, management_url: str | None, *, ca_file: Path | None = None) -> None:
        self._key_file = key_file
        self._management_url = management_url
        self._ca_file = ca_file

    def current(self, kind: Literal["inference", "management"] = "inference") -> str:
        """The token in the file.

        Raises:
            ClientError: the file is not there (yet), or not TorchServe's.
        """
        return self._read(kind)

    def renewed(self, *, than: str | None) -> str:
        """A token that is not `than`: the file's if another process has renewed it, else a new one.

        Raises:
            ClientError: the file cannot be read, or the server gives no token.
        """
        token = self.current()
        if token != than:
            return token
        if self._management_url is None or "API" not in self._keys():
            return self._awaited(than)
        self.renew("inference")
        share_inference_key(self._key_file)
        return self.current()

    def renew(self, kind: Literal["inference", "management"]) -> None:
        """Have TorchServe write a new token of this kind into key_file.json; the old one ends at once.

        Raises:
            ClientError: the file has no API key, or the server gives no token.
        """
        parts = urlsplit(self._management_url or "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"no management URL to ask for a token: {self._management_url!r}")
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            tls = ssl.create_default_context(cafile=self._ca_file)
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port or 443, timeout=10, context=tls
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {self._read('API')}"}
            connection.request("GET", f"/token?type={kind}", headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (http.client.HTTPException, OSError) as error:
            raise ClientError(f"no new token from {self._management_url}: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ClientError(f"no new token: status {answer.status}, {_words(text)}", status=answer.status)

    def _awaited(self, than: str | None) -> str:
        """A token that somebody else is writing: TorchServe knows it a moment before the file has it."""
        deadline = time.monotonic() + _RENEWAL_S
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            if (token := self.current()) != than:
                return token
        raise ClientError(
            f"the token in {self._key_file} is refused, and nobody renews it; does `dashclip serve` run? To "
            "renew it from here give key_file.json and the management URL"
        )

    def _read(self, kind: str) -> str:
        try:
            return str(self._keys()[kind]["key"])
        except (KeyError, TypeError) as error:
            raise ClientError(f"{self._key_file} holds no {kind} key ({error})") from None

    def _keys(self) -> dict[str, Any]:
        """TorchServe does not replace its file but writes it anew, so a reader may see a part of it."""
        for attempt in range(_READS):
            try:
                return dict(json.loads(self._key_file.read_text(encoding="utf-8")))
            except OSError as error:
                raise ClientError(f"{self._key_file} holds no key ({error})") from None
            except (ValueError, TypeError) as error:
                if attempt == _READS - 1:
                    raise ClientError(f"{self._key_file} holds no key ({error})") from None
                time.sleep(_LOOK_S)
        raise AssertionError


def share_inference_key(key_file: Path) -> Path:
    """Write the inference token alone beside TorchServe's key file: for who may score, but not manage.

    Raises:
        ClientError: the key file cannot be read.
    """
    path = key_file.with_name(INFERENCE_KEY_FILE)
    keys = {"inference": {"key": Tokens(key_file, None).current()}}
    try:
        with replaced_file(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(keys), encoding="utf-8")
    except OSError as error:
        raise ClientError(f"{path} cannot be written ({error})") from None
    return path


def _has_news(sock: socket.socket) -> bool:
    """Whether something has come, the end of the connection among it. `select` would fail at file 1,024."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


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


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header; the form with a date is not read."""
    return float(retry_after) if retry_after is not None and retry_after.isdigit() else None

"""The client against a server that does what it is told: faults that pass, tokens that expire, refusals."""

import http.server
import json
import os
import resource
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from features.online.request import RequestError, ScoreRequest
from serving.client import ClientError, ScoreClient, Tokens, share_inference_key
from serving.servers.endpoint import Body, Endpoint
from serving.wire import arrow_codec
from tests.serving.servers.torchserve.stand_in_handler import stand_in_score, stand_in_scorer

REQUEST = ScoreRequest(user_id=1, query="q", candidates=[101, 7])


class FaultyServer:
    """Answers by `script` first (a status, or "drop"), then by the stand-in. Wants `token` if it has one."""

    def __init__(self, key_file: Path) -> None:
        self.script: list[int | str] = []
        self.token: str | None = None
        self.retry_after: str | None = None
        self.connections = 0
        self.seen: list[str] = []
        self.paths: list[str] = []
        endpoint = Endpoint(stand_in_scorer())
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.seen.append(self.headers["content-type"])
                outer.paths.append(self.path)
                step = outer.script.pop(0) if outer.script else 200
                if step == "drop":
                    self.close_connection = True
                elif step == "hang":
                    time.sleep(3)
                    self.close_connection = True
                elif step == "close":
                    (answer,) = endpoint.answer([Body(body, self.headers["content-type"])])
                    self.reply(answer.status, answer.content_type, answer.content)
                    self.close_connection = True
                elif step != 200:
                    self.reply(int(step), "application/json", b'{"message": "Worker died."}')
                elif outer.token and self.headers["authorization"] != f"Bearer {outer.token}":
                    self.reply(400, "application/json", b'{"message": "Token Authorization failed. Expired"}')
                else:
                    (answer,) = endpoint.answer([Body(body, self.headers["content-type"])])
                    self.reply(answer.status, answer.content_type, answer.content)

            def do_GET(self) -> None:
                assert self.path == "/token?type=inference"
                assert self.headers["authorization"] == "Bearer api"
                outer.token = f"{outer.token}+"
                write_keys(key_file, outer.token)
                self.reply(200, "application/json", b"{}")

            def reply(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                if outer.retry_after is not None:
                    self.send_header("retry-after", outer.retry_after)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.url = f"{self.root}/predictions/dashclip"


def write_keys(path: Path, token: str) -> None:
    path.write_text(json.dumps({"inference": {"key": token}, "API": {"key": "api"}}))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "key_file.json"


@pytest.fixture
def server(key_file: Path) -> Iterator[FaultyServer]:
    faulty = FaultyServer(key_file)
    thread = threading.Thread(target=faulty.http.serve_forever, args=(0.01,))
    thread.start()
    yield faulty
    faulty.http.shutdown()
    thread.join()
    faulty.http.server_close()


@pytest.mark.parametrize("body_format", ["json", "arrow"])
def test_scores_come_back_over_one_connection(server: FaultyServer, body_format: str) -> None:
    with ScoreClient(server.url, body_format=body_format) as client:  # type: ignore[arg-type]
        for _ in range(3):
            reply = client.score(REQUEST)
    assert reply.scores_N.tolist() == pytest.approx([stand_in_score(101), stand_in_score(7)])
    assert server.connections == 1
    assert (server.seen[0] == arrow_codec.CONTENT_TYPE) == (body_format == "arrow")


def test_a_body_does_not_wait_for_the_acknowledgement_of_its_head(server: FaultyServer) -> None:
    with ScoreClient(server.url) as client:
        client.score(REQUEST)
        assert client._connection is not None
        assert client._connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("fault", [429, 503])
def test_what_the_server_has_not_begun_is_tried_again(server: FaultyServer, fault: int) -> None:
    server.script = [fault, fault]
    with ScoreClient(server.url, retries=2) as client:
        assert len(client.score(REQUEST).scores_N) == 2


@pytest.mark.parametrize("fault", [500, 502, 504, 507, "drop", "hang"])
@pytest.mark.parametrize("is_reused", [False, True])
def test_a_body_that_may_have_killed_a_worker_is_sent_once(
    server: FaultyServer, fault: int | str, is_reused: bool
) -> None:
    with ScoreClient(server.url, retries=5, timeout_s=1) as client:
        if is_reused:
            client.score(REQUEST)
            server.seen.clear()
        server.script = [fault]
        with pytest.raises(ClientError) as error:
            client.score(REQUEST)
        assert error.value.status == (fault if isinstance(fault, int) else None)
        assert len(server.seen) == 1
        assert len(client.score(REQUEST).scores_N) == 2


def test_a_connection_that_the_server_has_closed_is_opened_again_without_a_retry(
    server: FaultyServer,
) -> None:
    with ScoreClient(server.url, retries=0) as client:
        server.script = ["close"]
        client.score(REQUEST)
        wait_until_closed(client)
        client.score(REQUEST)
    assert server.connections == 2


def test_a_process_may_have_more_than_a_thousand_open_files(server: FaultyServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        for _ in range(1_100):
            stack.callback(os.close, os.dup(0))
        with ScoreClient(server.url, retries=0) as client:
            for _ in range(2):
                client.score(REQUEST)
    assert server.connections == 1


def wait_until_closed(client: ScoreClient) -> None:
    assert client._connection is not None
    assert client._connection.sock is not None
    assert select.select([client._connection.sock], [], [], 60)[0]


@pytest.mark.parametrize(("retry_after", "asked"), [("0", 3), ("1", 3), ("3600", 1), ("later", 3)])
def test_a_pause_that_the_server_asks_for_is_kept_or_left_to_the_caller(
    server: FaultyServer, retry_after: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("serving.client.time.sleep", pauses.append)
    server.script, server.retry_after = [503] * 9, retry_after
    with ScoreClient(server.url, retries=2) as client, pytest.raises(ClientError) as error:
        client.score(REQUEST)
    assert len(server.seen) == asked
    assert error.value.retry_after_s == (None if retry_after == "later" else float(retry_after))
    assert all(pause >= (1 if retry_after == "1" else 0) for pause in pauses)


def test_a_fault_that_stays_is_raised_with_its_status(server: FaultyServer) -> None:
    server.script = [503] * 5
    with (
        ScoreClient(server.url, retries=2) as client,
        pytest.raises(ClientError, match="Worker died") as error,
    ):
        client.score(REQUEST)
    assert error.value.status == 503
    assert len(server.script) == 2


@pytest.mark.parametrize("body_format", ["json", "arrow"])
def test_a_refusal_is_raised_at_once_as_the_server_said_it(server: FaultyServer, body_format: str) -> None:
    client = ScoreClient(server.url, body_format=body_format)  # type: ignore[arg-type]
    with client, pytest.raises(RequestError, match="send another price") as refusal:
        client.score(ScoreRequest(user_id=1, query="q", candidates=[14]))
    assert (refusal.value.field, refusal.value.status) == ("candidate_columns.price", 400)
    assert len(server.seen) == 1


def test_another_status_is_an_error_with_the_servers_words(server: FaultyServer) -> None:
    server.script = [404]
    with ScoreClient(server.url) as client, pytest.raises(ClientError, match=r"status 404: .*Worker died"):
        client.score(REQUEST)


def test_a_413_without_words_is_a_refusal_too(server: FaultyServer) -> None:
    server.script = [413]
    with ScoreClient(server.url) as client, pytest.raises(RequestError, match="fewer candidates") as refusal:
        client.score(REQUEST)
    assert refusal.value.status == 413


def test_an_expired_token_is_read_again_or_asked_for(server: FaultyServer, key_file: Path) -> None:
    server.token = "first"
    write_keys(key_file, "first")
    with ScoreClient(server.url, key_file=key_file, management_url=server.root) as client:
        client.score(REQUEST)
        server.token = "renewed by another client"
        write_keys(key_file, "renewed by another client")
        client.score(REQUEST)
        server.token = "expired"
        client.score(REQUEST)
        assert server.token == "expired+"
        client.score(REQUEST)
    assert len(server.seen) == 6


def test_the_inference_key_alone_is_kept_up_to_date_and_cannot_renew(
    server: FaultyServer, key_file: Path
) -> None:
    server.token = "first"
    write_keys(key_file, "first")
    shared = share_inference_key(key_file)
    assert shared.stat().st_mode & 0o777 == 0o600
    assert json.loads(shared.read_text()) == {"inference": {"key": "first"}}
    with (
        ScoreClient(server.url, key_file=key_file, management_url=server.root) as manager,
        ScoreClient(server.url, key_file=shared, management_url=server.root) as other,
    ):
        other.score(REQUEST)
        server.token = "expired"
        with pytest.raises(ClientError, match="nobody renews it"):
            other.score(REQUEST)
        manager.score(REQUEST)
        other.score(REQUEST)
    assert json.loads(shared.read_text()) == {"inference": {"key": "expired+"}}
    assert shared.stat().st_mode & 0o777 == 0o600


def test_a_token_that_cannot_be_renewed_says_what_is_missing(server: FaultyServer, key_file: Path) -> None:
    server.token = "other"
    write_keys(key_file, "first")
    with (
        ScoreClient(server.url, key_file=key_file) as client,
        pytest.raises(ClientError, match="management URL"),
    ):
        client.score(REQUEST)
    with pytest.raises(ClientError, match="no key"):
        Tokens(key_file.with_name("none.json"), None).current()
    key_file.write_text("{}")
    with pytest.raises(ClientError, match="no inference key"):
        Tokens(key_file, None).current()


def test_who_cannot_renew_waits_for_the_token_that_somebody_else_renews(
    server: FaultyServer, key_file: Path
) -> None:
    server.token = "new"
    write_keys(key_file, "old")
    shared = share_inference_key(key_file)

    def renew() -> None:
        time.sleep(0.5)
        key_file.write_text('{"inference": {"key": "n')  # as a reader may see it
        time.sleep(0.1)
        write_keys(key_file, "new")
        share_inference_key(key_file)

    writer = threading.Thread(target=renew)
    writer.start()
    with ScoreClient(server.url, key_file=shared) as client:
        client.score(REQUEST)
    writer.join()


def test_https_is_spoken_to_the_model_and_where_tokens_are_renewed(
    server: FaultyServer, key_file: Path, certificate: tuple[Path, Path]
) -> None:
    """The key that manages is never sent in the clear, whatever port it goes to."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    server.http.socket = tls.wrap_socket(server.http.socket, server_side=True)
    root = server.root.replace("http:", "https:")
    server.token = "expired"
    write_keys(key_file, "stale")
    with ScoreClient(
        f"{root}/predictions/dashclip", key_file=key_file, management_url=root, ca_file=certificate[0]
    ) as client:
        assert len(client.score(REQUEST).scores_N) == 2
    assert server.token == "expired+"
    with (
        ScoreClient(f"{root}/predictions/dashclip", retries=0) as stranger,
        pytest.raises(ClientError, match="certificate"),
    ):
        stranger.score(REQUEST)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(paths[0]), "-keyout", str(paths[1])]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return paths


def test_nobody_listening_is_said_after_the_retries() -> None:
    client = ScoreClient("http://127.0.0.1:9/score", retries=1)
    with client, pytest.raises(ClientError, match=r"127\.0\.0\.1:9"):
        client.score(REQUEST)


def test_large_requests_go_where_they_have_workers_of_their_own(server: FaultyServer) -> None:
    many = ScoreRequest(user_id=1, query="q", candidates=list(range(10**6, 10**6 + 2_000)))
    with ScoreClient(server.url, large_url=f"{server.url}-large") as client:
        for request in (REQUEST, many, REQUEST):
            client.score(request)
    assert server.paths == ["/predictions/dashclip", "/predictions/dashclip-large", "/predictions/dashclip"]
    with pytest.raises(ValueError, match="same host"):
        ScoreClient(server.url, large_url="http://elsewhere/predictions/x")


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host/x", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a URL"):
        ScoreClient(url)

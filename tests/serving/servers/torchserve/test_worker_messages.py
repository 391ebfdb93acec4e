"""Messages read by segments are the messages that TorchServe reads field by field."""

import socket
import struct
import threading
from typing import Any

import pytest
import ts
from hypothesis import given, settings
from hypothesis import strategies as st
from ts.protocol import otf_message_handler

from serving.servers.torchserve import worker_messages
from serving.servers.torchserve.worker_messages import Incoming, read_by_segments

NAMES = ("_retrieve_buffer", "_retrieve_inference_msg")
#: TorchServe's own, before any test replaces them.
THEIRS = {name: getattr(otf_message_handler, name) for name in NAMES}
END = struct.pack("!i", -1)
TEXT = st.text(st.characters(codec="ascii"), max_size=12).map(str.encode)
REQUESTS = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=40).map(bytes.hex).map(str.encode),
        st.lists(st.tuples(TEXT, TEXT), max_size=4),
        st.lists(st.tuples(TEXT, TEXT, st.binary(max_size=300)), max_size=2),
    ),
    max_size=4,
)


def part(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


def message(requests: Any) -> bytes:
    """As the frontend writes it."""
    written = [b"I"]
    for name, headers, inputs in requests:
        written.append(part(name))
        written += [part(key) + part(value) for key, value in headers]
        written.append(END)
        written += [part(key) + part(kind) + part(value) for key, kind, value in inputs]
        written.append(END)
    return b"".join(written) + END


def put_back(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    for name, function in THEIRS.items():
        patch.setattr(otf_message_handler, name, function)


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchServe's own functions, put back afterwards; bodies are not decoded."""
    put_back(monkeypatch)


def received(content: bytes, messages: int, *, segment: int) -> list[Any]:
    """What the worker's loop reads of bytes that come in segments."""
    sending, receiving = socket.socketpair()
    with sending, receiving:

        def send() -> None:
            for start in range(0, len(content), segment):
                sending.sendall(content[start : start + segment])

        thread = threading.Thread(target=send)
        thread.start()
        found = [otf_message_handler.retrieve_msg(receiving) for _ in range(messages)]
        thread.join()
    return found


ORIGINAL = {
    name: getattr(otf_message_handler, name) for name in ("_retrieve_buffer", "_retrieve_inference_msg")
}


@given(batches=st.lists(REQUESTS, min_size=1, max_size=3), segment=st.sampled_from([1, 7, 100, 10**6]))
@settings(max_examples=40, deadline=None)
def test_they_are_those_that_torchserve_reads(batches: Any, segment: int) -> None:
    content = b"".join(map(message, batches))
    with pytest.MonkeyPatch.context() as patch:
        put_back(patch)
        wanted = received(content, len(batches), segment=10**6)
        assert read_by_segments()
        assert received(content, len(batches), segment=segment) == wanted


def test_large_bodies_come_whole_and_leave_no_large_buffer() -> None:
    sending, receiving = socket.socketpair()
    bodies = [bytes([number]) * 3_000_000 for number in range(3)]
    requests = [(b"id", [], [(b"body", b"x", body)]) for body in bodies]
    with sending, receiving:
        thread = threading.Thread(target=sending.sendall, args=(message(requests) + message([])[:1],))
        thread.start()
        incoming = Incoming(receiving)
        assert incoming.take(1) == b"I"
        assert [one["parameters"][0]["value"] for one in incoming.requests()] == bodies
        assert incoming.take(1) == b"I"
        thread.join()
        sending.sendall(b"x")
        assert incoming.take(1) == b"x"
        assert len(incoming._buffer) == worker_messages._BUFFER_BYTES


def test_a_request_costs_one_system_call_and_not_one_a_field() -> None:
    sending, receiving = socket.socketpair()
    calls = []

    class Counted:
        def recv_into(self, into: memoryview) -> int:
            calls.append(len(into))
            return receiving.recv_into(into)

    request = (b"id", [(b"name", b"value")] * 6, [(b"body", b"application/json", b"{}")])
    with sending, receiving:
        sending.sendall(message([request] * 8))
        incoming = Incoming(Counted())  # type: ignore[arg-type]
        incoming.take(1)
        assert len(incoming.requests()) == 8
    assert len(calls) == 1


def test_a_frontend_that_has_left_ends_the_worker() -> None:
    sending, receiving = socket.socketpair()
    with receiving:
        sending.sendall(message([])[:-2])
        sending.close()
        incoming = Incoming(receiving)
        incoming.take(1)
        with pytest.raises(SystemExit) as ended:
            incoming.requests()
    assert ended.value.code == 0


def test_another_version_of_torchserve_is_left_as_it_is(
    theirs: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = otf_message_handler._retrieve_buffer
    monkeypatch.setattr(ts, "__version__", "0.13.0")
    assert not read_by_segments()
    assert otf_message_handler._retrieve_buffer is before
    assert "TorchServe is 0.13.0 and not 0.12.0" in caplog.text

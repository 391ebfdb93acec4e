"""Answers for a socket whose workers are away."""

import fcntl
import resource
import socket

import pytest

from serving.servers.fastapi.standby import Standby

FAR = 1_100  # `select` takes files below 1,024


def test_a_socket_with_a_high_number_is_answered_as_well() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= FAR:
        pytest.skip(f"this system opens {hard} files at most")
    if soft <= FAR:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FAR + 100, hard))
    with socket.create_server(("127.0.0.1", 0)) as near:
        far = socket.socket(fileno=fcntl.fcntl(near.fileno(), fcntl.F_DUPFD, FAR))
        assert far.fileno() >= FAR
        standby = Standby(far, lambda: True)
        standby.start()
        try:
            with socket.create_connection(near.getsockname(), timeout=10) as client:
                client.sendall(b"GET /live HTTP/1.1\r\n\r\n")
                assert client.recv(64).startswith(b"HTTP/1.1 200 OK")
        finally:
            standby.stop()
            far.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

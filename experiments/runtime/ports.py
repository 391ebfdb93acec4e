"""Ports of loopback that nothing is listening at."""

import socket
from contextlib import ExitStack


def free_ports(count: int = 5) -> int:
    """The first of so many ports of loopback in a row that nothing is listening at."""
    while True:
        with ExitStack() as probes:
            first = 0
            try:
                for offset in range(count):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", first + offset if first else 0))
                    first = first or int(probe.getsockname()[1])
            except (OSError, OverflowError):  # one of them is taken, or beyond the last port
                continue
            return first

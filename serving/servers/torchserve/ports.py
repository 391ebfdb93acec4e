"""Whether a server can have its ports, and whether nobody reaches the ones that are to be closed."""

import contextlib
import socket
from urllib.parse import urlsplit

from serving.servers.torchserve.files import ServerSettings


def taken(settings: ServerSettings) -> str | None:
    """What to say of a port that another process has; None if all are free."""
    for use, port in settings.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.address_of(use), port))
            except OSError:
                return f"port {port} ({use}) is taken; choose others with --port"
    return None


def reachable(management_url: str) -> str | None:
    """What to say if management can be reached, by HTTP or gRPC, where nobody should; None if it cannot."""
    parts = urlsplit(management_url)
    for port in (parts.port, (parts.port or 0) + 3):
        place = (parts.hostname or "", port or 0)
        with contextlib.suppress(OSError), socket.create_connection(place, timeout=2):
            return (
                f"management can be reached at {parts.hostname}:{port}, where without tokens everybody here "
                "could manage (closing it needs Linux); keep the tokens"
            )
    return None

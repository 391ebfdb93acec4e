"""Whether requests are traced, and where to; without what sends the spans (`serving/servers/tracing.py`)."""

import json
from pathlib import Path
from typing import Annotated, Protocol, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from features.artifacts import StrictModel, atomic_write_json
from serving.wire.reply import ScoreReply

#: In a server's folder.
TRACES_NAME = "traces.json"


class Traces(Protocol):
    """What an endpoint tells of each request it has answered."""

    def answered(
        self,
        times_ns: tuple[int, int, int, int],
        *,
        request_id: str | None,
        traceparent: str | None,
        status: int,
        reply: ScoreReply | None,
        batch: int,
    ) -> None:
        """One request; times since 1970 at its start, once decoded, scored and encoded, of its batch."""
        ...

    def close(self) -> None:
        """Send what waits."""
        ...


class TraceSettings(StrictModel):
    """Where spans are sent.

    Attributes:
        endpoint: a collector's URL for OTLP over HTTP.
        share: of the requests without a traceparent; with one, its flag decides.
    """

    endpoint: str
    share: Annotated[float, Field(ge=0, le=1)] = 0.01

    @field_validator("endpoint")
    @classmethod
    def _check(cls, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"traces are sent to a URL such as http://localhost:4318/v1/traces, got {endpoint!r}"
            )
        return endpoint

    @classmethod
    def of_server(cls, folder: Path) -> Self | None:
        """Those of a server's folder, None without."""
        path = folder / TRACES_NAME
        return cls.model_validate(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    @staticmethod
    def hand_over(settings: "TraceSettings | None", folder: Path) -> None:
        """Leave them to the workers of a server, or take away those of the run before."""
        if settings is None:
            (folder / TRACES_NAME).unlink(missing_ok=True)
        else:
            atomic_write_json(folder / TRACES_NAME, settings.model_dump(mode="json"))


def open_traces(settings: TraceSettings) -> Traces:
    """What sends spans.

    Raises:
        ValueError: OpenTelemetry is not installed.
    """
    try:
        from serving.servers.tracing import SentTraces
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; install the extra: pip install 'dashclip-ranker[otel]'") from None
    return SentTraces.to_collector(settings.endpoint, share=settings.share)

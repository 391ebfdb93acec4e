"""Spans of requests by OpenTelemetry. Needs the extra `otel`; nothing imports it unless traces are asked for.

    dashclip.request    request id, status, model version, generation, candidates, variant
        dashclip.decode, dashclip.score, dashclip.encode

They are made after the answer, of times that were taken anyway, and are sent by a thread of the library. Of
several requests that a worker takes at once each has a span; the parts are those of the batch. No id of a
user or product is in them, and no query. A request continues the trace of its `traceparent` (W3C Trace
Context).
"""

from typing import Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serving.wire.reply import ScoreReply

_SERVICE = "dashclip"
_PARTS = ("decode", "score", "encode")


class SentTraces:
    """`Traces` that are sent."""

    def __init__(self, processor: SpanProcessor, *, share: float) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({SERVICE_NAME: _SERVICE}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, endpoint: str, *, share: float) -> Self:
        """To a collector, by OTLP over HTTP."""
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), share=share)

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
        """Make the spans of one request, if its trace is recorded."""
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            "dashclip.request", context=parent, kind=SpanKind.SERVER, start_time=times_ns[0]
        )
        if not span.is_recording():
            return
        span.set_attributes({"http.response.status_code": status, "dashclip.batch": batch})
        if request_id is not None:
            span.set_attribute("dashclip.request_id", request_id)
        if reply is not None:
            span.set_attributes(
                {
                    "dashclip.model_version": reply.model_version,
                    "dashclip.generation": reply.generation,
                    "dashclip.candidates": len(reply.scores_N),
                }
            )
            if reply.variant is not None:
                span.set_attribute("dashclip.variant", reply.variant)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        within = set_span_in_context(span)
        for part, start_ns, end_ns in zip(_PARTS, times_ns[:-1], times_ns[1:], strict=True):
            self._tracer.start_span(f"dashclip.{part}", context=within, start_time=start_ns).end(end_ns)
        span.end(times_ns[-1])

    def close(self) -> None:
        """Send what waits, and end the thread."""
        self._provider.shutdown()

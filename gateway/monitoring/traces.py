"""OpenTelemetry traces: one span for each request, sent to a collector with OTLP over HTTP. Off unless configured.

1. Names of attributes are those of the semantic conventions for generative AI. A span never has a prompt or an answer.
2. The header `traceparent` of the request (W3C Trace Context) names the parent. If it is not sampled, there is no span.
3. OpenTelemetry's thread sends the spans from a queue of bounded length. A collector that does not answer is one
   warning; the oldest spans are lost.
4. The environment variables of OpenTelemetry (OTEL_EXPORTER_OTLP_HEADERS, OTEL_RESOURCE_ATTRIBUTES, ...) apply.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway import __version__
from gateway.errors import ConfigError, cut
from gateway.monitoring.observers import CANCELLED, AnswerRecord
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from opentelemetry.context import Context

_QUEUE = 2048  # spans that wait
_BATCH = 256
_EVERY_MS = 2000.0
_EXPORT_S = 5.0
_END_S = 1.0  # at the end of the gateway, for the spans that wait
_LONGEST_NAME = 100
_OPERATIONS = {"/v1/completions": "text_completion", "/api/generate": "text_completion"}

_log = logging.getLogger(__name__)


class Traces:
    """Sends a span for each record. `ended` is an observer and takes about 50 us.

    Args:
        endpoint: of the collector: "http://127.0.0.1:4318"; the usual path is added if it has none.

    Raises ConfigError if the packages of OpenTelemetry are missing.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            missing = "[traces] endpoint needs OpenTelemetry, which is not installed."
            raise ConfigError(f"{missing} Run: pip install 'npu-gateway[otel]' (in a clone: '.[otel]').") from None
        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + "/v1/traces"
        self._exporter = _reporting(OTLPSpanExporter, endpoint)
        self._processor = BatchSpanProcessor(
            self._exporter, max_queue_size=_QUEUE, schedule_delay_millis=_EVERY_MS, max_export_batch_size=_BATCH
        )
        resource = Resource.create({"service.name": "npu-gateway", "service.version": __version__})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("npu-gateway", __version__)

    def ended(self, record: AnswerRecord) -> None:
        """Queue the span of a request."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes = dict(_attributes(record))
        end_ns = int(record.at * 1e9)
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {record.model or 'unknown model'}",
            context=_parent(record.traceparent),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=end_ns - int(record.total_ms * 1e6),
        )
        if "error.type" in attributes:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(end_ns)

    def close(self) -> None:
        """Send what waits, for at most a second. Call it in a thread."""
        flushing = threading.Thread(target=self._processor.force_flush, daemon=True)
        flushing.start()
        flushing.join(_END_S)
        self._exporter.give_up()
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def _attributes(record: AnswerRecord) -> Iterator[tuple[str, Any]]:
    yield "gen_ai.operation.name", _OPERATIONS.get(record.endpoint, "chat")
    yield "gen_ai.provider.name", "npu-gateway"
    yield "gen_ai.request.model", cut(record.requested, _LONGEST_NAME)
    yield "gen_ai.response.id", record.id
    yield "http.route", record.endpoint
    yield "http.response.status_code", record.status
    if record.model:
        yield "gen_ai.response.model", record.model
        yield "gen_ai.usage.input_tokens", record.prompt_tokens
        yield "gen_ai.usage.output_tokens", record.completion_tokens
        yield "gen_ai.usage.cache_read.input_tokens", record.cached_tokens
    if record.status == 200:
        yield "gen_ai.response.finish_reasons", [record.ending]
    elif record.status != CANCELLED:
        yield "error.type", record.ending
    if record.key:
        yield "npu_gateway.key", record.key
    for name in ("queue_ms", "ttft_ms", "predicted_ttft_ms", "per_token_ms", "device_ms"):
        if (value := getattr(record, name)) is not None:
            yield f"npu_gateway.{name}", value
    if record.target:
        yield "npu_gateway.target", record.target
        yield "npu_gateway.target_reason", record.target_reason
        yield "npu_gateway.attempts", record.attempts
        yield "npu_gateway.hedged", record.hedged
    if record.slow_cause:
        yield "npu_gateway.slow_cause", record.slow_cause


def _parent(traceparent: str) -> Context | None:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}) if traceparent else None


def _reporting(exporter: Any, endpoint: str) -> Any:
    """An exporter of that class with one log line when the collector stops to accept spans, and one when it accepts."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    reason = _LastMessage()
    library = logging.getLogger("opentelemetry")
    library.propagate = False  # it has a line for each batch
    library.handlers[:] = [reason]

    class Reporting(exporter):  # type: ignore[misc]
        has_failed = False
        has_given_up = False

        def export(self, spans: Any) -> Any:
            if self.has_given_up:
                return SpanExportResult.FAILURE
            result = super().export(spans)
            failed = result is not SpanExportResult.SUCCESS
            if failed and not self.has_failed:
                _log.warning("traces are lost until %s accepts them: %s", endpoint, reason.text)
            elif self.has_failed and not failed:
                _log.info("%s accepts traces again", endpoint)
            self.has_failed = failed
            return result

        def give_up(self) -> None:
            """Send nothing more, also what waits for another attempt."""
            self.has_given_up = True
            self.shutdown()

    return Reporting(endpoint=endpoint, timeout=_EXPORT_S)


class _LastMessage(logging.Handler):
    text = "no reason is known"

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "due to timeout" not in message:  # the message before it has the reason
            self.text = escape(cut(message, 300))

"""Spans of real requests, received by a collector of this test over OTLP/HTTP."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.config.file import load_config
from gateway.config.tables import ServerConfig, TracesConfig
from gateway.errors import ConfigError
from gateway.monitoring import traces
from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.traces import Traces
from tests.support.log_lines import log_lines
from tests.support.processes import PATIENCE_S
from tests.support.server import config_of, scripted, serving

SECRET = "my secret plan"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KEY = "a-key-of-24-characters-or-more"
RECORD = AnswerRecord(at=1000.0, id="chatcmpl-1", requested="m", model="m", ending="stop", total_ms=250.0)


class Collector:
    """Accepts spans, or answers with another status."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[bytes] = []
        self.paths: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if outer.status == 200:
                    outer.bodies.append(body)
                    outer.paths.add(self.path)
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Any]:
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies]
        resources = [each for request in requests for each in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.server.shutdown()
    running.server.server_close()
    thread.join()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that wait at the end are sent, however slow the machine is."""
    monkeypatch.setattr(traces, "_END_S", PATIENCE_S)
    monkeypatch.setattr(traces, "_EXPORT_S", PATIENCE_S)


def values(span: Any) -> dict[str, Any]:
    found = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        found[attribute.key] = [each.string_value for each in value.values] if kind == "array_value" else value
    return found


@pytest.mark.usefixtures("patient")
def test_each_request_is_a_span_with_its_parent_and_without_its_prompt(collector: Collector) -> None:
    fault = {"requests": [1], "error": "EngineFailed", "message": "It broke."}
    config = config_of(
        {"m": scripted("The answer.", cached_tokens=1, faults=[fault])},
        ServerConfig(api_keys={"laptop": KEY}),
        traces=TracesConfig(endpoint=collector.url),
    )
    body = {"model": "m", "messages": [{"role": "user", "content": SECRET}]}
    with serving(config) as running, running.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        parent = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        answer = http.post("/v1/chat/completions", json=body, headers=parent).json()
        assert http.post("/v1/completions", json={"model": "m", "prompt": SECRET}).status_code == 503
        not_sampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
        http.post("/v1/chat/completions", json=body, headers=not_sampled)
        http.post("/v1/chat/completions", json=body, headers={"traceparent": "nonsense"})
    first, failed, other = sorted(collector.spans(), key=lambda span: int(span.start_time_unix_nano))
    assert collector.paths == {"/v1/traces"} and SECRET.encode() not in b"".join(collector.bodies)

    assert (first.trace_id.hex(), first.parent_span_id.hex(), first.name, first.kind) == (TRACE, SPAN, "chat m", 2)
    found = values(first)
    assert found["npu_gateway.ttft_ms"] > 0 and first.end_time_unix_nano > first.start_time_unix_nano
    assert {name: value for name, value in found.items() if not name.endswith("_ms")} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "npu-gateway",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 1,
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "npu_gateway.key": "laptop",
    }
    assert (failed.name, failed.status.code, failed.status.message) == ("text_completion m", 2, "It broke")
    assert values(failed)["error.type"] == "engine_failed" and values(failed)["http.response.status_code"] == 503
    assert other.trace_id.hex() != TRACE and not other.parent_span_id


@pytest.mark.usefixtures("patient")
def test_collector_that_refuses_is_one_warning_and_loses_only_spans(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gateway")
    collector.status = 400
    with log_lines() as lines:
        sender = Traces(collector.url + "/")
        for _ in range(3):
            sender.ended(RECORD)
            sender._processor.force_flush()
        assert len(lines) == 1 and "/v1/traces accepts them: " in lines[0] and "400" in lines[0]
        collector.status = 200
        sender.ended(replace(RECORD, at=2000.0))
        sender.close()
    assert lines[1:] == [f"{collector.url}/v1/traces accepts traces again"]
    assert [span.end_time_unix_nano for span in collector.spans()] == [2000 * 10**9]


def test_collector_that_is_not_there_delays_neither_requests_nor_the_end() -> None:
    closed = Collector()
    closed.server.server_close()
    with log_lines() as lines:
        sender = Traces(closed.url)
        for _ in range(5000):
            sender.ended(RECORD)
        sender.close()
    assert len(sender._processor._batch_processor._queue) <= 2048
    assert len(lines) <= 1


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"needs OpenTelemetry.*pip install 'npu-gateway\[otel\]'"):
        Traces("http://127.0.0.1:4318")


def test_endpoint_must_be_a_url(tmp_path: Any) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[traces]\nendpoint = "127.0.0.1:4318"\n[models.m]\nengine = "scripted"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[traces\] endpoint: .* such as 'http"):
        load_config(file, {})

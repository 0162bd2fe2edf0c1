"""What the log and the metrics say about requests that no model gets, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from gateway.config.tables import ServerConfig
from gateway.errors import BodyTimeout
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.refusals import RefusalLog
from tests.support.log_lines import log_lines
from tests.support.server import Running, config_of, scripted, serving, wait_until

KEY = "a-key-of-24-characters-or-more"
SECRET = "my secret plan"
POST, CHAT = "POST", "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    config = ServerConfig(api_keys={"laptop": KEY}, max_body_bytes=10_000)
    with serving(config_of({"m": scripted("Hello.")}, config)) as running:
        yield running


@pytest.fixture
def lines() -> Iterator[list[str]]:
    with log_lines(logger="gateway.monitoring.refusals") as found:
        yield found


def ask(server: Running, method: str, path: str, *, times: int = 2, **options: object) -> None:
    headers = {"Authorization": f"Bearer {KEY}", **options.pop("headers", {})}  # type: ignore[dict-item]
    with server.http() as client:
        for _ in range(times):
            client.request(method, path, headers=headers, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "options", "line"),
    [
        (
            "GET",
            "/v1/models",
            {"headers": {"Authorization": ""}},
            "401 GET /v1/models from 127.0.0.1: You did not provide an API key: send it as 'Authorization: Bearer "
            "KEY'; the keys are in [server] api_keys of config.toml, and those of [state] in `npu-gateway keys list`",
        ),
        (
            "GET",
            "/v1/models",
            {"headers": {"Authorization": f"Bearer {SECRET}"}},
            "401 GET /v1/models from 127.0.0.1: Incorrect API key provided; "
            "the keys are in [server] api_keys of config.toml, and those of [state] in `npu-gateway keys list`",
        ),
        (
            "GET",
            "/healthz",
            {"headers": {"Host": "npu.example:8400"}},
            "403 GET /healthz from 127.0.0.1: The host name 'npu.example' is not in 'server.allowed_hosts' of the "
            'gateway\'s config. To allow it, add to config.toml: [server] allowed_hosts = ["npu.example"]',
        ),
        (
            "GET",
            "/healthz",
            {"headers": {"Origin": "http://localhost:3000"}},
            "403 GET /healthz from 127.0.0.1: The origin 'http://localhost:3000' is not in 'server.cors_origins' of "
            'the gateway\'s config. To allow it, add to config.toml: [server] cors_origins = ["http://localhost:3000"]',
        ),
        (
            "GET",
            "/v2/models",
            {},
            "404 GET /v2/models from 127.0.0.1: Unknown path: GET /v2/models. The API is under /v1",
        ),
        (
            "POST",
            "/api/pull",
            {},
            "404 POST /api/pull from 127.0.0.1: This gateway does not change its models for clients. On its machine, "
            "use `npu-gateway pull`",
        ),
        (
            "GET",
            CHAT,
            {},
            f"405 GET {CHAT} from 127.0.0.1: Method GET is not allowed on {CHAT}",
        ),
        (
            POST,
            CHAT,
            {"json": {"model": "m", "messages": [{"role": "user", "content": SECRET}], "temperature": SECRET}},
            f"400 POST {CHAT} from 127.0.0.1: ",
        ),
        (
            POST,
            CHAT,
            {"json": {"model": "m", "messages": [{"role": SECRET, "content": "hello"}]}},
            f"400 POST {CHAT} from 127.0.0.1: ",
        ),
        (
            POST,
            CHAT,
            {"content": b"x" * 20_000},
            f"413 POST {CHAT} from 127.0.0.1: The request body is larger than 'server.max_body_bytes' of the gateway "
            "allows",
        ),
    ],
)
def test_refusal_is_one_line_with_its_reason(
    server: Running, lines: list[str], method: str, path: str, options: dict[str, object], line: str
) -> None:
    ask(server, method, path, **options)  # type: ignore[arg-type]
    assert len(lines) == 1 and lines[0].startswith(line), lines
    assert KEY not in lines[0] and SECRET not in lines[0]


def test_client_that_speaks_https_is_named(server: Running, lines: list[str]) -> None:
    with log_lines(logger="uvicorn") as of_uvicorn:
        for _ in range(2):
            assert b"400 Bad Request" in server.exchange(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    assert lines == ["127.0.0.1 spoke HTTPS to this HTTP port; use http:// in its address of the gateway"]
    assert not of_uvicorn


def test_bytes_that_are_not_http_are_one_line(server: Running, lines: list[str]) -> None:
    for request in (b"\x00\x01\r\n\r\n", b"HELO gateway\r\n\r\n"):
        assert b"400 Bad Request" in server.exchange(request)
    assert lines == ["127.0.0.1 sent something that is not HTTP/1.1"]


def test_answered_and_recorded_requests_have_no_line(server: Running, lines: list[str]) -> None:
    ask(server, "GET", "/v1/models")
    ask(server, POST, CHAT, json={"model": "unknown", "messages": [{"role": "user", "content": SECRET}]})
    assert not [line for line in lines if "ASGI" in line]


def test_replies_are_counted_by_route_and_status(server: Running) -> None:
    ask(server, "GET", "/healthz", times=3)
    ask(server, "GET", "/v1/models/m")
    ask(server, "GET", "/v1/models/" + SECRET)
    ask(server, "GET", "/" + SECRET)
    with server.http() as client:
        text = client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("gateway_http_responses_total"))
    name = 'gateway_http_responses_total{path="%s",status="%s"}'
    assert float(counts[name % ("/healthz", 200)]) >= 3
    assert float(counts[name % ("/v1/models/{model_id}", 404)]) >= 2
    assert float(counts[name % ("(unknown path)", 404)]) >= 2
    assert SECRET not in text


def test_slow_and_pipelining_clients_are_one_line_each(lines: list[str]) -> None:
    log = RefusalLog(Metrics(), clock=lambda: 0.0)
    for port in range(3):
        log.no_request(("10.0.0.7", port), b"GE", BodyTimeout("The request head did not arrive within 30 seconds."))
        log.connection_closed(("10.0.0.7", port), "it read nothing for 60 s")
    assert lines == [
        "10.0.0.7: The request head did not arrive within 30 seconds",
        "the connection of 10.0.0.7 was closed: it read nothing for 60 s",
    ]


def test_full_table_of_files_is_one_line(lines: list[str]) -> None:
    log = RefusalLog(Metrics(), clock=lambda: 0.0)
    for _ in range(1000):
        log.no_connection(OSError(24, "Too many open files"))
    assert lines == ["the system allows no more open files, so new connections wait: Too many open files"]


def test_client_that_reads_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.sse.SEND_TIMEOUT_S", 0.1)
    body = b'{"model": "m", "stream": true, "max_tokens": 1000000, "messages": [{"role": "user", "content": "x"}]}'
    words = scripted("word " * 50, repeat=True, context_length=10_000_000)
    with log_lines(logger="") as lines, serving(config_of({"m": words})) as server, closing(server.connect()) as client:
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        )
        client.sendall(body)
        assert client.recv(9) == b"HTTP/1.1 "
        wait_until(lambda: not server.server.server_state.tasks, "the request was not cancelled")
    assert not [line for line in lines if "ASGI" in line]

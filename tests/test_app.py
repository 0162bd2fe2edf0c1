"""The whole server: who is let in, what every response carries, and how it stops."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest
from litestar import Request, exceptions, get

from gateway.app import bind, create_app
from gateway.config import Config, ServerConfig
from gateway.errors import ConfigError
from gateway.routes.error_handler import as_gateway_error
from tests.support.server import Running, config_of, scripted, serving

ROOT = Path(__file__).parent.parent
PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
OPEN_PATHS = ("/", "/healthz", "/health", "/readyz")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    config = config_of({"m": scripted("Hello.")}, ServerConfig(max_body_bytes=100_000))
    with serving(config) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


# ---- errors


def error_of(response: httpx.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    [(name, error)] = response.json().items()
    assert name == "error" and error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and isinstance(error["type"], str)
    return dict(error)


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/nowhere", "/v1/chat", "/../etc/passwd", "/%00"])
def test_unknown_path_is_404_json(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("DELETE", PATH), ("POST", "/v1/models"), ("PUT", "/")])
def test_wrong_method_is_405_json(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert "allow" in response.headers


def test_large_body_is_413_announced_or_chunked(server: Running, http: httpx.Client) -> None:
    for content in (b" " * 100_001, iter([b" " * 50_000] * 3)):
        response = http.post(PATH, content=content)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    assert http.post(PATH, content=b" " * 100_000).status_code == 400
    with closing(server.connect()) as connection:  # a body that only says that it is large
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "request_",
    [
        b"NONSENSE\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_the_server_lives(server: Running, http: httpx.Client, request_: bytes) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        assert b" 200 " not in connection.recv(1000)[:20]
    assert http.get("/healthz").status_code == 200


def test_failure_of_our_own_is_a_500_that_tells_only_the_log(caplog: pytest.LogCaptureFixture) -> None:
    @get("/broken")
    async def broken() -> None:
        raise OSError("/secret/path")

    with serving(config_of({"m": scripted("Hello.")})) as server, server.http() as http:
        server.app.register(broken)
        response = http.get("/broken")
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "secret" not in response.text and "Traceback" not in response.text
    assert "/secret/path" in caplog.text
    assert response.headers["x-request-id"].removeprefix("req_") in caplog.text


def test_every_exception_of_litestar_is_mapped_to_its_status() -> None:
    kinds = [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, exceptions.HTTPException)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        if kind.status_code < 500:
            assert as_gateway_error(_request(), kind("words")).status == kind.status_code, kind


def _request() -> Any:
    return Request({"type": "http", "method": "GET", "path": "/x", "headers": [], "state": {}})  # type: ignore[typeddict-item]


def test_every_response_has_its_own_request_id(http: httpx.Client) -> None:
    responses = [
        http.get("/healthz"),
        http.get("/nowhere"),
        http.get(PATH),
        http.post(PATH, content=b"{"),
        http.post(PATH, json=CHAT),
        http.post(PATH, json={**CHAT, "stream": True}),
        http.post(PATH, content=b" " * 100_001),
    ]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == len(ids) and all(id.startswith("req_") for id in ids)
    assert responses[4].json()["id"] == ids[4].replace("req_", "chatcmpl-")


def test_sdk_exposes_the_request_id(server: Running) -> None:
    with server.openai() as openai, pytest.raises(sdk.NotFoundError) as caught:
        openai.chat.completions.create(**{**CHAT, "model": "other"})
    assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")


def test_keep_alive(server: Running) -> None:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
        connection.connect()
        used = connection.sock
        for path in ("/healthz", "/nowhere", "/healthz"):
            connection.request("GET", path)
            connection.getresponse().read()
        assert used is not None and connection.sock is used


def test_small_answers_are_sent_at_once(http: httpx.Client) -> None:
    took_s = []
    for _ in range(40):
        begun = time.monotonic()
        http.get("/healthz")
        took_s.append(time.monotonic() - begun)
    # 0.04 and more where the answers wait for the client's delayed ACK; those to the first requests never do.
    assert min(took_s[20:]) < 0.03


def test_stalled_body_does_not_block_others(server: Running, http: httpx.Client) -> None:
    stalled = [server.connect() for _ in range(50)]
    for connection in stalled:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
    begun = time.monotonic()
    assert http.post(PATH, json=CHAT).status_code == 200
    assert time.monotonic() - begun < 1
    for connection in stalled:
        connection.close()


def test_stalled_body_is_408_in_the_end_and_the_connection_closed(
    monkeypatch: pytest.MonkeyPatch, server: Running
) -> None:
    monkeypatch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.2)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    assert server.exchange(head.encode()).startswith(b"HTTP/1.1 408")


# ---- who is let in


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    server = ServerConfig(api_keys={"anna": "sk-anna", "bert": "sk-bért"}, cors_origins=("https://chat.example",))
    with serving(config_of({"m": scripted("Hello.")}, server), loaded=False) as running:
        running.wait_until_tried()
        yield running


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer sk-ann"},
        {"authorization": "Bearer sk-anna2"},
        {"authorization": "Basic sk-anna"},
        {"x-api-key": "wrong"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("GET", "/v1/models"), ("GET", "/metrics")])
def test_without_the_right_key_401(locked: Running, headers: dict[str, str], method: str, path: str) -> None:
    with locked.http() as http:
        response = http.request(method, path, headers=headers, json=CHAT)
    assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-anna"},
        {"authorization": "bearer  sk-anna"},
        {"x-api-key": "sk-anna"},
        {"authorization": "Bearer sk-bért".encode()},
    ],
)
def test_any_of_the_keys_opens(locked: Running, headers: dict[str, Any]) -> None:
    with locked.http() as http:
        assert http.post(PATH, json=CHAT, headers=headers).status_code == 200


def test_sdk_raises_authentication_error(locked: Running) -> None:
    with locked.openai(api_key="wrong") as openai, pytest.raises(sdk.AuthenticationError) as caught:
        openai.models.list()
    assert caught.value.code == "invalid_api_key"
    with locked.openai(api_key="sk-anna") as openai:
        assert [model.id for model in openai.models.list()] == ["m"]


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_health_needs_no_key(locked: Running, path: str) -> None:
    with locked.http() as http:
        assert http.get(path).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_local_host_names_are_let_in(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io"])
def test_rebound_host_names_are_403(http: httpx.Client, host: str) -> None:
    response = http.get("/v1/models", headers={"host": host})
    assert (response.status_code, error_of(response)["code"]) == (403, "permission_denied")


def test_allowed_hosts_come_from_the_config() -> None:
    for allowed in (("npu.lan",), ("*",)):
        config = config_of({"m": scripted("Hi")}, ServerConfig(allowed_hosts=allowed))
        with serving(config) as server, server.http() as http:
            assert http.get("/v1/models", headers={"host": "npu.lan:80"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null"])
def test_pages_of_other_origins_are_refused(http: httpx.Client, origin: str) -> None:
    response = http.post(PATH, json=CHAT, headers={"origin": origin})
    assert (response.status_code, error_of(response)["code"]) == (403, "permission_denied")
    assert "access-control-allow-origin" not in response.headers


def test_own_pages_and_editors_are_let_in(server: Running, http: httpx.Client) -> None:
    for origin in (server.url, "vscode-webview://abc", "chrome-extension://abc", "app://obsidian.md"):
        assert http.post(PATH, json=CHAT, headers={"origin": origin}).status_code == 200


def test_cors_is_off_unless_configured(http: httpx.Client) -> None:
    headers = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.options(PATH, headers=headers).headers


def test_preflight_of_a_configured_origin(locked: Running) -> None:
    headers = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    with locked.http() as http:
        response = http.options(PATH, headers=headers)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-os" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_answers_and_refusals_to_a_configured_origin_can_be_read(locked: Running) -> None:
    origin = {"origin": "https://chat.example"}
    with locked.http() as http:
        answer = http.post(PATH, json=CHAT, headers={**origin, "authorization": "Bearer sk-anna"})
        refusal = http.post(PATH, json=CHAT, headers=origin)
    assert (answer.status_code, refusal.status_code) == (200, 401)
    for response in (answer, refusal):
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]


# ---- life


def test_occupied_port_is_a_config_error() -> None:
    with bind(ServerConfig(port=0)) as taken, pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        bind(ServerConfig(port=taken.getsockname()[1]))


def test_app_without_models_answers() -> None:
    with serving(Config(server=ServerConfig(port=0))) as server, server.http() as http:
        assert http.get("/v1/models").json() == {"object": "list", "data": []}
        assert http.get("/readyz").status_code == 503
        assert error_of(http.post(PATH, json=CHAT))["code"] == "model_not_found"


def test_making_an_app_starts_nothing() -> None:
    create_app(config_of({"m": scripted("Hi", load_error="started")}))


SERVE = """
from gateway import app
from gateway.app import bind, create_app, serve
from gateway.config import BreakerConfig, Config, ModelConfig, ServerConfig
app._TICK_S = 3600.0  # nothing but the signal may end the pause
model = ModelConfig(engine="scripted", script={"replies": ["a b c d e f g h"], "token_s": 0.1})
config = Config(server=ServerConfig(port=0), breaker=BreakerConfig(enabled=False), models={"m": model})
with bind(config.server) as listener:
    port = listener.getsockname()[1]
    serve(create_app(config), config.server, listener=listener, on_started=lambda: print(port, flush=True))
print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process of its own console cannot be sent a signal")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_stream_finish_and_exits_with_success(sig: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as http:
            while http.get("/readyz").status_code != 200:
                time.sleep(0.02)
            with http.stream("POST", PATH, json={**CHAT, "stream": True}) as response:
                text = response.iter_text()
                received = next(text)
                process.send_signal(sig)
                received += "".join(text)
        assert received.endswith("data: [DONE]\n\n")
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
        assert process.wait(10) == 0
        assert process.stdout.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="a process of its own console cannot be sent a signal")
def test_a_signal_wakes_a_server_that_nobody_asks() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            time.sleep(0.5)  # until it sleeps
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()

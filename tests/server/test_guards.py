"""API keys, host names and web origins."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai as sdk
import pytest

from gateway.config.tables import ServerConfig, StateConfig
from gateway.lanes.limits.headers import ANTHROPIC_HEADERS, OPENAI_HEADERS
from gateway.state.sqlite import SqliteDatabase
from tests.support.postgres import patient
from tests.support.server import PATIENCE_S, Running, config_of, error_of, scripted, serving

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
OPEN_PATHS = ("/", "/healthz", "/health", "/readyz")


@pytest.fixture(scope="module")
def with_keys() -> Iterator[Running]:
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
def test_missing_or_wrong_key_is_401(with_keys: Running, headers: dict[str, str], method: str, path: str) -> None:
    with with_keys.http() as http:
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
def test_each_configured_key_is_accepted(with_keys: Running, headers: dict[str, Any]) -> None:
    with with_keys.http() as http:
        assert http.post(PATH, json=CHAT, headers=headers).status_code == 200


def test_configured_key_waits_for_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, reads, may_answer = SqliteDatabase(tmp_path / "state.sqlite"), threading.Semaphore(0), threading.Event()

    def hangs(*_: object) -> list[Any]:
        reads.release()
        may_answer.wait(PATIENCE_S)
        return []

    monkeypatch.setattr(database, "read", hangs)
    config = config_of(
        {"m": scripted("Hello.")}, ServerConfig(api_keys={"anna": "sk-anna"}), state=StateConfig(keys=True)
    )
    with (
        patient(),
        serving(config, database=database) as gateway,
        gateway.http() as http,
        gateway.http() as waiting,
        ThreadPoolExecutor(1) as pool,
    ):
        other = pool.submit(waiting.get, "/v1/models", headers={"x-api-key": "other"})
        try:
            assert reads.acquire(timeout=PATIENCE_S)
            assert http.get("/v1/models", headers={"x-api-key": "sk-anna"}).status_code == 200
            assert not other.done()
        finally:
            may_answer.set()
        assert other.result(PATIENCE_S).status_code == 401
        assert not reads.acquire(blocking=False)


def test_sdk_raises_authentication_error_for_a_wrong_key(with_keys: Running) -> None:
    with with_keys.openai(api_key="wrong") as openai, pytest.raises(sdk.AuthenticationError) as caught:
        openai.models.list()
    assert caught.value.code == "invalid_api_key"
    with with_keys.openai(api_key="sk-anna") as openai:
        assert [model.id for model in openai.models.list()] == ["m"]


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_root_and_health_need_no_key(with_keys: Running, path: str) -> None:
    with with_keys.http() as http:
        assert http.get(path).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_local_host_names_are_accepted(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "192.168.1.5:8000",
        "10.0.0.1",
        "0.0.0.0:8000",
        "[fe80::1]:8000",
        "[fe80::1%25eth0]",
        "host.docker.internal:8000",
        "HOST.docker.internal",
        "gateway.docker.internal",
        "host.containers.internal:8000",
        "host.lima.internal",
        "app.localhost:8000",
        socket.gethostname(),
        f"{socket.gethostname()}.local:8000",
    ],
)
def test_address_container_host_and_own_name_are_accepted(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_address_of_the_machine_needs_a_key_and_no_list() -> None:
    server = ServerConfig(host="0.0.0.0", api_keys={"anna": "sk-anna"})
    with serving(config_of({"m": scripted("Hi")}, server)) as running, running.http() as http:
        answers = [
            http.get("/v1/models", headers={"host": "192.168.1.5:8000", **key}).status_code
            for key in ({"authorization": "Bearer sk-anna"}, {})
        ]
    assert answers == [200, 401]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io"])
def test_unknown_host_names_are_403(http: httpx.Client, host: str) -> None:
    response = http.get("/v1/models", headers={"host": host})
    assert (response.status_code, error_of(response)["code"]) == (403, "permission_denied")


def test_allowed_hosts_of_the_config_are_accepted() -> None:
    for allowed in (("npu.lan",), ("*",)):
        config = config_of({"m": scripted("Hi")}, ServerConfig(allowed_hosts=allowed))
        with serving(config) as server, server.http() as http:
            assert http.get("/v1/models", headers={"host": "npu.lan:80"}).status_code == 200


@pytest.fixture(scope="module")
def named() -> Iterator[Running]:
    hosts = ("MyLaptop", "npu.lan.", "münchen.example", "fe80::A")
    server = ServerConfig(allowed_hosts=hosts, cors_origins=("https://Chat.Example:443/",))
    with serving(config_of({"m": scripted("Hi")}, server)) as running:
        yield running


SPELLINGS = ["mylaptop", "MyLaptop", "MYLAPTOP:8000", "mylaptop.", "MyLaptop.:80", "npu.lan", "NPU.lan.", "127.0.0.1"]
SPELLINGS += ["xn--mnchen-3ya.example", "XN--MNCHEN-3YA.example:1", "[fe80::a]", "[FE80:0:0:0:0:0:0:A]:8000"]
SPELLINGS += ["localhost:8000", "LocalHost."]  # always, without a line in the list


@pytest.mark.parametrize("host", SPELLINGS)
def test_every_spelling_of_an_allowed_host_is_accepted(named: Running, host: str) -> None:
    with named.http() as http:
        assert http.get("/v1/models", headers={"host": host}).status_code == 200


OTHERS = [
    "mylaptop.evil.example",
    "evil.mylaptop",
    "mylaptop:8000:80",
    "my.laptop",
    "fe80::b",
    "[fe80::bad::b]",
    "300.1.1.1",
    "localhost.example",
    "internal",
    "evil.docker.internal",
    "mylaptop..",
    "*",
]


@pytest.mark.parametrize("host", [*OTHERS, "x" * 9000])
def test_other_host_than_the_allowed_ones_is_403_with_a_short_message(named: Running, host: str) -> None:
    with named.http() as http:
        response = http.get("/v1/models", headers={"host": host})
    assert response.status_code == 403
    assert len(error_of(response)["message"]) < 250


@pytest.mark.parametrize(
    "origin", ["https://chat.example", "HTTPS://evil.example", "Null", "https://chat.example.evil"]
)
def test_configured_origin_matches_in_its_usual_spelling_only(named: Running, origin: str) -> None:
    with named.http() as http:
        status = http.post(PATH, json=CHAT, headers={"origin": origin}).status_code
    assert status == (200 if origin == "https://chat.example" else 403)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null"])
def test_unlisted_web_origins_are_403(http: httpx.Client, origin: str) -> None:
    response = http.post(PATH, json=CHAT, headers={"origin": origin})
    assert (response.status_code, error_of(response)["code"]) == (403, "permission_denied")
    assert "access-control-allow-origin" not in response.headers


def test_own_pages_and_editor_origins_are_accepted(server: Running, http: httpx.Client) -> None:
    for origin in (server.url, "vscode-webview://abc", "chrome-extension://abc", "app://obsidian.md"):
        assert http.post(PATH, json=CHAT, headers={"origin": origin}).status_code == 200


def test_preflight_without_cors_config_has_no_cors_headers(http: httpx.Client) -> None:
    headers = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in http.options(PATH, headers=headers).headers


def test_preflight_of_a_configured_origin_is_allowed(with_keys: Running) -> None:
    headers = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    with with_keys.http() as http:
        response = http.options(PATH, headers=headers)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-os" in response.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in response.headers


def test_replies_and_errors_to_a_configured_origin_have_cors_headers(with_keys: Running) -> None:
    origin = {"origin": "https://chat.example"}
    with with_keys.http() as http:
        answer = http.post(PATH, json=CHAT, headers={**origin, "authorization": "Bearer sk-anna"})
        refusal = http.post(PATH, json=CHAT, headers=origin)
    assert (answer.status_code, refusal.status_code) == (200, 401)
    for response in (answer, refusal):
        assert response.headers["access-control-allow-origin"] == "https://chat.example"
        exposed = response.headers["access-control-expose-headers"]
        assert all(name in exposed for name in ("x-request-id", *OPENAI_HEADERS, *ANTHROPIC_HEADERS))

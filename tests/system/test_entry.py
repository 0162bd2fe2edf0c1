"""Access control and limits of the whole server: address, hosts, origins, keys, sizes."""

from __future__ import annotations

import ast
import hmac
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from litestar import Litestar

from gateway import cli
from gateway.config.tables import ServerConfig
from gateway.routes.openai_api.parse_completions import MAX_PROMPTS
from gateway.routes.wire import MAX_CHOICES, MAX_MESSAGES, MAX_STOPS, MAX_TOOLS
from gateway.sampling import MAX_BIASES
from gateway.server.body import MAX_SEPARATORS, MAX_VALUES
from gateway.server.server import bind
from tests.support.paths import ROOT
from tests.support.server import Running, config_of, scripted, serving

KEYS = {"anna": "sk-anna-0123456789", "bert": "sk-bert-0123456789", "carl": "sk-carl-0123456789"}
OPEN_PATHS = {"/", "/healthz", "/health", "/readyz", "/schema", "/openapi.json", "/web/{file_path}"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def routes(app: Litestar) -> Iterator[tuple[str, str]]:
    """Every (method, path) of the app, with example values for path parameters."""
    for route in app.routes:
        for method in sorted(getattr(route, "methods", ())):
            if method != "OPTIONS":
                yield method, route.path_format.replace("{response_id}", "x").replace("{model_id}", "m")


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serving(config_of({"m": scripted("Hello.")}, ServerConfig(api_keys=KEYS)), loaded=False) as running:
        yield running


# ---- the address


def test_default_address_is_loopback() -> None:
    with bind(ServerConfig(port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_serve_refuses_other_addresses_without_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NPU_GATEWAY_API_KEY", raising=False)
    assert cli.main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "without a key" in capsys.readouterr().err


# ---- the routes


def test_every_route_refuses_a_rebound_host_name() -> None:
    with serving(config_of({"m": scripted("Hello.")})) as server, server.http() as http:
        found = list(routes(server.app))
        assert len(found) > 20
        for method, path in found:
            response = http.request(method, path, headers={"host": "evil.example"})
            assert response.status_code == 403, (method, path)


def test_every_route_except_the_open_ones_needs_a_key(locked: Running) -> None:
    with locked.http() as http:
        for method, path in routes(locked.app):
            response = http.request(method, path)
            assert (response.status_code == 401) == (path not in OPEN_PATHS), (method, path, response.status_code)


@pytest.mark.parametrize("preflight", [True, False])
def test_any_origin_never_allows_credentials(preflight: bool) -> None:
    with serving(config_of({"m": scripted("Hi")}, ServerConfig(cors_origins=("*",)))) as server, server.http() as http:
        headers = {"origin": "https://page.example", "cookie": "a=b"}
        if preflight:
            headers["access-control-request-method"] = "POST"
        response = http.request("OPTIONS" if preflight else "POST", "/v1/chat/completions", headers=headers, json=CHAT)
    assert response.headers["access-control-allow-origin"] in ("*", "https://page.example")
    assert "access-control-allow-credentials" not in response.headers


# ---- the keys


@pytest.mark.parametrize("key", [*KEYS.values(), "sk-anna", "wrong", "\xe9", "sk-anna-0123456789x"])
def test_every_key_is_compared_in_constant_time(locked: Running, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    compared: list[bytes] = []
    plain = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return plain(a, b)

    monkeypatch.setattr("gateway.server.guards.hmac.compare_digest", counted)
    with locked.http() as http:
        response = http.get("/v1/models", headers={"authorization": f"Bearer {key}".encode("latin-1")})
    assert response.status_code == (200 if key in KEYS.values() else 401)
    assert compared == [each.encode() for each in KEYS.values()]


def test_no_key_is_logged_or_returned(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """All loggers at DEBUG, with valid and invalid keys in every header that can have one."""
    secret, wrong = KEYS["anna"], "sk-mistyped-42"
    answers = []
    server_config = ServerConfig(api_keys=KEYS, log_prompts=True)
    with (
        caplog.at_level(logging.DEBUG),
        serving(config_of({"m": scripted("Hello.")}, server_config), loaded=False) as server,
    ):
        logging.getLogger("gateway").setLevel(logging.DEBUG)
        with server.http() as http:
            for key in (secret, wrong):
                for headers in (
                    {"authorization": f"Bearer {key}"},
                    {"authorization": f"Basic {key}"},
                    {"x-api-key": key},
                ):
                    answers += [
                        http.post("/v1/chat/completions", json=CHAT, headers=headers).text,
                        http.post("/v1/chat/completions", content=b"{", headers=headers).text,
                        http.get("/metrics", headers=headers).text,
                    ]
        answers.append(server.exchange(f"GET / HTTP/1.1\r\nAuthorization {secret}\r\n\r\n".encode()).decode())
    written = caplog.text + capfd.readouterr().err + "".join(answers)
    for key in (*KEYS.values(), wrong):
        assert key not in "".join(
            line for line in written.splitlines() if "httpcore" not in line and "httpx" not in line
        )


# ---- the data


def test_nothing_is_unpickled() -> None:
    """Unpickling can run code. Frames on the pipes to workers are msgpack, and files are read as data."""
    forbidden = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in [*(ROOT / "gateway").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = {name.split(".")[0] for name in names}
            assert not used & forbidden, file
            assert "torch" not in used or file.parent.name == "scripts", file  # some compute test data with it
            if isinstance(node, ast.Attribute) and node.attr == "recv":
                raise AssertionError(f"{file}: Connection.recv unpickles; use recv_bytes")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, file


TURN = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "f"}}
OPENAI, ANTHROPIC, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/chat"
OVER_LIMITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "messages": (OPENAI, {"messages": [TURN] * (MAX_MESSAGES + 1)}, "messages"),
    "tools": (OPENAI, {"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
    "a long stop": (OPENAI, {"stop": "x" * 5_000}, "stop"),
    "biases": (OPENAI, {"logit_bias": {str(i): 1 for i in range(MAX_BIASES + 1)}}, "logit_bias"),
    "choices": (OPENAI, {"guided_choice": ["a"] * (MAX_CHOICES + 1)}, "guided_choice"),
    "a large schema": (OPENAI, {"json_schema": {"enum": [0] * (MAX_VALUES + 1)}}, "json_schema"),
    "a large tool": (
        OPENAI,
        {"tools": [{"function": {"name": "f", "parameters": {"enum": [0] * (MAX_VALUES + 1)}}}]},
        "tools.0.function.parameters",
    ),
    "values": (OPENAI, {"metadata": [0] * (MAX_SEPARATORS + 1)}, ""),
    "prompts": ("/v1/completions", {"prompt": ["a"] * (MAX_PROMPTS + 1)}, "prompt"),
    "Anthropic's messages": (ANTHROPIC, {"max_tokens": 1, "messages": [TURN] * (MAX_MESSAGES + 1)}, ""),
    "Anthropic's stops": (ANTHROPIC, {"max_tokens": 1, "stop_sequences": ["a"] * (MAX_STOPS + 1)}, ""),
    "Ollama's messages": (OLLAMA, {"messages": [TURN] * (MAX_MESSAGES + 1)}, ""),
    "Ollama's stops": (OLLAMA, {"options": {"stop": ["a"] * (MAX_STOPS + 1)}}, ""),
    "items": ("/v1/responses", {"input": [TURN] * (MAX_MESSAGES + 1)}, "input"),
}


@pytest.mark.parametrize("limit", OVER_LIMITS)
def test_request_over_a_limit_is_refused(limit: str) -> None:
    path, fields, param = OVER_LIMITS[limit]
    with serving(config_of({"m": scripted("Hello.")})) as server, server.http() as http:
        response = http.post(path, json={**CHAT, **fields})
    assert response.status_code == 400, response.text[:200]
    if param:
        assert response.json()["error"]["param"] == param

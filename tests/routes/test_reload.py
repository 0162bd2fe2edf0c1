"""POST /gateway/reload: only with the token and from this machine; then the guards, the log and the limits follow."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.app import create_app
from gateway.config.file import load_config
from gateway.lanes.reload import watcher
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.store import UsageStore
from gateway.pull.watch import ConfigSource
from gateway.state.sqlite import SqliteDatabase
from tests.support.server import Running, config_of, error_of, scripted, serving

TOKEN = {"x-stop-token": "t-1"}
MODEL = '[models.main]\nengine = "scripted"\nscript = { replies = ["old"] }\n'
CHAT = {"model": "main", "messages": [{"role": "user", "content": "x"}]}


class Served:
    def __init__(self, running: Running, file: Path) -> None:
        self.running = running
        self.file = file
        self.http = running.http()

    def write(self, text: str) -> httpx.Response:
        self.file.write_text(text, encoding="utf-8")
        return self.http.post("/gateway/reload", headers=TOKEN)

    def chat(self, **options: str) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=CHAT, headers=options)


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> UsageHistory:
    return UsageHistory(UsageStore(SqliteDatabase(tmp_path_factory.mktemp("usage") / "state.sqlite"), 30))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, usage: UsageHistory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("reload") / "config.toml"
    file.write_text(f"[server]\nport = 0\n{MODEL}", encoding="utf-8")
    config = load_config(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watcher, "_INTERVAL_S", 3600.0)  # it would add new tables by itself
        with serving(config, source=ConfigSource(file, {}, config), stop_token="t-1", usage=usage) as running:
            served = Served(running, file)
            with served.http:
                yield served


def test_models_and_settings_follow_the_file(server: Served, usage: UsageHistory) -> None:
    text = f"[server]\nport = 1\n[log]\nlevel = 'warning'\n[usage]\ndays = 3\n{MODEL.replace('old', 'new')}"
    reply = server.write(text + '[models.late]\nengine = "scripted"\n')
    assert (reply.status_code, reply.json()) == (
        200,
        {
            "added": ["late"],
            "removed": [],
            "changed": {"main": ["script"]},
            "applied": ["log.level", "usage.days"],
            "restart": ["server.port"],
        },
    )
    assert server.chat().json()["choices"][0]["message"]["content"] == "new"
    assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == ["main", "late"]
    assert logging.getLogger("gateway").level == logging.WARNING and usage.store.days == 3
    reply = server.write(f"[server]\nport = 0\n[log]\nlevel = 'info'\n{MODEL}")
    assert reply.json()["removed"] == ["late"] and reply.json()["restart"] == []
    reply = server.http.post("/v1/chat/completions", json={**CHAT, "model": "late"})
    assert reply.status_code == 404 and "there is main" in error_of(reply)["message"]


def test_keys_count_at_once(server: Served) -> None:
    assert "securitySchemes" in server.http.get("/schema").json()["components"]
    server.write(f'[server]\nport = 0\napi_keys = {{ anna = "a-long-random-text" }}\n{MODEL}')
    assert server.chat().status_code == 401
    assert server.chat(authorization="Bearer a-long-random-text").status_code == 200
    assert server.http.get("/schema").json()["components"]["securitySchemes"]
    keys = server.file.with_name("keys.txt")
    keys.write_text("bert b-long-random-text\n", encoding="utf-8")
    server.write(f'[server]\nport = 0\napi_keys_file = "keys.txt"\n{MODEL}')
    assert server.chat(authorization="Bearer a-long-random-text").status_code == 401
    assert server.chat(authorization="Bearer b-long-random-text").status_code == 200
    keys.write_text("carl c-long-random-text\n", encoding="utf-8")
    reply = server.http.post("/gateway/reload", headers=TOKEN)
    assert reply.json()["applied"] == ["server.api_keys"]
    assert server.chat(authorization="Bearer c-long-random-text").status_code == 200
    server.write(f"[server]\nport = 0\n{MODEL}")
    assert server.chat().status_code == 200


def test_hosts_and_origins_count_at_once(server: Served) -> None:
    shown = {"host": "npu.lan", "origin": "https://chat.example"}
    assert server.chat(host="npu.lan").status_code == server.chat(origin="https://chat.example").status_code == 403
    origins = 'allowed_hosts = ["npu.lan"]\ncors_origins = ["https://chat.example"]\n'
    server.write(f"[server]\nport = 0\n{origins}{MODEL}")
    reply = server.chat(**shown)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://chat.example"
    preflight = server.http.options("/v1/models", headers={**shown, "access-control-request-method": "GET"})
    assert preflight.status_code == 204
    server.write(f"[server]\nport = 0\n{MODEL}")
    assert server.chat(host="npu.lan").status_code == server.chat(origin="https://chat.example").status_code == 403
    assert "access-control-allow-origin" not in server.chat().headers


def test_longest_body_counts_at_once(server: Served) -> None:
    server.write(f"[server]\nport = 0\nmax_body_bytes = 20\n{MODEL}")
    reply = server.chat()
    assert reply.status_code == 413 and "server.max_body_bytes" in error_of(reply)["message"]
    parts = iter([b'{"model": "main",', b' "messages": []}'])  # without a length
    assert server.http.post("/v1/chat/completions", content=parts).status_code == 413
    server.write(f"[server]\nport = 0\n{MODEL}")
    assert server.chat().status_code == 200


def test_limits_count_at_once(server: Served) -> None:
    reply = server.write(f"[server]\nport = 0\n[limits]\nrequests_per_minute = 1000\nmodels = []\n{MODEL}")
    assert reply.json()["applied"] == ["limits.requests_per_minute", "limits.models"]
    refused = server.chat()
    assert (refused.status_code, refused.headers["x-ratelimit-limit-requests"]) == (404, "1000")
    server.write(f"[server]\nport = 0\n{MODEL}")
    answered = server.chat()
    assert answered.status_code == 200 and "x-ratelimit-limit-requests" not in answered.headers


def test_mistake_changes_nothing(server: Served) -> None:
    reply = server.write(f'{MODEL}queue = 1\n[models.b]\npath = "gone"\n[models.c]\nengin = 1\n')
    assert reply.status_code == 409 and "[models.c] engin" in error_of(reply)["message"]
    reply = server.write(f'{MODEL}queue = 1\n[models.b]\npath = "gone"\n')
    assert reply.status_code == 409 and "b: There is no bundle" in error_of(reply)["message"]
    assert [card["id"] for card in server.http.get("/v1/models").json()["data"]] == ["main"]
    reply = server.write(f"[server]\nport = 0\n{MODEL}")
    assert (reply.status_code, any(reply.json().values())) == (200, False)


@pytest.mark.parametrize("token", ["", "t-2", "ü"])
def test_wrong_token_reloads_nothing(server: Served, token: str) -> None:
    reply = server.http.post("/gateway/reload", headers={"x-stop-token": token.encode()})
    assert reply.status_code == 401 and "npu-gateway reload" in error_of(reply)["message"]


def test_page_of_another_origin_cannot_reload(server: Served) -> None:
    reply = server.http.post("/gateway/reload", headers={**TOKEN, "origin": "http://evil.example"})
    assert reply.status_code == 403


async def test_other_machines_cannot_reload_and_a_pipe_has_nothing_to_read() -> None:
    app = create_app(config_of({"m": scripted("a")}), stop_token="t-1")
    for client, status, text in (("192.168.0.9", 403, "can reload it"), ("127.0.0.1", 409, "from a pipe")):
        transport = httpx.ASGITransport(app, client=(client, 5000))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            reply = await http.post("/gateway/reload", headers=TOKEN)
        assert reply.status_code == status and text in error_of(reply)["message"]

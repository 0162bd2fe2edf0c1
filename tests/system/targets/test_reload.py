"""A reload of the list of servers: new requests go to the new ones at once, answers that run end on the old ones."""

from __future__ import annotations

import asyncio
import threading
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import httpx
import pytest

from gateway.config.file import load_config
from gateway.lanes.reload import watcher
from gateway.pull.watch import ConfigSource
from tests.support.hostile import CHAT, HEAD, Hostile, chunk, hostile, post, stream, text_of
from tests.support.server import serving
from tests.system.targets.bad_servers import misbehave

PATH = "/v1/chat/completions"


def written(file: Path, *servers: Hostile, key: str = "") -> None:
    urls = ", ".join(f'"http://127.0.0.1:{server.port}/v1"' for server in servers)
    (file.parent / "key").write_text(key or "first-key", encoding="utf-8")
    table = f'[models.m]\nengine = "upstream"\ntargets = [{urls}]\napi_key_file = "key"\n[usage]\nenabled = false\n'
    file.write_text(table, encoding="utf-8")


def test_new_list_counts_at_once_and_running_answers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_INTERVAL_S", 3600.0)
    has_begun, may_end = threading.Event(), threading.Event()
    file = tmp_path / "config.toml"

    async def slowly(_: StreamReader, writer: StreamWriter) -> None:
        writer.write(HEAD + b"data: %s\n\n" % text_of(chunk(content="old")).encode())
        await writer.drain()
        has_begun.set()
        while not may_end.is_set():  # noqa: ASYNC110 (another thread sets it)
            await asyncio.sleep(0.005)
        writer.write(b"data: %s\n\ndata: [DONE]\n\n" % text_of(chunk("stop")).encode())

    with hostile() as old, hostile() as new, hostile() as spare:
        misbehave(old, slowly)
        for server in (new, spare):
            misbehave(server, stream(chunk(content="new"), chunk("stop")))
        written(file, old)
        config = load_config(file, {})
        with serving(config, source=ConfigSource(file, {}, config), stop_token="t") as gateway:
            answers: list[str] = []
            running = threading.Thread(target=lambda: answers.append(post(gateway, PATH, CHAT)[1].decode()))
            running.start()
            assert has_begun.wait(60)
            written(file, new, spare, key="second-key")
            with gateway.http(verify=False) as http:
                reply: httpx.Response = http.post("/gateway/reload", headers={"x-stop-token": "t"})
            assert reply.json()["changed"] == {"m": ["targets", "api_key"]}, reply.text
            assert "new" in post(gateway, PATH, CHAT)[1].decode() and answers == []
            may_end.set()
            running.join(60)
            assert "old" in answers[0] and '"finish_reason":"stop"' in answers[0]
            keys = [b"Bearer second-key" in request for request in new.requests + spare.requests]
            assert keys and all(keys) and not any(b"second-key" in request for request in old.requests)

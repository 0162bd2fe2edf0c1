"""Damaged files of a served model: each is named, the model does not answer, others and its fallback do.

Real workers, real sockets. docs/reliability.md has the table.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.hashes import CHECKED_FILE, write_hashes
from gateway.engines.local.integrity import IntegrityCheck
from gateway.errors import BundleError
from tests.support.log_lines import log_lines
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until
from tests.system.faults.client import OTHER, ask, engine_of, local_engine, wait_for_engine

FILES = (
    "model.onnx",
    "model.onnx.data",
    "genai_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "bundle.json",
    "hashes.json",
)


def copy(tiny: Path, folder: Path) -> Path:
    """A bundle with every kind of file."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns(CHECKED_FILE))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}", encoding="utf-8")
    write_hashes(folder)
    return folder


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def log() -> Iterator[list[str]]:
    with log_lines(logging.WARNING) as lines:
        yield lines


@pytest.fixture(scope="module")
def server(log: list[str], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One model for each damaged file. OTHER is the fallback of the first."""
    folder = tmp_path_factory.mktemp("damaged")
    engines = {OTHER: local_engine(OTHER, tiny)}
    for name in FILES:
        bundle = copy(tiny, folder / name.replace(".", "_"))
        flip(bundle / name)
        engines[name] = local_engine(name, bundle, fallback=OTHER if name == FILES[0] else None)
    with serving(config_of({name: engine._model for name, engine in engines.items()}), engines) as running:
        yield running


def wait_for_damage(server: Running, model: str, words: str) -> dict[str, Any]:
    return wait_for_engine(server, model, lambda e: e["state"] == "failed" and words in e["detail"])


@pytest.mark.parametrize("name", FILES)
def test_flipped_bit_is_named_and_model_does_not_answer(server: Running, log: list[str], name: str) -> None:
    engine = wait_for_damage(server, name, f"The model is damaged: {name} ")
    assert (
        engine["detail"].endswith(f"`npu-gateway check --record {name}` accepts it.") and "\n" not in engine["detail"]
    )
    with server.http() as client:
        card = client.get(f"/v1/models/{name}").json()
    assert (card["state"], card["detail"]) == ("failed", engine["detail"])
    if name != FILES[0]:
        ending = ask(server, name)
        assert (ending.status, ending.error["code"]) == (503, "model_not_ready")
        assert f"{name} " in ending.error["message"]
    assert ask(server, OTHER, max_tokens=8).error == {}
    wait_until(lambda: any(engine["detail"].rstrip(".") in line for line in log), "the log does not name the damage")


def test_fallback_answers_for_a_damaged_model(server: Running) -> None:
    wait_for_damage(server, FILES[0], "damaged")
    with server.http() as client:
        reply = client.post("/v1/completions", json={"model": FILES[0], "prompt": "a", "max_tokens": 4})
    assert reply.status_code == 200 and reply.json()["model"] == OTHER


async def test_damaged_model_is_not_a_crash_loop(tiny: Path, tmp_path: Path) -> None:
    """Later attempts to load only look at the file: no worker is started."""
    bundle = copy(tiny, tmp_path / "m")
    flip(bundle / "model.onnx.data")
    engine = local_engine("m", bundle)
    await engine.start()
    reason = await asyncio.wait_for(engine.lost(), PATIENCE_S)
    assert reason.startswith("the model is damaged: model.onnx.data differs from its hash in bytes 0 to ")
    process = engine._supervisor._process
    for _ in range(20):
        with pytest.raises(BundleError, match=r"The model is damaged: model\.onnx\.data differs"):
            await engine.start()
    assert engine._supervisor._process is process and engine.status.restarts == 0
    await engine.aclose()


def test_damaged_model_logs_few_lines(server: Running, log: list[str]) -> None:
    for name in FILES:
        wait_for_damage(server, name, "damaged")
        assert 1 <= len([line for line in log if line.startswith((f"{name}: ", f"{name} "))]) <= 3


@pytest.fixture
def one(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Path]]:
    """A server with one intact model, whose files are compared again and again. Its bundle."""
    bundle = copy(tiny, tmp_path / "m")
    engine = local_engine("m", bundle)
    engine._integrity._pause_s = 0.05
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        wait_until((bundle / CHECKED_FILE).exists, "the files were not compared")
        assert engine_of(server, "m")["state"] == "ready"
        yield server, bundle


def _swap(bundle: Path) -> None:
    first, second = bundle / "tokenizer.json", bundle / "tokenizer_config.json"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda b: flip(b / "model.onnx.data"), "model.onnx.data differs from its hash in bytes 0 to "),
        (lambda b: os.truncate(b / "tokenizer.json", 100), "tokenizer.json has 100 bytes instead of "),
        (lambda b: os.truncate(b / "genai_config.json", 0), "genai_config.json has 0 bytes instead of "),
        (lambda b: (b / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (_swap, "tokenizer_config.json has "),
    ],
    ids=["flipped", "truncated", "zero-length", "removed", "swapped"],
)
def test_file_damaged_while_served_is_named_and_repair_is_noticed(
    one: tuple[Running, Path], tmp_path: Path, change: Any, named: str
) -> None:
    server, bundle = one
    shutil.copytree(bundle, tmp_path / "intact")
    change(bundle)
    assert named in wait_for_damage(server, "m", "The model is damaged")["detail"]
    assert ask(server, "m").status == 503
    shutil.rmtree(bundle)
    (tmp_path / "intact").rename(bundle)
    wait_for_engine(server, "m", lambda engine: engine["state"] == "ready")
    assert ask(server, "m", max_tokens=8).error == {}


def test_accepted_change_is_served(one: tuple[Running, Path]) -> None:
    server, bundle = one
    (bundle / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    wait_for_damage(server, "m", "chat_template.jinja")
    write_hashes(bundle)  # `npu-gateway check --record m`
    wait_for_engine(server, "m", lambda engine: engine["state"] == "ready")


def test_stream_of_a_model_found_damaged_ends_with_an_error(long_tiny: Path, tmp_path: Path) -> None:
    bundle = copy(long_tiny, tmp_path / "m")
    flip(bundle / "model.onnx.data")
    engine = local_engine("m", bundle)
    engine._integrity = _Later("m", bundle, False, engine._supervisor.discard)
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        body = {"model": "m", "prompt": [40], "max_tokens": 8000, "ignore_eos": True, "stream": True}
        with server.http() as client, client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.app.state.router.lanes["m"].engine._integrity.allowed = True
            last = [line for line in lines if line][-1]
        assert '"error"' in last and "the model is damaged: model.onnx.data differs" in last
        wait_for_damage(server, "m", "model.onnx.data")


class _Later(IntegrityCheck):
    """Waits before it compares."""

    allowed = False

    async def _damages(self) -> Any:
        while not self.allowed:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return await super()._damages()

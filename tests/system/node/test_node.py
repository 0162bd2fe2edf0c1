"""The official Node SDK and the Vercel AI SDK get the same results as the Python SDK, from the default model."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config.tables import LocalModel
from tests.support import npm
from tests.support.server import Running, config_of, scripted, serving, wait_until

HERE = Path(__file__).parent
FILES = ("package.json", "package-lock.json", "openai.mjs", "vercel.mjs")
RUN_S = 300

Results = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this folder with the packages of its lock file. Skips if they cannot be installed."""
    return npm.install(HERE, FILES, tmp_path_factory.mktemp("node"), "ci")


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Running]:
    smollm2_model = LocalModel(path=str(smollm2), aliases=("gpt-4o-mini",))
    with serving(config_of({"smollm2": smollm2_model, "vectors": scripted(kind="encoder")})) as running:
        yield running


@pytest.fixture(scope="module")
def python(server: Running) -> Results:
    """What the official Python SDK gets."""
    with server.openai(timeout=120) as client:
        reply = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
    assert reply.usage is not None
    return {"text": reply.choices[0].message.content, "finish": "stop", "usage": reply.usage.total_tokens}


def run(script: str, folder: Path, server: Running) -> Results:
    command = ["node", script, f"{server.url}/v1"]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=RUN_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def assert_constrained(seen: Results) -> None:
    assert seen["structured"].keys() == {"capital", "in_europe"} and isinstance(seen["structured"]["in_europe"], bool)
    assert seen["tool"]["name"] == "get_weather"
    assert seen["tool"]["arguments"]["unit"] in ("celsius", "fahrenheit") and len(seen["tool"]["arguments"]) == 1


def test_node_sdk_gets_what_python_sdk_gets(folder: Path, server: Running, python: Results) -> None:
    seen = run("openai.mjs", folder, server)
    assert seen["models"] == ["smollm2", "gpt-4o-mini", "vectors"]
    assert seen["whole"] == seen["stream"] == python and "Paris" in python["text"]
    assert_constrained(seen)
    assert seen["tool"]["finish"] == "tool_calls"
    assert seen["unknown"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"}
    assert seen["embeddings"] == {"kind": "BadRequestError", "status": 400, "code": None, "param": "model"}
    with server.openai() as client:  # both SDKs request base64 and decode it
        assert seen["vector"] == client.embeddings.create(model="vectors", input="x").data[0].embedding
    assert seen["aborted"] == {"pieces": 3, "signal": True}
    wait_until(lambda: not server.app.state.router.status()[0].running, "the abort did not free the device")


def test_vercel_ai_sdk_gets_what_python_sdk_gets(folder: Path, server: Running, python: Results) -> None:
    seen = run("vercel.mjs", folder, server)
    assert seen["whole"] == seen["stream"] == python
    assert_constrained(seen)
    assert seen["tool"]["finish"] == "tool-calls"
    assert (seen["unknown"]["kind"], seen["unknown"]["status"]) == ("AI_APICallError", 404)
    assert "unknown-model" in seen["unknown"]["message"]

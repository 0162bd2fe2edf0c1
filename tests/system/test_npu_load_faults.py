"""NPU models that cannot be loaded: the client's error and the log name the reason, and other models answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.tables import LocalModel
from tests.support.log_lines import log_lines
from tests.support.server import Running, config_of, scripted, serving

BROKEN = {
    "other_chip": "compiled for Hexagon v73 and this NPU is v81",
    "truncated": "context_2_of_2_ctx_qnn.bin has ",
    "no_driver": "The NPU refuses context_1_of_2_64_ctx.onnx",
}


@pytest.fixture(scope="module")
def server_and_log(npu_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, list[str]]]:
    """A server with these models, and its log lines."""
    truncated = Path(shutil.copytree(npu_bundle, tmp_path_factory.mktemp("broken") / "truncated"))
    binary = truncated / "context_2_of_2_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:-5000])
    options = {
        "other_chip": {"soc_model": "88"},
        "truncated": {},
        "no_driver": {"backend_path": str(npu_bundle / "genai_config.json")},
    }
    models = {
        name: LocalModel(
            path=str(truncated if name == "truncated" else npu_bundle), provider="qnn", provider_options=each
        )
        for name, each in options.items()
    }
    config = config_of({**models, "other": scripted("Hello.")})
    with log_lines(logger="gateway.lanes.loader") as lines, serving(config) as server:
        yield server, lines


@pytest.mark.parametrize("model", BROKEN)
def test_unloadable_model_is_reported_and_others_answer(server_and_log: tuple[Running, list[str]], model: str) -> None:
    server, lines = server_and_log
    body = {"messages": [{"role": "user", "content": "x"}]}
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json={"model": model, **body})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_not_ready")
        assert BROKEN[model] in reply.json()["error"]["message"]
        assert int(reply.headers["retry-after"]) >= 1
        assert http.post("/v1/chat/completions", json={"model": "other", **body}).status_code == 200
    (line,) = (each for each in lines if each.startswith(f"{model} cannot be loaded"))
    assert BROKEN[model] in line

"""NPU models that cannot be loaded: the client's error and the log name the reason, and other models answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from gateway.bundles.hashes import write_hashes
from gateway.config.tables import LocalModel
from tests.support.log_lines import log_lines
from tests.support.server import Running, config_of, scripted, serving

BROKEN = {
    "other_chip": "compiled for Hexagon v73 and this NPU is v81",
    "truncated": "context_2_of_2_ctx_qnn.bin is damaged or no context binary",
    "no_driver": "The NPU refuses context_1_of_2_64_ctx.onnx",
    "no_end": "The model can generate none of its end tokens (999999; ",
    "no_scale": "The model's logits have no scale (about ",
}


@pytest.fixture(scope="module")
def server_and_log(npu_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, list[str]]]:
    """A server with these models, and its log lines."""
    truncated = Path(shutil.copytree(npu_bundle, tmp_path_factory.mktemp("broken") / "truncated"))
    binary = truncated / "context_2_of_2_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:-5000])
    (truncated / "hashes.json").unlink()  # they would give a second reason
    no_end = Path(shutil.copytree(npu_bundle, truncated.with_name("no_end")))
    config_file = no_end / "genai_config.json"
    content = json.loads(config_file.read_bytes())
    content["model"]["eos_token_id"] = [999999]
    config_file.write_text(json.dumps(content), encoding="utf-8")
    write_hashes(no_end)
    folders = {"truncated": truncated, "no_end": no_end, "no_scale": _without_scale(npu_bundle, truncated.parent)}
    options = {
        "no_end": {},
        "no_scale": {},
        "other_chip": {"soc_model": "88"},
        "truncated": {},
        "no_driver": {"backend_path": str(npu_bundle / "genai_config.json")},
    }
    models = {
        name: LocalModel(
            path=str(folders.get(name, npu_bundle)), provider="qnn", provider_options=each, max_sequences=1
        )
        for name, each in options.items()
    }
    config = config_of({**models, "other": scripted("Hello.")})
    with log_lines(logger="gateway.lanes.memory.loader") as lines, serving(config) as server:
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


def _without_scale(bundle: Path, folder: Path) -> Path:
    """A copy whose head gives codes, as an export without a dequantiser does."""
    copy = Path(shutil.copytree(bundle, folder / "no_scale"))
    head = onnx.load(copy / "lm_head.onnx", load_external_data=False)
    head.graph.node[-1].output[0] = "scaled"
    for name, value in (("steps", 700.0), ("zero_point", 32768.0)):
        head.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [1], [value]))
    head.graph.node.extend(
        [
            helper.make_node("Mul", ["scaled", "steps"], ["exact"]),
            helper.make_node("Round", ["exact"], ["rounded"]),
            helper.make_node("Add", ["rounded", "zero_point"], ["logits"]),
        ]
    )
    onnx.save(head, copy / "lm_head.onnx")
    write_hashes(copy)
    return copy

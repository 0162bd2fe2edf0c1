"""The watchdog of an NPU model: a device call that never returns ends with its process."""

from __future__ import annotations

import logging
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import onnx
import openai
import psutil
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from gateway.bundles.hashes import write_hashes
from gateway.config.tables import LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.worker.decoders.static.open import open_static_decoder
from gateway.worker.frames import Device
from tests.support.child_call import TIMEOUT_S
from tests.support.manual_clock import ManualClock
from tests.support.server import Running, config_of, serving
from tests.support.workers import READY

#: The token that makes a device call run forever.
HANG = 99
HUNG = r"a device call did not come back within \d+ s, so its worker was killed"
PROMPT = [11, 50, 7, 90, 33]


@pytest.fixture
def hanging(npu_bundle: Path, tmp_path: Path) -> Path:
    """An NPU bundle whose graphs never return from ONNX Runtime for the token HANG."""
    folder = Path(shutil.copytree(npu_bundle, tmp_path / "hanging"))
    path = folder / "embeddings.onnx"
    model = onnx.load(path, load_external_data=False)
    graph, (output,) = model.graph, model.graph.output
    for node in graph.node:
        node.output[:] = ["embedded" if name == output.name else name for name in node.output]
    constants = {"hang": [HANG], "rounds": [2**62]}
    graph.initializer.extend(helper.make_tensor(n, TensorProto.INT64, [1], values) for n, values in constants.items())
    graph.node.extend(
        [
            helper.make_node("Equal", ["input_ids", "hang"], ["is_hang"]),
            helper.make_node("Cast", ["is_hang"], ["hangs"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["hangs"], ["any"], keepdims=0),
            helper.make_node("Mul", ["any", "rounds"], ["count"]),
            helper.make_node("Loop", ["count", "", "embedded"], [output.name], body=_idle_round()),
        ]
    )
    onnx.save(model, path)
    write_hashes(folder)
    return folder


def _idle_round() -> onnx.GraphProto:
    inputs = [
        helper.make_tensor_value_info("round", TensorProto.INT64, []),
        helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT16, None),
    ]
    outputs = [
        helper.make_tensor_value_info("still", TensorProto.BOOL, []),
        helper.make_tensor_value_info("y", TensorProto.FLOAT16, None),
    ]
    nodes = [
        helper.make_node("Identity", ["goes_on"], ["still"]),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    return helper.make_graph(nodes, "idle", inputs, outputs)


def test_hung_npu_call_is_killed_and_next_request_answered(hanging: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = LocalModel(path=str(hanging), provider="qnn", temperature=0, watchdog_s=1.0)
    clock, others = ManualClock(), set(psutil.Process().children())
    engines = {"m": LocalEngine("m", model, Path(), clock=clock)}
    with (
        serving(config_of({"m": model}), engines, loaded=False) as server,
        server.openai(timeout=300) as client,
        ThreadPoolExecutor(1) as pool,
        caplog.at_level(logging.ERROR),
    ):
        _wait_until_ready(server)
        before = client.completions.create(model="m", prompt=PROMPT, max_tokens=4)
        request = pool.submit(client.completions.create, model="m", prompt=[*PROMPT, HANG], max_tokens=4)
        _wait_until_busy(request, set(psutil.Process().children()) - others)
        while not request.done():
            clock.now += 1000
            wait([request], 0.1)
        with pytest.raises(openai.APIStatusError, match=HUNG):
            request.result()
        engine = _wait_until_ready(server)
        assert re.search(HUNG, caplog.text)
        assert "1 request in progress ended with an error; " in caplog.text
        assert "; it is loaded again in 0.5 s" in caplog.text
        assert engine["device"] == "emulated" and engine["restarts"] == 1
        after = client.completions.create(model="m", prompt=PROMPT, max_tokens=4)
        assert after.choices[0].text == before.choices[0].text


@pytest.mark.parametrize(("device", "limit_s"), [("npu", 60), ("emulated", 160)])
def test_call_limit_of_emulated_npu_follows_warm_up(device: Device, limit_s: float) -> None:
    supervisor = LocalEngine("m", LocalModel(path="m"), Path())._supervisor
    supervisor.ready = replace(READY, device=device, warm_up_s=16.0)
    assert supervisor._call_limit_s == limit_s


def test_bundle_with_loop_answers_like_original(hanging: Path, npu_bundle: Path) -> None:
    rows = []
    for folder in (hanging, npu_bundle):
        decoder = open_static_decoder(folder, provider="qnn")
        rows.append(decoder.prefill(decoder.new_cache(), PROMPT).tolist())
        decoder.close()
    assert rows[0] == rows[1]


def _wait_until_busy(request: Future[object], workers: set[psutil.Process]) -> None:
    """Wait until the workers have used 0.5 s of CPU time. An answer without a hang uses a few milliseconds."""
    until, before = time.monotonic() + TIMEOUT_S, _cpu_s(workers)
    while _cpu_s(workers) < before + 0.5:
        assert not request.done() and time.monotonic() < until
        time.sleep(0.05)


def _cpu_s(processes: set[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # the check of hashes ends by itself
            seconds += process.cpu_times().user
    return seconds


def _wait_until_ready(server: Running) -> dict[str, object]:
    until = time.monotonic() + TIMEOUT_S
    with server.http() as client:
        while True:
            engine: dict[str, object] = client.get("/readyz").json()["models"][0]["engine"]
            if engine["state"] == "ready":
                return engine
            assert time.monotonic() < until, engine
            time.sleep(0.1)

"""What a client gets when a device fails: real workers that die, hang, fail, starve and do not load, asked over
real sockets. docs/reliability.md has the table of it.

Every fault happens beside a request to another model, which must not notice.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import psutil
import pytest

from gateway.config import BreakerConfig, LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import Entry
from gateway.worker.main import worker_main
from tests.support import workers
from tests.support.server import PATIENCE_S, Running, config_of, serving
from tests.support.tiny import build_tiny

PROMPT = list(range(40, 60))
WATCHDOG_S = 2.0
SOON_S = 5.0  # how late a busy machine may be with what takes a hundredth of it


class Ending(NamedTuple):
    """How one request ended: exactly once, as `ask` has checked."""

    status: int
    chunks: int
    error: dict[str, Any]  # {}: it was answered to its end
    at: float


def ask(
    server: Running, model: str, prompt: Sequence[int] = PROMPT, *, begun: threading.Event | None = None, **fields: Any
) -> Ending:
    """Stream a completion, if `fields` do not say otherwise; `begun` is set when its first chunk is there."""
    body = {
        "model": model,
        "prompt": [*prompt],
        "temperature": 0,
        "ignore_eos": True,
        "max_tokens": 400,
        "stream": True,
    }
    chunks: list[str] = []
    with server.http() as client, client.stream("POST", "/v1/completions", json=body | fields) as response:
        if response.status_code != 200:
            return Ending(response.status_code, 0, json.loads(response.read())["error"], time.monotonic())
        for line in response.iter_lines():
            if line.startswith("data: "):
                chunks.append(line.removeprefix("data: "))
                if begun is not None:
                    begun.set()
    last = chunks.pop() if chunks else "[DONE]"
    assert last == "[DONE]" or "[DONE]" not in chunks
    assert not any("error" in json.loads(chunk) for chunk in chunks)
    error = {} if last == "[DONE]" else json.loads(last)["error"]
    return Ending(200, len(chunks), error, time.monotonic())


@contextmanager
def streams(server: Running, model: str, count: int, **fields: Any) -> Iterator[list[Future[Ending]]]:
    """Requests that have their first chunk, and beside them one to another model that is answered well."""
    with ThreadPoolExecutor(count + 1) as pool:
        begun = [threading.Event() for _ in range(count + 1)]
        other = pool.submit(ask, server, "beside", begun=begun[count])
        asked = [pool.submit(ask, server, model, begun=event, **fields) for event in begun[:count]]
        assert all(event.wait(PATIENCE_S) for event in begun)
        yield asked
        assert other.result(PATIENCE_S).error == {}


def worker_of(server: Running, model: str) -> psutil.Process:
    return psutil.Process(server.app.state.router.lanes[model].engine._supervisor._process.pid)


def engine_of(server: Running, model: str) -> dict[str, Any]:
    with server.http() as client:
        assert client.get("/healthz").status_code == 200
        rows = client.get("/readyz").json()["models"]
    return next(row["engine"] for row in rows if row["model"] == model)


def wait_until_ready(server: Running, model: str) -> dict[str, Any]:
    until = time.monotonic() + PATIENCE_S
    while (engine := engine_of(server, model))["state"] != "ready":
        assert time.monotonic() < until, engine
        time.sleep(0.05)
    return engine


def said_of(caplog: pytest.LogCaptureFixture, model: str) -> str:
    """The one line in the log that is about the model's fault."""
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    (line,) = (text for text in said if text.startswith(model))
    return line


@pytest.fixture(scope="module")
def loading() -> Iterator[list[str]]:
    """What the log says of models that load."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gateway.lanes.loader")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def server(
    loading: list[str], tiny: Path, long_tiny: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    broken = tmp_path_factory.mktemp("broken")
    for name in ("missing", "truncated"):
        shutil.copytree(tiny, broken / name)
    (broken / "missing" / "model.onnx").unlink()
    _cut_weights(broken / "truncated")
    engines = {
        "beside": _engine("beside", tiny),
        "killed": _engine("killed", long_tiny),
        "hangs": _engine("hangs", tiny, workers.faulty, watchdog_s=WATCHDOG_S),
        "fails": _engine("fails", tiny, workers.fails_every_call),
        "missing": _engine("missing", broken / "missing"),
        "truncated": _engine("truncated", broken / "truncated"),
    }
    if sys.platform != "win32":
        engines |= {
            "starves": _engine("starves", _wide(tmp_path_factory), workers.has_no_memory_left),
            "too_large": _engine("too_large", smollm2, workers.has_no_memory_to_load),
        }
    with serving(config_of({name: engine._model for name, engine in engines.items()}), engines) as running:
        yield running


def _engine(name: str, bundle: Path, entry: Entry = worker_main, **fields: Any) -> LocalEngine:
    model = LocalModel(path=str(bundle), threads=1, **fields)
    return LocalEngine(name, model, bundle.parent, entry=entry)


def _wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose 64 tokens of a long prompt need 64 to 96 MiB more than the 16 of the warm-up."""
    return build_tiny(tmp_path_factory.mktemp("wide"), intermediate=65536)


def _cut_weights(bundle: Path) -> None:
    """Move the weights to a file of their own, and lose the end of it."""
    path = bundle / "model.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    weights = bundle / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


# --- a worker that answers, and then does not


def test_killed_in_the_middle_of_streams(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with streams(server, "killed", 3, max_tokens=8000) as asked:
        killed_at = time.monotonic()
        worker_of(server, "killed").kill()
        endings = [each.result(PATIENCE_S) for each in asked]
    refused = ask(server, "killed", max_tokens=8)
    for ending in endings:
        assert (ending.status, ending.error["code"]) == (200, "engine_failed") and ending.chunks > 0
        assert ending.error["message"] == "The model 'killed' failed: its worker died. Try again."
        assert ending.at - killed_at < SOON_S
    assert (refused.status, refused.error.get("code")) in [(503, "model_not_ready"), (200, None)]
    assert wait_until_ready(server, "killed")["restarts"] == 1
    if sys.platform != "win32":
        assert said_of(caplog, "killed") == (
            "killed: its worker died (signal SIGKILL); 3 requests in progress ended with an error; a new worker starts "
            "in 0.5 s; something outside killed it, as systems do when memory is short; a smaller context_length or "
            "max_sequences needs less"
        )
    print(f"killed: {max(e.at for e in endings) - killed_at:.3f} s, again {time.monotonic() - killed_at:.1f} s")
    assert ask(server, "killed", max_tokens=8).error == {}


def test_hangs_in_a_device_call(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with streams(server, "hangs", 1, prompt=[40, workers.HANG]) as asked:
        begun_at = time.monotonic()
        waiting = ask(server, "hangs")  # on a busy machine it may come when the worker has been killed already
        ending = asked[0].result(PATIENCE_S)
    assert ending.error["code"] == "engine_failed"
    assert ending.error["message"] == (
        "The model 'hangs' failed: a device call did not come back within 2 s, so its worker was killed. Try again."
    )
    assert waiting.error["code"] in ("engine_failed", "model_not_ready")
    assert max(ending.at, waiting.at) - begun_at < WATCHDOG_S + SOON_S
    assert wait_until_ready(server, "hangs")["restarts"] == 1
    assert re.fullmatch(
        r"hangs: a device call did not come back within 2 s, so its worker was killed \(.*\); [12] requests in "
        "progress ended with an error; a new worker starts in 0.5 s; if that repeats, update the NPU's driver, or "
        "raise watchdog_s for a model whose calls take longer",
        said_of(caplog, "hangs"),
    )
    print(f"hangs: {ending.at - begun_at:.3f} s of {WATCHDOG_S:g}, again {time.monotonic() - begun_at:.1f} s")
    assert ask(server, "hangs", max_tokens=8).error == {}


def test_fails_every_call(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    began_at = time.monotonic()
    endings = [ask(server, "fails", stream=False) for _ in range(3)]
    for ending in endings:
        assert (ending.status, ending.error["code"]) == (503, "engine_failed")
        assert ending.error["message"] == "The model failed while it ran: QNN error 14001."
    print(f"fails: {(endings[-1].at - began_at) / 3:.3f} s each")
    until = time.monotonic() + PATIENCE_S
    while not engine_of(server, "fails")["restarts"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert wait_until_ready(server, "fails")["restarts"] == 1
    line = said_of(caplog, "fails")
    assert line.startswith(
        "fails: the device failed 3 requests in a row: The model failed while it ran: QNN error 14001"
    )
    assert line.endswith("a new worker starts in 0.5 s; `npu-gateway doctor` looks for the reason")
    assert ask(server, "beside", max_tokens=8).error == {}


@pytest.mark.skipif(sys.platform == "win32", reason="a process's memory is limited with setrlimit")
def test_runs_out_of_memory(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    long = [40 + i % 100 for i in range(300)]
    assert ask(server, "starves", PROMPT[:4], max_tokens=2).error == {}
    began_at = time.monotonic()
    ending = ask(server, "starves", long, max_tokens=2, stream=False)
    assert (ending.status, ending.error["code"]) == (503, "engine_failed")
    assert ending.error["message"] == "The machine has no memory left for this model."
    print(f"starves: {ending.at - began_at:.3f} s")
    until = time.monotonic() + PATIENCE_S
    while not engine_of(server, "starves")["restarts"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    wait_until_ready(server, "starves")
    line = said_of(caplog, "starves")
    assert line.startswith("starves: the device failed a request: The machine has no memory left for this model (")
    assert line.endswith("a new worker starts in 0.5 s; a smaller context_length or max_sequences needs less")
    assert ask(server, "starves", PROMPT[:4], max_tokens=2).error == {}
    assert ask(server, "beside", max_tokens=8).error == {}


# --- a worker that cannot load


NO_SETRLIMIT = pytest.mark.skipif(sys.platform == "win32", reason="a process's memory is limited with setrlimit")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("missing", "missing lacks model.onnx, which its genai_config.json names"),
        ("truncated", "truncated: model.onnx.data is truncated: "),
        pytest.param(
            "too_large",
            "smollm2-135m/model.onnx cannot be loaded: The machine has no memory left for this model",
            marks=NO_SETRLIMIT,
        ),
    ],
)
def test_cannot_load(server: Running, loading: list[str], model: str, why: str) -> None:
    began_at = time.monotonic()
    ending = ask(server, model)
    assert ending.at - began_at < SOON_S
    assert (ending.status, ending.error["code"]) == (503, "model_not_ready")
    assert why in ending.error["message"]
    assert engine_of(server, model)["state"] == "failed"
    (line,) = (text for text in loading if text.startswith(f"{model} cannot be loaded"))
    assert why in line and line.endswith("; it is tried again; `npu-gateway doctor` says more")
    assert ask(server, "beside", max_tokens=8).error == {}


def test_what_is_repaired_is_loaded_without_a_restart(tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "m"))
    graph = bundle / "model.onnx"
    graph.rename(tmp_path / "elsewhere")
    engine = _engine("m", bundle)
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        assert engine_of(server, "m")["state"] == "failed"
        (tmp_path / "elsewhere").rename(graph)
        wait_until_ready(server, "m")
        assert ask(server, "m", max_tokens=8).error == {}


# --- the breaker


def test_a_call_that_hangs_opens_the_breaker_long_before_it_ends(tiny: Path) -> None:
    engine = _engine("m", tiny, workers.faulty, watchdog_s=20.0)
    breaker = BreakerConfig(latency_ms=300, min_calls=1, open_s=60)
    with (
        serving(config_of({"m": engine._model}, breaker=breaker), {"m": engine}) as server,
        ThreadPoolExecutor() as pool,
    ):
        began_at = time.monotonic()
        asked = pool.submit(ask, server, "m", [40, workers.HANG])
        while server.app.state.router.lanes["m"].breaker.state != "open":
            assert time.monotonic() < began_at + PATIENCE_S
            time.sleep(0.01)
        print(f"opened after {time.monotonic() - began_at:.2f} s")
        refused = ask(server, "m")
        assert refused.status == 503 and not asked.done()
        worker_of(server, "m").kill()
        assert asked.result(PATIENCE_S).error["code"] == "engine_failed"

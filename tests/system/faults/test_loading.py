"""What clients get when a model cannot be loaded, and how it is loaded later. docs/reliability.md has the table."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from tests.support import workers
from tests.support.log_lines import log_lines
from tests.support.server import Running, config_of, serving
from tests.system.faults.bundles import with_two_gigabytes
from tests.system.faults.client import OTHER, ask, engine_of, local_engine, wait_for_engine


@pytest.fixture(scope="module")
def loader_log() -> Iterator[list[str]]:
    """The log lines of the loader, also those of the server's start."""
    with log_lines(logger="gateway.lanes.memory.loader") as lines:
        yield lines


@pytest.fixture(scope="module")
def server(loader_log: list[str], tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    broken = tmp_path_factory.mktemp("broken")
    for name in ("missing", "truncated"):
        shutil.copytree(tiny, broken / name)
    (broken / "missing" / "model.onnx").unlink()
    _truncate_weights(broken / "truncated")
    engines = {
        OTHER: local_engine(OTHER, tiny),
        "missing": local_engine("missing", broken / "missing"),
        "truncated": local_engine("truncated", broken / "truncated"),
    }
    if sys.platform != "win32":
        engines["too_large"] = local_engine(
            "too_large", with_two_gigabytes(tiny, broken / "too_large"), workers.has_less_than_two_gigabytes
        )
    with serving(config_of({name: engine._model for name, engine in engines.items()}), engines) as running:
        yield running


def _truncate_weights(bundle: Path) -> None:
    """Move the weights to a separate file, and remove the second half of it."""
    path = bundle / "model.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    weights = bundle / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


NO_SETRLIMIT = pytest.mark.skipif(sys.platform == "win32", reason="a process's memory is limited with setrlimit")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("missing", "missing lacks model.onnx, which its genai_config.json names"),
        ("truncated", "truncated: model.onnx.data is truncated: "),
        pytest.param(
            "too_large",
            "too_large/model.onnx cannot be loaded: The machine has no memory left for this model",
            marks=NO_SETRLIMIT,
        ),
    ],
    ids=["missing", "truncated", "too_large"],
)
def test_model_that_cannot_load_is_not_ready(server: Running, loader_log: list[str], model: str, reason: str) -> None:
    ending = ask(server, model)
    assert (ending.status, ending.error["code"]) == (503, "model_not_ready")
    assert reason in ending.error["message"]
    assert engine_of(server, model)["state"] == "failed"
    (line,) = (text for text in loader_log if text.startswith(f"{model} cannot be loaded"))
    assert reason in line and line.endswith("; it is tried again; `npu-gateway doctor` looks for the reason")
    assert ask(server, OTHER, max_tokens=8).error == {}


def test_repaired_bundle_is_loaded_without_a_restart(tiny: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "m"))
    graph = bundle / "model.onnx"
    graph.rename(tmp_path / "elsewhere")
    engine = local_engine("m", bundle)
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        assert engine_of(server, "m")["state"] == "failed"
        (tmp_path / "elsewhere").rename(graph)
        wait_for_engine(server, "m", lambda engine: engine["state"] == "ready")
        assert ask(server, "m", max_tokens=8).error == {}

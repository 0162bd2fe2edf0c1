"""The bundle of a model that is loaded on demand is built for its first request."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.bundles.stamp import BuildRequest
from gateway.commands.models.prepare import prepare
from gateway.config.file import load_config
from gateway.config.tables import Config, LocalModel
from gateway.engines import missing_bundle
from gateway.engines.missing_bundle import MissingBundle
from gateway.errors import BundleError
from tests.support.encoders.models import write_folder
from tests.support.encoders.workers import VECTORS
from tests.support.local_engine import until
from tests.support.paths import ROOT
from tests.support.server import PATIENCE_S, config_of, error_of, serving


def on_demand(folder: Path, source: str) -> LocalModel:
    return LocalModel(path=str(folder / "bundle"), source=source, load="demand", threads=1, provider="cpu")


def test_first_request_builds_the_bundle_and_is_answered(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", "bert-mean", VECTORS["bert-mean"]["shapes"])
    model = on_demand(tmp_path, str(source))
    assert prepare(Config(models={"m": model})).models == {"m": model}  # `serve` does not wait for it
    with serving(config_of({"m": model})) as running, running.http() as http:
        card = http.get("/v1/models/m").json()
        assert (card["state"], card["capabilities"]) == ("unloaded", []) and not Path(model.path).exists()
        ranking = http.post("/v1/rerank", json={"model": "m", "query": "w5", "documents": ["w6", "w5"]})
        assert ranking.status_code == 200, ranking.text
        assert ranking.json()["results"][0]["index"] == 1
        assert http.get("/v1/models/m").json()["capabilities"] == ["embeddings"] and Path(model.path).is_dir()
        chat = http.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "w5"}]})
        assert (chat.status_code, error_of(chat)["param"]) == (400, "model")


def test_kind_of_the_delivered_encoder_is_known_without_its_bundle(tmp_path: Path) -> None:
    """So a chat with it is refused without a download, and pages leave it out of their lists."""
    delivered = load_config(ROOT / "config.toml", {}).models["minilm"]
    assert isinstance(delivered, LocalModel) and delivered.load == "demand"
    model = replace(delivered, path=str(tmp_path / "minilm"))
    with serving(config_of({"minilm": model})) as running, running.http() as http:
        assert http.get("/v1/models/text-embedding-3-small").json()["capabilities"] == ["embeddings"]
        chat = http.post(
            "/v1/chat/completions", json={"model": "all-minilm", "messages": [{"role": "user", "content": "x"}]}
        )
        assert (chat.status_code, error_of(chat)["param"]) == (400, "model")
    assert not (tmp_path / "minilm").exists()


def test_request_gets_the_reason_of_a_build_that_fails(tmp_path: Path) -> None:
    with serving(config_of({"m": on_demand(tmp_path, str(tmp_path / "source"))})) as running, running.http() as http:
        reply = http.post("/v1/embeddings", json={"model": "m", "input": "w5"})
        assert (reply.status_code, error_of(reply)["code"]) == (503, "model_not_ready")
        assert "source" in error_of(reply)["message"]


async def test_cancelled_build_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def stalls(module: str, request: Any, what: str, *, progress: Any, on_start: Any, is_apart: bool) -> None:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]))
        progress("downloading", 0.5)
        on_start(children[0].pid)
        children[0].wait()

    monkeypatch.setattr(missing_bundle, "run_in_child", stalls)
    bundle = MissingBundle("m", on_demand(tmp_path, "hf:org/model"), tmp_path)
    task = asyncio.create_task(bundle.build())
    await until(lambda: bundle.stage == "downloading: 50%")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(children[0].wait, PATIENCE_S) and bundle.stage == ""


@pytest.mark.parametrize("has_npu", [True, False])
async def test_failed_build_for_the_npu_is_one_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_npu: bool
) -> None:
    """As at a start. Without an NPU, a second attempt would only repeat the first one."""
    providers: list[str] = []

    def fails_for_npu(module: str, request: BuildRequest, what: str, **rest: Any) -> bytes:
        providers.append(request.provider)
        if request.provider != "cpu":
            raise BundleError("The graph cannot be compiled.")
        return b'"bundle"'

    monkeypatch.setattr(missing_bundle, "run_in_child", fails_for_npu)
    monkeypatch.setattr(missing_bundle, "may_have_npu", lambda: has_npu)
    bundle = MissingBundle("m", replace(on_demand(tmp_path, "hf:org/model"), provider="auto"), tmp_path)
    if has_npu:
        built = await bundle.build()
        assert (built.path, built.provider, providers) == ("bundle", "cpu", ["auto", "cpu"])
    else:
        with pytest.raises(BundleError, match="cannot be compiled"):
            await bundle.build()
        assert providers == ["auto"]
    assert bundle.stage == ""


async def test_build_uses_no_thread_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else some builds of minutes delay what makes the lanes, and so each unload."""
    is_over = threading.Event()

    def builds(module: str, request: Any, what: str, **rest: Any) -> bytes:
        is_over.wait(PATIENCE_S)
        return b'"bundle"'

    monkeypatch.setattr(missing_bundle, "run_in_child", builds)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    task = asyncio.create_task(MissingBundle("m", on_demand(tmp_path, "hf:org/model"), tmp_path).build())
    await asyncio.sleep(0)  # the build has its thread
    await asyncio.to_thread(lambda: None)
    assert not task.done()
    is_over.set()
    assert (await task).path == "bundle"

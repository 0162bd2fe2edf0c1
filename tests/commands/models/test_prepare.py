"""`prepare`: `serve`, `models --prepare` and `bench` build missing bundles in a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.commands.models import prepare as prepare_module
from gateway.commands.models.prepare import ask_once, first_ready, prepare
from gateway.config.tables import Config, GenieModel, LocalModel
from gateway.engines import head_start
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from tests.support.model_package import NPU, X2_ELITE, write_package
from tests.support.processes import PATIENCE_S, environment, serving
from tests.support.tiny import write_tiny_folder


def config_of(models_dir: Path, **models: LocalModel) -> Config:
    return Config(models=models, models_dir=models_dir)


def test_missing_bundle_is_built_and_its_path_is_returned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_tiny_folder(tmp_path / "source")
    prepared = prepare(config_of(tmp_path, tiny=LocalModel(path="tiny", source="source", provider="cpu")))
    assert prepared.models["tiny"].path == str(tmp_path / "tiny")
    assert (tmp_path / "tiny" / "genai_config.json").is_file()
    shown = capfd.readouterr().err
    assert "tiny: reading the source" in shown and "tiny: writing the layers" in shown


@pytest.mark.parametrize(("other_chip", "expected"), [(X2_ELITE, "p/x-elite"), (NPU, "p")], ids=["x2", "same"])
def test_variant_for_this_chip_is_taken_from_package(
    npu: NpuDevice, tiny: Path, tmp_path: Path, other_chip: dict[str, str], expected: str
) -> None:
    if npu.soc != 60:
        pytest.skip("the package is for Snapdragon X Elite")
    write_package(tmp_path / "p", tiny, {"other": other_chip, "x-elite": NPU})
    prepared = prepare(config_of(tmp_path, m=LocalModel(path="p", provider="qnn")))
    assert prepared.models["m"].path == str(tmp_path / expected)  # "p": the error names both variants


def test_driver_is_opened_once_for_the_head_start_and_the_bundles(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(prepare_module, "npu_for", opened.append)  # each time takes a process that opens the driver
    has_npu = ask_once()
    config = config_of(tmp_path, m=LocalModel(path=str(tiny), source="source.gguf"))
    first_ready(config, None, has_npu)
    prepare(config, has_npu=has_npu)
    assert opened == ["auto"]


def test_begun_processes_end_before_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object, **options: object) -> bytes:
        events.append("build")
        return b'"folder"'

    events: list[str] = []
    begun = SimpleNamespace(prompts=SimpleNamespace(end=lambda: events.append("end")))
    monkeypatch.setattr(head_start, "_prompts", {"other": begun})
    monkeypatch.setattr(prepare_module, "run_in_child", build)
    prepare(config_of(tmp_path, m=LocalModel(path="m", source="m.gguf", provider="cpu")))
    assert events == ["end", "build"]


def test_one_failure_is_reported_and_the_other_models_are_kept(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = LocalModel(path=str(tiny)), LocalModel(path="bad", source="nothing.gguf")
    assert prepare(config_of(tmp_path, good=good, bad=bad)).models == {"good": good, "bad": bad}
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("npu-gateway: bad: There is no model at nothing.gguf")
    assert not any("Traceback" in line for line in lines)


def test_only_genie_model_without_bundle_cannot_be_served(tmp_path: Path) -> None:
    config = Config(models={"gone": GenieModel(path=str(tmp_path / "gone" / "config.json"))}, models_dir=tmp_path)
    with pytest.raises(BundleError, match="No model can be served"):
        prepare(config)


def test_failure_of_every_model_raises(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="No model can be served"):
        prepare(config_of(tmp_path, gone=LocalModel(path="gone")))


def test_ready_bundle_loads_neither_the_builder_nor_native_libraries(tiny: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from gateway.commands.models.prepare import ask_once, first_ready, prepare
from gateway.config.tables import Config, GenieModel, LocalModel
model = LocalModel(path={str(tiny)!r}, source="unused", provider="cpu")
prepare(Config(models={{"tiny": model}}, models_dir=Path({str(tmp_path)!r})))
print([name for name in sys.modules if name.startswith(("gateway.builder", "numpy", "onnx", "rich", "subprocess."))])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == "[]"


def test_ready_bundle_starts_no_child_process(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a child process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    model = LocalModel(path=str(tiny), source="unused", provider="cpu")
    assert prepare(config_of(tmp_path, tiny=model)).models["tiny"] == model


@pytest.mark.skipif(sys.platform == "win32", reason="a test cannot send Ctrl-C to a console's processes there")
def test_interrupt_while_building_ends_with_one_line(tmp_path: Path) -> None:
    """The download hangs until the interrupt comes, so the build is certainly in progress."""
    assert sys.platform != "win32"
    requested = threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.set()
            self.rfile.read(1)  # until the client closes the connection

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "config.toml").write_text('[models.a]\nsource = "hf:org/tiny"\nprovider = "cpu"\n', encoding="utf-8")
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
    with serving("--port", 0, cwd=tmp_path, **hub) as running:
        assert requested.wait(PATIENCE_S)
        os.killpg(running.process.pid, signal.SIGINT)
        _, errors = running.process.communicate(timeout=PATIENCE_S)
    server.shutdown()
    server.server_close()
    assert running.process.returncode == 130
    assert errors.splitlines()[-1] == "npu-gateway: interrupted"
    assert "Traceback" not in errors

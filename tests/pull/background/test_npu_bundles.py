"""A model of float weights answers from the CPU at once, and from the emulated NPU when its bundle is built."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from msgspec import Raw

from gateway import cli
from gateway.bundles.hashes import check_hashes
from gateway.bundles.stamp import COPIED_FILE, BackgroundStep, unfinished_folder
from gateway.commands.models.model_state import examine
from gateway.commands.models.prepare import prepare
from gateway.config.file import load_config
from gateway.config.tables import Config, LocalModel, ModelConfig
from gateway.errors import BundleError
from gateway.lanes.reload import upgrades
from gateway.pull.background import npu_bundles
from gateway.pull.background.npu_bundles import NpuBundles
from gateway.pull.config_edit import find_user_config
from gateway.pull.stored import remove
from gateway.qnn.device import NpuDevice
from tests.support.model_server import serve_models
from tests.support.processes import gateway
from tests.support.processes import serving as serving_process
from tests.support.server import Running, serving, wait_until
from tests.support.tiny import write_tiny_folder

OVERRIDES = {"models.provider": "qnn", "server.port": 0, "breaker.enabled": False}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_INTERVAL_S", "_QUIET_S", "_LAST_S"):
        monkeypatch.setattr(upgrades, name, 0.05)
    monkeypatch.setattr("tests.support.server.PATIENCE_S", 600.0)  # the build gives way to all other processes


def configured(folder: Path, **source: Any) -> Config:
    """A model whose bundle for the CPU is built, and is what `serve --provider qnn` begins with."""
    write_tiny_folder(folder / "models" / "weights", context=64, **source)
    text = '# mine\n[models.tiny]\nsource = "models/weights"  # float\nmax_sequences = 2\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    config = prepare(load_config(folder / "config.toml", overrides=OVERRIDES))
    model = config.models["tiny"]
    assert isinstance(model, LocalModel)
    assert (Path(model.path), model.provider) == (folder / "models" / "tiny", "cpu")
    return config


class Asking:
    """A client that never stops. `results`: a status and a device for each answer."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._is_over = False
        self.results: list[tuple[int, str]] = []

    def run(self) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
        with self._running.http() as client:
            while not self._is_over:
                reply = client.post("/v1/chat/completions", json=body)
                self.results.append((reply.status_code, reply.headers.get("x-gateway-device", "")))

    def stop(self) -> None:
        self._is_over = True


def device_of(client: httpx.Client) -> str:
    return str(client.get("/readyz").json()["models"][0]["engine"]["device"])


class Watched(NpuBundles):
    """After each report of the build, `seen` gets what `look` returns."""

    seen: list[str]
    look: Callable[[], str]

    def advance(self, name: str, report: Callable[[str], None]) -> ModelConfig | None:
        def report_and_look(text: str) -> None:
            report(text)
            self.seen.append(self.look())

        return super().advance(name, report_and_look)


def move(folder: Path, config: Config) -> list[tuple[int, str]]:
    """Serve until the model is on the NPU. Returns the answers during the move."""
    bundles = Watched(folder / "config.toml", OVERRIDES)
    bundles.seen = []
    with serving(config, better_bundles=bundles) as running, running.http() as client, ThreadPoolExecutor() as pool:
        asking = Asking(running)
        bundles.look = lambda: str(client.get("/readyz").json()["models"][0]["background"])

        def is_built() -> bool:
            time.sleep(0.2)  # leaves the processor to the build, which has the lowest priority
            return (folder / "models" / "tiny-npu").is_dir()

        assert device_of(client) == "cpu"
        wait_until(is_built, "no bundle for the NPU was built")
        assert any("a bundle for the NPU: part 1 of 1" in text for text in bundles.seen), bundles.seen
        done = pool.submit(asking.run)
        wait_until(lambda: device_of(client) == "emulated", "the model was not moved")
        count = len(asking.results)
        wait_until(lambda: len(asking.results) > count + 1, "the model does not answer on the NPU")
        asking.stop()
        done.result()
        return asking.results


def stop_in_the_first_part(folder: Path, config: Config) -> None:
    """As a gateway that is stopped during the build."""
    bundles = NpuBundles(folder / "config.toml", OVERRIDES)
    assert bundles.next(config.models) == "tiny"
    assert bundles.advance("tiny", lambda text: None) is None

    def report(text: str) -> None:
        if text.endswith("compiling"):
            bundles.stop()

    with pytest.raises(BundleError, match="crashed") as caught:
        bundles.advance("tiny", report)
    bundles.failed("tiny", caught.value.message)
    assert not (folder / "models" / "tiny-npu").exists()


def test_model_moves_to_the_npu_without_a_lost_request(
    npu: NpuDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path)
    with caplog.at_level(logging.INFO):
        stop_in_the_first_part(tmp_path, config)
        assert "tiny: a bundle for the NPU: 1 of 2 pieces are finished" in caplog.text
        assert cli.main(["list", "--config", str(tmp_path / "config.toml")]) == 0
        assert "tiny-npu\tunfinished\t" in capsys.readouterr().out
        caplog.clear()
        results = move(tmp_path, config)
    assert {status for status, _ in results} == {200}
    assert "1 of 2 pieces" not in caplog.text, "the first piece was made again"
    assert "tiny: answers from the NPU now; its bundle is tiny-npu" in caplog.text
    assert check_hashes(tmp_path / "models" / "tiny-npu") == []
    assert not unfinished_folder(tmp_path / "models" / "tiny-npu").exists()
    lines = (tmp_path / "config.toml").read_text(encoding="utf-8").splitlines()
    assert lines[2].startswith("# npu-gateway: on the NPU since 2") and "int4" in lines[2]
    assert [*lines[:2], *lines[3:]] == [
        "# mine",
        "[models.tiny]",
        'source = "models/weights"  # float',
        "max_sequences = 2",
    ]
    again = prepare(load_config(tmp_path / "config.toml", overrides=OVERRIDES)).models["tiny"]
    assert isinstance(again, LocalModel)
    assert (again.path, again.provider) == (str(tmp_path / "models" / "tiny-npu"), "qnn")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"architecture": "qwen2", "bias": True, "tied": False}], ids=["llama", "qwen2"]
)
def test_pull_of_the_hub_is_served_by_the_npu_later(
    npu: NpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """As a user does it: `pull hf:...`, then `serve`, with the real pauses."""
    folder = write_tiny_folder(tmp_path / "weights", context=64, **options)
    (tmp_path / "config.toml").write_text("[breaker]\nenabled = false\n", encoding="utf-8")
    with serve_models() as server:
        variables = {
            "NPU_GATEWAY_MODEL_SERVER": server.url,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
        }
        server.repos["org/Tiny-135M"] = {path.name: path.read_bytes() for path in folder.iterdir()}
        done = gateway("pull", "hf:org/Tiny-135M", cwd=tmp_path, variables=variables)
        assert done.returncode == 0, done.stderr
    with (
        serving_process("--port", 0, "--provider", "qnn", cwd=tmp_path, **variables) as running,
        httpx.Client(timeout=60) as client,
    ):
        base = running.read_greeting().split(" on ")[1].split()[0]
        body = {"model": "tiny-135m", "prompt": "Hi", "max_tokens": 3}
        assert "tiny-135m  ready on cpu" in running.output
        assert client.post(f"{base}/completions", json=body).status_code == 200
        ready = f"{base.removesuffix('/v1')}/readyz"

        def is_moved() -> bool:
            time.sleep(0.5)
            return bool(client.get(ready).json()["models"][0]["engine"]["device"] == "emulated")

        wait_until(is_moved, "the model was not moved")
        assert client.post(f"{base}/completions", json=body).status_code == 200
    text = (tmp_path / "config.toml").read_text(encoding="utf-8")
    assert '\nsource = "hf:org/Tiny-135M"' in text and "# npu-gateway: on the NPU since 2" in text


class NoBuild:
    """In place of the child process: `replies` are its answers, and its errors."""

    def __init__(self, *replies: BackgroundStep | BundleError) -> None:
        self.replies = list(replies)

    def __call__(self, *arguments: object, **options: object) -> Raw:
        assert options["is_apart"], "Ctrl-C would be a failure of the build"
        reply = self.replies.pop(0)
        if isinstance(reply, BundleError):
            raise reply
        return Raw(msgspec.json.encode(reply))


@pytest.fixture
def waiting(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A configured model that waits for a bundle for the NPU, on a machine with an NPU."""
    shutil.copytree(tiny, tmp_path / "models" / "tiny")
    write_tiny_folder(tmp_path / "weights")
    (tmp_path / "config.toml").write_text('[models.tiny]\nsource = "weights"\n', encoding="utf-8")
    monkeypatch.setattr(npu_bundles, "npu_for", lambda provider: NpuDevice(kind="npu", name="X1E", soc=60))
    return load_config(tmp_path / "config.toml")


def test_failed_build_is_one_warning_and_is_not_repeated(
    waiting: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundles = NpuBundles(tmp_path / "config.toml", {})
    monkeypatch.setattr(npu_bundles, "run_in_child", NoBuild(BundleError("The NPU refuses part 1.")))
    pieces = unfinished_folder(tmp_path / "models" / "tiny-npu")
    pieces.mkdir(parents=True)
    assert bundles.next(waiting.models) == "tiny"
    with pytest.raises(BundleError) as caught:
        bundles.advance("tiny", lambda text: None)
    bundles.failed("tiny", caught.value.message)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "tiny: stays on the CPU: The NPU refuses part 1; `npu-gateway models --prepare` tries it again and shows the "
        "progress"
    ]
    assert bundles.next(waiting.models) is None
    assert NpuBundles(tmp_path / "config.toml", {}).next(waiting.models) is None, "the next start tries it again"
    assert not pieces.exists() and not (tmp_path / "models" / "tiny-npu").exists()
    assert "\n# npu-gateway: no bundle for the NPU (2" in (tmp_path / "config.toml").read_text(encoding="utf-8")
    state = examine(waiting.models["tiny"])
    assert state.state == "ready" and state.detail == "on the CPU; no bundle for the NPU: The NPU refuses part 1."


def test_lack_of_memory_is_a_pause(
    waiting: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    bundles, reports = NpuBundles(tmp_path / "config.toml", {}, clock=lambda: now[0]), list[str]()
    lack = BackgroundStep(waits="5.0 GB of memory are needed, 2.0 GB are free")
    monkeypatch.setattr(npu_bundles, "run_in_child", NoBuild(lack, lack, BackgroundStep(done=1, count=3)))
    for _ in range(3):
        assert bundles.next(waiting.models) == "tiny"
        assert bundles.advance("tiny", reports.append) is None
        assert bundles.next(waiting.models) == ("tiny" if "finished" in reports[-1] else None)
        now[0] += 301
    assert reports[0] == "a bundle for the NPU waits: 5.0 GB of memory are needed, 2.0 GB are free"
    assert reports[-1] == "a bundle for the NPU: 1 of 3 pieces are finished"
    assert caplog.text.count("close other programs") == 1


@pytest.mark.parametrize(
    "text",
    [
        '[models.tiny]\nsource = "weights"\nprovider = "cpu"\n',
        '[models.tiny]\npath = "tiny"\n',
        '[models.tiny]\nsource = "model.gguf"\n',
        "[server]\nport = 1\n",
        "[models.tiny\n",
    ],
    ids=["cpu", "no-source", "gguf", "removed", "damaged"],
)
def test_other_models_wait_for_nothing(
    waiting: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(npu_bundles, "npu_for", lambda provider: None if provider == "cpu" else object())
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    assert NpuBundles(tmp_path / "config.toml", {}).next(waiting.models) is None


def test_model_on_demand_waits_for_its_first_request(waiting: Config, tmp_path: Path) -> None:
    """Else a model that no request names is downloaded and compiled for an hour."""
    file = tmp_path / "config.toml"
    file.write_text('[models.tiny]\nsource = "weights"\nload = "demand"\n', encoding="utf-8")
    bundles, served = NpuBundles(file, {}), load_config(file).models
    (tmp_path / "models" / "tiny").rename(tmp_path / "bundle")
    assert bundles.next(served) is None
    (tmp_path / "bundle").rename(tmp_path / "models" / "tiny")
    assert bundles.next(served) == "tiny"


def test_copied_bundle_and_bundle_that_is_there_already(waiting: Config, tmp_path: Path) -> None:
    """A repository of the Hub can have a bundle. `models --prepare` can build one while the gateway runs."""
    bundles, models_dir = NpuBundles(tmp_path / "config.toml", {}), tmp_path / "models"
    (models_dir / "tiny" / COPIED_FILE).touch()
    assert bundles.next(waiting.models) is None
    (models_dir / "tiny" / COPIED_FILE).unlink()
    shutil.copytree(models_dir / "tiny", models_dir / "tiny-npu")
    assert bundles.next(waiting.models) == "tiny"
    better = bundles.advance("tiny", lambda text: None)
    assert isinstance(better, LocalModel) and better.path == str(models_dir / "tiny-npu")


def test_changes_of_the_configuration_during_a_build(
    waiting: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in the file is no failure of the build, and a model that has changed waits for a restart."""
    monkeypatch.setattr(npu_bundles, "npu_for", lambda provider: None if provider == "cpu" else object())
    bundles, file = NpuBundles(tmp_path / "config.toml", {}), tmp_path / "config.toml"
    text = file.read_text(encoding="utf-8")
    for changed in ("[models.tiny", f'{text}provider = "cpu"\n', '[models.tiny]\nsource = "other"\n'):
        file.write_text(text, encoding="utf-8")
        assert bundles.next(waiting.models) == "tiny"
        file.write_text(changed, encoding="utf-8")
        assert bundles.advance("tiny", lambda text: None) is None
        bundles.moved("tiny")
        bundles.failed("tiny", "The file cannot be read.")
    file.write_text(text, encoding="utf-8")
    assert bundles.next(waiting.models) == "tiny"


def test_failure_that_cannot_be_noted_is_not_repeated(waiting: Config, tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny" / ".npu-failure.json").mkdir()  # as a folder that cannot be written
    bundles = NpuBundles(tmp_path / "config.toml", {})
    assert bundles.next(waiting.models) == "tiny"
    bundles.failed("tiny", "The disk is full.")
    assert bundles.next(waiting.models) is None


def test_model_that_waits_for_memory_does_not_hold_up_others(
    waiting: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "models" / "tiny", tmp_path / "models" / "small")
    with (tmp_path / "config.toml").open("a", encoding="utf-8") as file:
        file.write('[models.small]\nsource = "weights"\n')
    models = load_config(tmp_path / "config.toml").models
    bundles = NpuBundles(tmp_path / "config.toml", {}, clock=lambda: 0.0)
    monkeypatch.setattr(npu_bundles, "run_in_child", NoBuild(BackgroundStep(waits="memory")))
    assert bundles.next(models) == "tiny" and bundles.advance("tiny", lambda text: None) is None
    assert bundles.next(models) == "small"


def test_removed_model_removes_its_pieces(waiting: Config, tmp_path: Path) -> None:
    pieces = unfinished_folder(tmp_path / "models" / "tiny-npu")
    (pieces / "tables").mkdir(parents=True)
    (pieces / "recipe.json").write_text("{}", encoding="utf-8")
    assert examine(waiting.models["tiny"]).detail.endswith("is being built, 1 pieces are finished")
    assert str(pieces) in "".join(remove("tiny", find_user_config(tmp_path / "config.toml")))
    assert not pieces.exists() and not (tmp_path / "models" / "tiny").exists()

"""Faults of bundles that a user can get: each through `serve`, `check` and `pull` is one sentence with the next step.

None is served wrongly, and other models answer. A sick start is in tests/engines/local/test_sick_start.py.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway import cli
from gateway.config.tables import LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.errors import BundleError
from tests.bundles.test_identify import genai, qnn
from tests.support import workers
from tests.support.log_lines import log_lines
from tests.support.server import Running, config_of, scripted, serving

PART = "tiny_part_2_of_3.bin"


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def only(folder: Path, files: dict[str, str]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def for_a_phone(folder: Path) -> None:
    phone = {"name": "qualcomm-snapdragon-8-elite", "htp_version": 79, "soc_model": 69}
    edit(folder / "metadata.json", lambda metadata: metadata.update(chipset_attributes=phone))


def newer_qairt(folder: Path) -> None:
    edit(folder / "metadata.json", lambda metadata: metadata["tool_versions"].update(qairt="99.1.0.270101"))


def truncated(folder: Path) -> None:
    (folder / PART).write_bytes((folder / PART).read_bytes()[:-1])


def vision(folder: Path) -> None:
    edit(folder / "genie_config.json", lambda config: config["dialog"].update(embedding={"size": 256}))


def gpu(folder: Path) -> None:
    stage = {"filename": "a.onnx", **qnn(backend_path="QnnGpu.dll")}
    only(folder, {"genai_config.json": genai({"pipeline": [{"prompt": stage}]}), "a.onnx": "x", "tokenizer.json": "{}"})


def dlc(folder: Path) -> None:
    decoder = {"filename": "a.onnx", **qnn(genie_model="True")}
    only(folder, {"genai_config.json": genai(decoder), "a.onnx": "x", "m.dlc": "x", "tokenizer.json": "{}"})


def lfs_pointer(folder: Path) -> None:
    (folder / PART).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", encoding="utf-8")


class Fault(NamedTuple):
    """`words`: of the reason. `step`: of the next step. `pulls`: a download of it is refused."""

    plant: Callable[[Path], object]
    words: str
    step: str
    pulls: bool = True


FAULTS = {
    "phone": Fault(for_a_phone, "8-elite (Hexagon v79) and this NPU is v73", "`npu-gateway catalog --chip x-elite`"),
    "newer": Fault(newer_qairt, "QAIRT 99.1.0", "`python -m pip install --upgrade onnxruntime-qnn`"),
    "truncated": Fault(truncated, f"{PART} is damaged", "Download the bundle again", pulls=False),  # its zip has CRCs
    "no-tokenizer": Fault(
        lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json", "bundle|original model", pulls=False
    ),
    "vision": Fault(vision, "is a vision model", "`npu-gateway catalog`"),
    "gpu": Fault(gpu, "is compiled for the GPU", "`npu-gateway catalog`"),
    "dlc": Fault(dlc, "is a .dlc model", "`npu-gateway catalog`"),
    "lfs": Fault(lfs_pointer, f"{PART} is a Git LFS pointer", "`git lfs pull`"),
}
FALLBACK = "cpu-fallback"  # a driver that would let the CPU run all of the model


@pytest.fixture(scope="module")
def bundles(published_bundle: Path, ai_hub_compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one bundle for each fault, and one without."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(ai_hub_compiled, folder / FALLBACK)  # which Genie does not run
    shutil.copy(published_bundle / "tokenizer.json", folder / FALLBACK)
    for name in FAULTS:
        shutil.copytree(published_bundle, folder / name)
    for name, fault in FAULTS.items():
        fault.plant(folder / name)
    return folder


def one_sentence(text: str, fault: Fault) -> None:
    assert fault.words in text and re.search(fault.step, text), text
    assert "\n" not in text.strip() and "Traceback" not in text and str(Path.home()) not in text


@pytest.fixture(scope="module")
def served(bundles: Path) -> Iterator[tuple[Running, list[str]]]:
    models = {name: LocalModel(path=name, provider="qnn") for name in FAULTS}
    options = {"backend_path": str(bundles / "gpu" / "a.onnx")}
    models[FALLBACK] = LocalModel(path=FALLBACK, provider="qnn", provider_options=options)
    config = config_of({**models, "other": scripted("Hello.")}, models_dir=bundles)
    with log_lines(logger="gateway.lanes.memory.loader") as lines, serving(config) as server:
        server.wait_until_tried()
        yield server, lines


def refused(server: Running, model: str) -> str:
    body = {"messages": [{"role": "user", "content": "x"}]}
    with server.http() as http:
        reply = http.post("/v1/chat/completions", json={"model": model, **body})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_not_ready")
        assert http.post("/v1/chat/completions", json={"model": "other", **body}).status_code == 200
    return str(reply.json()["error"]["message"])


@pytest.mark.parametrize("name", FAULTS)
def test_serve_names_the_fault_and_the_next_step(served: tuple[Running, list[str]], name: str) -> None:
    server, lines = served
    one_sentence(refused(server, name), FAULTS[name])
    (line,) = (each for each in lines if each.startswith(f"{name} cannot be loaded"))
    one_sentence(line, FAULTS[name])


def test_serve_does_not_fall_back_to_the_cpu(served: tuple[Running, list[str]]) -> None:
    message = refused(served[0], FALLBACK)
    assert "The driver does not open the NPU, or a node of the graph does not run on it" in message
    assert "`npu-gateway doctor`" in message


async def test_code_of_the_driver_is_explained(bundles: Path) -> None:
    model = LocalModel(path=FALLBACK, provider="qnn")
    engine = LocalEngine("m", model, bundles, entry=workers.has_a_driver_without_memory)
    with pytest.raises(BundleError) as raised:
        await engine.start()
    await engine.aclose()
    assert "The NPU has too little memory for this model (error 1002, " in raised.value.message
    assert "`npu-gateway catalog`" in raised.value.message


@pytest.mark.parametrize("name", FAULTS)
def test_check_names_the_fault_and_the_next_step(bundles: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    before = {file.name: file.read_bytes() for file in (bundles / name).iterdir()}
    assert cli.main(["check", str(bundles / name), "--chip", "x-elite", "--json"]) == 1
    (verdict,) = json.loads(capsys.readouterr().out)
    (sentence,) = verdict["refused"] + verdict["missing"]
    one_sentence(sentence, FAULTS[name])
    assert {file.name: file.read_bytes() for file in (bundles / name).iterdir()} == before


def test_check_reports_nodes_on_the_cpu(
    windows_ml_cpu_attention: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(windows_ml_cpu_attention, tmp_path / "m"))
    (bundle / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert cli.main(["check", str(bundle), "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    assert "nodes run on the CPU, between the networks on the NPU" in verdict["warnings"][0]


@pytest.mark.parametrize("name", FAULTS)
def test_pull_names_the_fault_and_the_next_step(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    fault, archive = FAULTS[name], tmp_path / "m.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for file in (bundles / name).iterdir():
            opened.write(file, f"{name}/{file.name}")
    if name == "truncated":  # as a download that was cut
        archive.write_bytes(archive.read_bytes()[:-5000])
    config = tmp_path / "config.toml"
    code = cli.main(["pull", str(archive), "--chip", "x-elite", "--config", str(config)])
    text = capsys.readouterr().err
    assert "Traceback" not in text
    if name == "no-tokenizer":  # it can be added later, so the model is there, and is not served
        assert code == 0 and "missing: tokenizer.json, which the configuration names: the original model has it" in text
        return
    assert code == 1 and not config.exists() and not (tmp_path / "models" / "m").exists()
    last = text.strip().splitlines()[-1]
    if fault.pulls:
        one_sentence(last, fault)
    else:
        assert "m.zip is not unpacked: it is damaged" in last and "Get it again" in last

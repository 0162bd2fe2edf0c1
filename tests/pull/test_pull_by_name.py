"""`npu-gateway pull NAME` through the catalogue, against a server that plays AI Hub's bucket and the Hub."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from gateway import cli
from gateway.bundles.origin import read_origin
from gateway.config.file import load_config
from gateway.config.tables import LocalModel
from tests.support.model_index import X2_ELITE, ai_hub_model, publish, put_hub_list
from tests.support.model_server import ModelServer
from tests.support.other_programs import GENIE


@pytest.fixture
def folder(server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder. The bucket has a model to download, one for X2 Elite, one to export, one for pictures."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
    model = ai_hub_model(server, "Qwen3-0.6B", runtimes=("RUNTIME_GENIEX_QAIRT",))
    other = ai_hub_model(server, "Qwen3-4B-Instruct-2507", chipsets=(X2_ELITE,))
    export = ai_hub_model(server, "Llama-v3-8B-Instruct", shared=False)
    vision = ai_hub_model(server, "Qwen3-VL-4B-Instruct", tags=("MODEL_TAG_VLM",))
    publish(server, model, other, export, vision)
    put_hub_list(server, "qualcomm")
    put_hub_list(server, "llmware")
    server.repos["yichqian/geniex-qairt-models"] = {}
    path = next(path for path in server.files if path.endswith("w4a16-qualcomm_snapdragon_x_elite.zip"))
    server.files[path] = _zip("qwen3_0_6b-geniex_qairt-w4a16-qualcomm_snapdragon_x_elite")
    return tmp_path


def _zip(root: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr(f"{root}/genie_config.json", json.dumps(GENIE))
        archive.writestr(f"{root}/tokenizer.json", "{}")
        archive.writestr(f"{root}/part1_of_1.bin", b"\x01" * 5000)
    return written.getvalue()


def pull(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    file = folder / "config.toml"
    if not file.exists():
        file.write_text('[models.a]\nengine = "scripted"\n', encoding="utf-8")
    code = cli.main(["pull", *arguments, "--config", str(file)])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", ["qwen3-0.6b", "Qwen3-0.6B", "qwen3_0_6b"])
def test_name_is_downloaded_and_configured(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, errors = pull(folder, capsys, name, "--chip", "x-elite")
    assert code == 0, errors
    assert "apache-2.0" in errors
    model = load_config(folder / "config.toml", {}).models["qwen3-0.6b"]
    assert isinstance(model, LocalModel)
    assert (Path(model.path) / "genie_config.json").is_file()
    origin = read_origin(Path(model.path))
    assert origin is not None and origin.url.endswith("_x_elite.zip")
    assert (origin.chip, origin.published_tokens_per_s) == ("x-elite", 88.8)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["llama3-8b"], 1, "export it yourself (2 to 3 hours). `npu-gateway catalog llama3-8b` has the commands."),
        (["qwen3-vl-4b"], 1, "A model for pictures: the gateway serves text only."),
        (["qwen3-4b-2507"], 2, "qwen3-4b-2507 is not published for Snapdragon X Elite. It is published for"),
        (["qwen3-0.6"], 2, "There is no model 'qwen3-0.6' in the catalog. Did you mean qwen3-0.6b?"),
    ],
)
def test_model_that_cannot_be_downloaded_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    found, errors = pull(folder, capsys, *arguments, "--chip", "x-elite")
    assert found == code
    assert message in errors.splitlines()[-1]
    assert not (folder / "models").exists() or not any((folder / "models").iterdir())

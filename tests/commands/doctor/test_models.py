"""The files of each model, what they are made for, and settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gateway.bundles.preflight.preflight import Machine
from gateway.commands.doctor.models import burst, files, fit, npu_graphs, settings
from gateway.config.file import load_config
from gateway.config.tables import GenieModel, LocalModel, ModelConfig
from gateway.errors import BundleError
from gateway.worker.decoders.static.load_check import LoadReport

X_ELITE = Machine(name="Snapdragon X Elite", socs=(60,), architecture=73, qairt="2.51.0")


@pytest.mark.parametrize("has_cpu", [True, False])
def test_bundle_for_the_npu_is_examined_too(tmp_path: Path, tiny: Path, has_cpu: bool) -> None:
    """Also if it is the only one, as on a machine with an NPU."""
    if has_cpu:
        shutil.copytree(tiny, tmp_path / "models" / "m")
    npu = Path(shutil.copytree(tiny, tmp_path / "models" / "m-npu"))
    (tmp_path / "config.toml").write_text('[models.m]\npath = "m"\nsource = "x.gguf"\n', encoding="utf-8")
    model = load_config(tmp_path / "config.toml").models["m"]
    (ready,) = files("m", model)
    assert ready.level == "ok" and "context 512" in ready.detail
    content = (npu / "tokenizer.json").read_bytes()
    (npu / "tokenizer.json").write_bytes(content[:9] + b"#" + content[10:])
    _, damaged = files("m", model)
    assert (damaged.level, damaged.cause) == ("bad", "bundle is damaged")
    assert damaged.detail.startswith("tokenizer.json differs from its hash")
    assert "Remove the folder m-npu and start the gateway" in damaged.step


@pytest.mark.parametrize("kind", [LocalModel, GenieModel])
def test_missing_bundle_has_the_next_step(tmp_path: Path, kind: type[LocalModel | GenieModel]) -> None:
    [found] = files("m", kind(path=str(tmp_path / "gone")))
    assert (found.level, found.cause) == ("bad", "bundle is missing") and "npu-gateway pull" in found.step


@pytest.mark.parametrize(
    ("stated", "level", "cause"),
    [
        ({"chipset_attributes": {"name": "x"}, "soc_model": 60, "dsp_arch": "v73"}, "ok", ""),
        ({"soc_model": 88, "dsp_arch": "v81"}, "bad", "bundle is for another chip"),
        ({"soc_model": 60, "tool_versions": {"qairt": "2.60.0"}}, "bad", "bundle needs a newer runtime"),
        ({"soc_model": 60, "tool_versions": {"qairt": "2.45.0"}}, "ok", ""),
    ],
)
def test_chip_and_runtime_of_the_bundle_are_compared(
    tmp_path: Path, stated: dict[str, object], level: str, cause: str
) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps(stated), encoding="utf-8")
    [found] = fit("m", LocalModel(path=str(tmp_path)), X_ELITE)
    assert (found.level, found.cause) == (level, cause)
    assert not cause or found.step


def test_bundle_that_states_nothing_has_no_line(tmp_path: Path) -> None:
    assert list(fit("m", LocalModel(path=str(tmp_path)), X_ELITE)) == []


@pytest.mark.parametrize(
    ("model", "has_npu", "cause"),
    [
        (LocalModel(path="m", provider="cpu"), True, "provider"),
        (LocalModel(path="m", provider="cpu"), False, ""),
        (LocalModel(path="m", provider="qnn"), False, "provider"),
        (LocalModel(path="m", provider="qnn"), True, ""),
        (LocalModel(path="m", provider_options={"htp_performance_mode": "balanced"}), True, "burst"),
        (LocalModel(path="m", provider_options={"htp_performance_mode": "burst"}), True, ""),
        (LocalModel(path="m", threads=1), False, "threads"),
        (LocalModel(path="m", threads=1), True, ""),  # the NPU computes
        (LocalModel(path="m", threads=8), False, ""),
        (LocalModel(path="m"), False, ""),
        (GenieModel(path="m"), True, ""),
    ],
)
def test_settings_that_make_it_slow_are_found(model: ModelConfig, has_npu: bool, cause: str) -> None:
    found = list(settings("m", model, has_npu=has_npu, cores=8))
    assert [each.cause for each in found] == ([cause] if cause else [])
    assert all(each.step for each in found)


@pytest.fixture
def pipeline(tmp_path: Path) -> LocalModel:
    """A folder with stages for the NPU, as far as the check reads it."""
    decoder = {
        "pipeline": [{"a": {"filename": "a.onnx"}}],
        **{
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_size": 8,
            "hidden_size": 8,
        },
    }
    ids = {"eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 1}
    model = {"type": "decoder-pipeline", "decoder": decoder, "context_length": 8, "vocab_size": 8, **ids}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}), encoding="utf-8")
    return LocalModel(path=str(tmp_path))


CHECK = "gateway.worker.decoders.static.load_check.check_load"


def test_nodes_on_the_cpu_and_burst_are_reported(pipeline: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    report = LoadReport(device="npu", placement={"QNN": 40, "CPU": 2}, load_s=1.5, refusal="error 1010")
    monkeypatch.setattr(CHECK, lambda *arguments: report)
    nodes, mode = npu_graphs("m", pipeline, has_npu=True)
    assert (nodes.level, nodes.cause) == ("note", "partly on the CPU") and "40 nodes on the NPU" in nodes.detail
    assert (mode.level, mode.cause) == ("note", "burst") and "error 1010" in mode.detail
    [accepted] = burst("m", "")
    assert accepted.level == "ok"


def test_driver_code_at_load_is_explained(pipeline: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise BundleError("The NPU refuses a.onnx: QNN error code 1002")

    monkeypatch.setattr(CHECK, refuse)
    [found] = npu_graphs("m", pipeline, has_npu=True)
    assert (found.level, found.cause) == ("bad", "load")
    assert found.because == "m: The NPU has too little memory for this model" and "smaller model" in found.step


def test_bundle_for_the_cpu_on_a_machine_with_an_npu_is_found(tiny: Path) -> None:
    [found] = npu_graphs("m", LocalModel(path=str(tiny)), has_npu=True)
    assert (found.cause, found.symptom) == ("no bundle for the NPU", "not on the NPU")
    assert list(npu_graphs("m", LocalModel(path=str(tiny)), has_npu=False)) == []

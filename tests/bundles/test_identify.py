"""Identifies the published layouts in a folder and in a zip file, and refuses those that cannot be served."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.identify import Found, identify, require_servable
from gateway.errors import BundleError


def qnn(**options: str) -> dict[str, Any]:
    return {"session_options": {"provider_options": [{"qnn": options}]}}


def genai(decoder: dict[str, Any], **model: Any) -> str:
    return json.dumps({"model": {"type": "x", "decoder": decoder, **model}})


STAGE = {"filename": "prompt.onnx", **qnn(backend_path="QnnHtp.dll", soc_model="60")}
GENIE = json.dumps({"dialog": {"type": "basic"}})

#: layout -> the files of a folder
LAYOUTS: list[tuple[str, dict[str, str]]] = [
    ("graph", {"genai_config.json": genai({"filename": "model.onnx"}), "model.onnx": ""}),
    ("pipeline", {"genai_config.json": genai({"pipeline": [{"prompt": STAGE}]}), "prompt.onnx": "", "a.bin": ""}),
    ("genie", {"genie_config.json": GENIE, "part_1_of_1.bin": "", "metadata.json": "{}"}),
    ("genie", {"config.json": GENIE, "part_1_of_1.bin": ""}),
    ("package", {"manifest.json": json.dumps({"components": {"model": {}}})}),
    ("gguf", {"model.Q4_0.gguf": ""}),
    ("huggingface", {"config.json": '{"architectures": ["LlamaForCausalLM"]}', "model.safetensors": ""}),
    ("dlc", {"genai_config.json": genai({"filename": "m.onnx", **qnn(genie_model="True")}), "m.onnx": ""}),
    ("dlc", {"genai_config.json": genai({"filename": "m.onnx"}), "m.onnx": "", "weights.dlc": ""}),
    ("dlc", {"weights.dlc": ""}),
    ("gpu", {"genai_config.json": genai({"pipeline": [{"prompt": qnn(backend_path="C:\\QnnGpu.dll")}]})}),
    ("vision", {"genai_config.json": genai({"filename": "text.onnx"}, vision={"filename": "vision.onnx"})}),
    ("vision", {"genie_config.json": json.dumps({"dialog": {"embedding": {"size": 256}}})}),
    ("vision", {"genie_config.json": GENIE, "metadata.json": '{"genie": {"supports_vision": true}}'}),
    ("vision", {"genie_config.json": GENIE, "metadata.yaml": "genie:\n  supports_vision: true\n"}),
    ("genie", {"genie_config.json": GENIE, "metadata.json": '{"genie": {"supports_vision": false}}'}),
    ("genie", {"genie_config.json": json.dumps({"dialog": {"embedding": None}})}),
    ("text-encoder", {"encoder.json": '{"kind": "embedding"}', "model.onnx": "", "tokenizer.json": "{}"}),
    ("encoder", {"encoder.json": "{}", "model.onnx": "", "model.bin": ""}),
    ("encoder", {"model.onnx": "", "model.bin": "", "metadata.json": "{}"}),
    ("binaries", {"weight_sharing_model_1_of_4.serialized.bin": ""}),
    ("unknown", {"README.md": ""}),
    ("unknown", {}),
]
REFUSED = {"dlc", "gpu", "vision", "encoder", "binaries", "unknown"}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def zipped(path: Path, files: dict[str, str], inner: str) -> Found:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("placeholder/", "") if not files else None
        for name, content in files.items():
            archive.writestr(inner + name, content)
    return identify(zipfile.Path(zipfile.ZipFile(path)))


@pytest.mark.parametrize(("layout", "files"), LAYOUTS)
def test_layout_is_found_in_folder_and_zip(layout: str, files: dict[str, str], tmp_path: Path) -> None:
    folder = write(tmp_path / "m", files)
    assert identify(folder) == Found(layout=layout, root=folder)  # type: ignore[arg-type]
    write(tmp_path / "outer" / "inner", files)
    assert identify(tmp_path / "outer") == Found(layout=layout, root=tmp_path / "outer" / "inner")  # type: ignore[arg-type]
    assert zipped(tmp_path / "flat.zip", files, "").layout == layout
    assert zipped(tmp_path / "inner.zip", files, "inner/").layout == layout


@pytest.mark.parametrize(("layout", "files"), LAYOUTS)
def test_refusal_is_one_sentence_with_the_next_step(layout: str, files: dict[str, str], tmp_path: Path) -> None:
    folder = write(tmp_path / "some-model", files)
    if layout not in REFUSED:
        assert require_servable(folder).layout == layout
        return
    with pytest.raises(BundleError) as caught:
        require_servable(folder)
    assert caught.value.message.startswith(("some-model is ", "some-model has "))
    assert "`npu-gateway catalog`" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"model": ' * 5000])
@pytest.mark.parametrize("name", ["genai_config.json", "genie_config.json", "config.json", "manifest.json"])
def test_damaged_configuration_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        identify(tmp_path)


@pytest.mark.parametrize("value", [None, [], 3, "x", {"decoder": []}, {"decoder": {"pipeline": 7}}])
def test_malformed_values_do_not_end_with_another_error(value: Any, tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": value}), encoding="utf-8")
    assert identify(tmp_path).layout in ("graph", "pipeline")  # its reader names the fault


def test_configuration_in_a_zip_names_the_zip_when_it_is_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as file:
        file.writestr("genie_config.json", "{")
    with pytest.raises(BundleError, match=r"^model\.zip: genie_config\.json cannot be read"):
        identify(zipfile.Path(tmp_path / "model.zip"))


@pytest.mark.parametrize("name", ["genai_config.json", "genie_config.json", "config.json", "manifest.json"])
def test_huge_configuration_is_refused(name: str, tmp_path: Path) -> None:
    """1 MB of JSON can take 40 MB as objects."""
    (tmp_path / name).write_bytes(b'{"a": [' + b"{}," * (1 << 20) + b"{}]}")
    with pytest.raises(BundleError, match=f"{name} cannot be read: it has more than 1 MiB"):
        identify(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="absent cannot be read: No "):
        identify(tmp_path / "absent")

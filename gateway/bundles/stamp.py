"""Bundles that this gateway built: their stamp, their folders, and the decision whether to build one.

The decision needs only the stamp, so the gateway process makes it without the builder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from gateway.bundles.json_file import read_record
from gateway.bundles.replace import finish_replacement
from gateway.errors import BundleError

#: Increase this number when the builder's output for the same source changes. An older bundle is then built again.
BUNDLE_FORMAT = 8
STAMP_FILE = "bundle.json"
COPIED_FILE = ".copied"  # empty; in a bundle that is a copy of its source: to copy it again would change nothing

Activations = Literal["float", "int8"]
#: activations -> the `target` in the stamp of a bundle for the CPU
CPU_TARGETS: dict[Activations, str] = {"int8": "cpu", "float": "cpu-float"}


class Stamp(Struct, frozen=True, kw_only=True):
    """The content of bundle.json: the builder's format, the target and the name of the source."""

    format: int
    target: str
    source: str


class BundlePlan(Struct, frozen=True, kw_only=True):
    """The folder of a model's bundle. `is_ready`: nothing has to be built."""

    folder: Path
    for_npu: bool
    is_ready: bool


class BundleOptions(Protocol):
    """What the configuration of a local model says about its bundle."""

    @property
    def path(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def provider(self) -> Literal["auto", "cpu", "qnn"]: ...

    @property
    def activations(self) -> Activations: ...


class BuildRequest(Struct, frozen=True, kw_only=True):
    """`BundleOptions` for the child process `gateway.builder.main`, which answers with the folder of the bundle."""

    path: str
    source: str
    provider: Literal["auto", "cpu", "qnn"]
    activations: Activations
    models_dir: str


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp of a bundle that was built here. None for any other folder."""
    return read_record(folder / STAMP_FILE, Stamp)


def npu_folder(path: Path) -> Path:
    """The folder of the NPU's bundle, for a model whose bundle for the CPU is at `path`."""
    return path.with_name(f"{path.name}-npu")


def plan_bundle(model: BundleOptions, models_dir: Path, has_npu: Callable[[], bool]) -> BundlePlan:
    """Find the folder of a local model's bundle and decide whether to build it.

    A bundle for the NPU has its own folder, `path`-npu. A bundle of another format, or for other activations on the
    CPU, is built again if its source is known. A copy of a bundle stays as it is.

    Args:
        has_npu: True if the model will run on an NPU. Called only if a bundle for the NPU can be built.

    Raises BundleError if the bundle is missing and there is no source.
    """
    if not model.path:
        raise BundleError("A local model needs `path`, the folder of its bundle.")
    path = models_dir / model.path
    finish_replacement(path)
    finish_replacement(npu_folder(path))
    stamp = read_stamp(path)
    is_for_cpu = stamp is None or stamp.target in CPU_TARGETS.values()
    for_npu = bool(model.source) and is_for_cpu and has_npu()
    folder = npu_folder(path) if for_npu else path
    is_ready = folder.exists() and not (model.source and _is_outdated(folder, model.activations, for_npu))
    if not is_ready and not model.source:
        raise BundleError(f"There is no bundle {model.path}. Correct `path`, or set `source` to build one.")
    return BundlePlan(folder=folder, for_npu=for_npu, is_ready=is_ready)


def _is_outdated(folder: Path, activations: Activations, for_npu: bool) -> bool:
    """True also if the format is newer than `BUNDLE_FORMAT`: possibly this version cannot run it."""
    stamp = read_stamp(folder)
    if stamp is None or (folder / COPIED_FILE).exists():
        return False
    has_other_activations = not for_npu and stamp.target in set(CPU_TARGETS.values()) - {CPU_TARGETS[activations]}
    return stamp.format != BUNDLE_FORMAT or has_other_activations

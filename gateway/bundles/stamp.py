"""Bundles that this gateway built: their stamp, their folders, and the decision whether to build one.

The decision needs only the stamp, so the gateway process makes it without the builder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from gateway.bundles.encoder.bundle import is_encoder_bundle
from gateway.bundles.json_file import read_record, write_record
from gateway.bundles.replace import finish_replacement
from gateway.errors import BundleError

#: Increase this number when the builder's output for the same source changes. An older bundle is then built again.
BUNDLE_FORMAT = 11
STAMP_FILE = "bundle.json"
RECIPE_FILE = "recipe.json"  # of an unfinished build: what it makes
UNFINISHED = ".build"  # in the models folder: the finished pieces of bundles that are being built
_FAILURE_FILE = ".npu-failure.json"  # in the bundle for the CPU; hidden: not part of its hashes
COPIED_FILE = ".copied"  # empty; in a bundle that is a copy of its source: to copy it again would change nothing

Activations = Literal["float", "int8"]
CacheType = Literal["float16", "float32"]  # of the keys and values on the CPU; single precision is for comparisons
#: activations -> the `target` in the stamp of a bundle for the CPU
CPU_TARGETS: dict[Activations, str] = {"int8": "cpu", "float": "cpu-float"}


#: The number format of weights that the source has in floating point
Precision = Literal["float16", "int8", "int4"]


class Loss(Struct, frozen=True, kw_only=True):
    """What the number format of the weights changes, measured on `tokens` tokens of text.

    Args:
        before, after: perplexity of the source in float32, and of the bundle.
        agreement: share of the tokens after which both have the same most probable token, 0 to 1.
    """

    before: float
    after: float
    agreement: float
    tokens: int

    def __str__(self) -> str:
        return f"perplexity {self.before:.2f} -> {self.after:.2f}, same first choice {self.agreement:.1%}"


class Stamp(Struct, frozen=True, kw_only=True):
    """The content of bundle.json.

    Args:
        format: `BUNDLE_FORMAT` of the builder.
        target: what it was built for.
        source: the name of the source.
        precision: on the CPU, the number format of the weights. "source": that of a quantised source. "": unknown.
        loss: None: not measured.
    """

    format: int
    target: str
    source: str
    precision: str = ""
    loss: Loss | None = None

    def numbers(self) -> str:
        """The number format of the weights and what it changes, in words. "": unknown."""
        words = "quantised by its source" if self.precision == "source" else self.precision
        return f"{words}: {self.loss}" if self.loss else words


class BundlePlan(Struct, frozen=True, kw_only=True):
    """The folder of a model's bundle. `is_ready`: nothing has to be built.

    `waits_for_npu`: the CPU answers until the gateway has built the bundle for the NPU in the background.
    """

    folder: Path
    for_npu: bool
    is_ready: bool
    waits_for_npu: bool = False


class NpuFailure(Struct, frozen=True, kw_only=True):
    """Why a model has no bundle for the NPU, or none that loads. It holds for the versions that are in it."""

    message: str
    source: str
    versions: tuple[int, str]


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

    @property
    def precision(self) -> Precision: ...


class BuildRequest(Struct, frozen=True, kw_only=True):
    """`BundleOptions` for the child process `gateway.builder.main`, which answers with the folder of the bundle."""

    path: str
    source: str
    provider: Literal["auto", "cpu", "qnn"]
    activations: Activations
    precision: Precision = "int4"
    models_dir: str


def build_request(model: BundleOptions, models_dir: Path) -> BuildRequest:
    """What the child process gets for the bundle of a model."""
    return BuildRequest(
        path=model.path,
        source=model.source,
        provider=model.provider,
        activations=model.activations,
        precision=model.precision,
        models_dir=str(models_dir),
    )


class BackgroundStep(Struct, frozen=True, kw_only=True):
    """What `gateway.builder.npu.background` has done with a `BuildRequest`.

    Args:
        done, count: pieces that are finished, and all pieces.
        folder: the finished bundle; "": pieces are missing.
        waits: what was missing to make the next piece; "": nothing.
    """

    done: int = 0
    count: int = 0
    folder: str = ""
    waits: str = ""


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp of a bundle that was built here. None for any other folder."""
    return read_record(folder / STAMP_FILE, Stamp)


def npu_folder(path: Path) -> Path:
    """The folder of the NPU's bundle, for a model whose bundle for the CPU is at `path`."""
    return path.with_name(f"{path.name}-npu")


def built_folder(path: Path) -> Path:
    """`path`, or the folder of the NPU's bundle if only that one is built."""
    return npu_folder(path) if not path.exists() and npu_folder(path).is_dir() else path


def plan_bundle(model: BundleOptions, models_dir: Path, has_npu: Callable[[], bool]) -> BundlePlan:
    """Find the folder of a local model's bundle and decide whether to build it.

    A bundle for the NPU has its own folder, `path`-npu. A bundle of another format, or for other activations or with
    other weights on the CPU, is built again if its source is known. A copy of a bundle stays as it is.

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
    is_ready = folder.exists() and not (model.source and _is_outdated(folder, model, for_npu))
    if not is_ready and not model.source:
        raise BundleError(f"There is no bundle {model.path}. Correct `path`, or set `source` to build one.")
    if is_ready:
        remove_pieces(unfinished_folder(folder))  # of a build that was killed at its very end
    return BundlePlan(folder=folder, for_npu=for_npu, is_ready=is_ready)


def plan_start(model: BundleOptions, models_dir: Path, has_npu: Callable[[], bool]) -> BundlePlan:
    """As `plan_bundle`, for a model that shall answer now.

    Weights in floating point take up to an hour to compile for the NPU, so the plan is the bundle for the CPU until
    that is done.
    """
    plan = plan_bundle(model, models_dir, has_npu)
    is_usable = plan.is_ready and read_failure(models_dir / model.path, model.source) is None
    if not plan.for_npu or is_usable or not has_float_weights(model.source, models_dir):
        return plan
    on_cpu = plan_bundle(model, models_dir, lambda: False)
    is_final = (on_cpu.folder / COPIED_FILE).exists() or is_encoder_bundle(on_cpu.folder)
    return replace(on_cpu, waits_for_npu=not is_final)


def has_float_weights(source: str, base: Path) -> bool:
    """True for a Hugging Face folder, on the Hub or below `base`, and not for a GGUF file, a wheel or a bundle.

    A repository of the Hub can also have a bundle; that is known when it was copied.
    """
    kind, _, name = source.partition(":")
    if kind == "hf":
        return not name.lower().endswith(".gguf") and ":" not in name
    folder = base / source
    is_bundle = (folder / "genai_config.json").is_file()
    return kind != "pypi" and folder.is_dir() and not is_bundle and any(folder.glob("*.safetensors"))


def unfinished_folder(bundle: Path) -> Path:
    """The folder for the finished pieces of a bundle that is being built."""
    return bundle.parent / UNFINISHED / bundle.name


def unfinished_folders(models_dir: Path) -> list[Path]:
    """`unfinished_folder` of each bundle that is being built."""
    folder = models_dir / UNFINISHED
    return sorted(path for path in folder.iterdir() if (path / RECIPE_FILE).is_file()) if folder.is_dir() else []


def remove_pieces(folder: Path) -> None:
    """Remove an `unfinished_folder`: best effort. The recipe is first, because pieces without it are never used.

    So if this process is killed meanwhile, no later build takes a piece that lacks files.
    """
    try:
        (folder / RECIPE_FILE).unlink(missing_ok=True)
    except OSError:  # Windows: another program reads it
        return
    shutil.rmtree(folder, ignore_errors=True)


def unfinished_pieces(bundle: Path) -> int | None:
    """The number of finished pieces of a bundle that is being built. None: it is not being built."""
    folder = unfinished_folder(bundle)
    if not (folder / RECIPE_FILE).is_file():
        return None
    return sum(path.is_dir() and path.suffix != ".new" for path in folder.iterdir())


def read_failure(bundle: Path, source: str) -> NpuFailure | None:
    """Why the background build for the NPU failed. None: it did not, or it was another source or version.

    Args:
        bundle: the folder of the bundle for the CPU.
    """
    failure = read_record(bundle / _FAILURE_FILE, NpuFailure)
    return failure if failure and (failure.source, failure.versions) == (source, _versions()) else None


def write_failure(bundle: Path, source: str, message: str) -> None:
    """So that the background build is not tried again: best effort."""
    write_record(bundle / _FAILURE_FILE, NpuFailure(message=message, source=source, versions=_versions()))


def forget_failure(bundle: Path) -> None:
    (bundle / _FAILURE_FILE).unlink(missing_ok=True)


def _versions() -> tuple[int, str]:
    try:
        return BUNDLE_FORMAT, metadata.version("onnxruntime-qnn")
    except metadata.PackageNotFoundError:
        return BUNDLE_FORMAT, ""


def _is_outdated(folder: Path, model: BundleOptions, for_npu: bool) -> bool:
    """True also if the format is newer than `BUNDLE_FORMAT`: possibly this version cannot run it."""
    stamp = read_stamp(folder)
    if stamp is None or (folder / COPIED_FILE).exists():
        return False
    is_for_cpu = not for_npu and stamp.target in CPU_TARGETS.values()
    has_other_activations = is_for_cpu and stamp.target != CPU_TARGETS[model.activations]
    can_choose = is_for_cpu and not is_encoder_bundle(folder)
    has_other_weights = can_choose and (stamp.precision or "int4") not in ("source", model.precision)
    return stamp.format != BUNDLE_FORMAT or has_other_activations or has_other_weights

"""Builds a bundle from a model source: a folder in onnxruntime-genai's layout. It appears complete or not at all."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.graphs.genai_writer import genai_config
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import ModelSource
from gateway.bundles.hashes import CHECKED_FILE, check_hashes, write_hashes
from gateway.bundles.stamp import BUNDLE_FORMAT, CPU_TARGETS, STAMP_FILE, Activations, Stamp, read_stamp
from gateway.child import Progress
from gateway.errors import BundleError


class Graphs(Struct, frozen=True, kw_only=True):
    """What genai_config.json says about the graphs of a target."""

    decoder: dict[str, Any]
    context_length: int


class Target(Protocol):
    """What a bundle is built for. `name` is the `target` in its stamp."""

    @property
    def name(self) -> str: ...

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> Graphs:
        """Write the graphs into `folder`. Raises BundleError."""


_ABANDONED_S = 3600.0  # an older temporary folder belongs to a build that was killed


def build_bundle(source: Path, out: Path, *, progress: Progress, target: Target | None = None) -> Path:
    """Build `out` from a GGUF file or a Hugging Face folder; returns `out`.

    Without a target it is for the CPU. A bundle at `out` that was built here is replaced. Raises BundleError, also if
    anything else is at `out`.
    """
    target = target or CpuTarget()
    if out.exists() and read_stamp(out) is None:
        raise BundleError(
            f"{out.name} exists and is not a bundle that was built here. Choose another name or remove it."
        )
    progress("reading the source", 0.0)
    model = open_source(source)
    progress("reading the source", 1.0)
    with _atomic_folder(out) as folder:
        graphs = target.write(model, folder, progress)
        config = replace(model.config, context_length=graphs.context_length)
        write_json(folder / "genai_config.json", genai_config(config, model.generation, graphs.decoder))
        (folder / "tokenizer.json").write_text(model.tokenizer_json(), encoding="utf-8", newline="\n")
        write_json(folder / "tokenizer_config.json", model.tokenizer_config())
        _copy_licences(source if source.is_dir() else source.parent, folder)
        write_json(folder / STAMP_FILE, Stamp(format=BUNDLE_FORMAT, target=target.name, source=source.name))
        write_hashes(folder)
    return out


def copy_bundle(source: Path, out: Path) -> Path:
    """Copy a bundle to `out` and check the copy. Links to files become files. Raises BundleError."""
    with _atomic_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=_not_copied)
        damages = check_hashes(folder)
        if damages:
            raise BundleError(f"{source.name} is damaged: {damages[0]}. Fetch it again.")
        if damages is None:
            write_hashes(folder)
    return out


def _not_copied(folder: str, names: list[str]) -> list[str]:
    """Links to folders can be loops."""
    paths = {name: Path(folder, name) for name in names}
    linked = [name for name, path in paths.items() if path.is_symlink() and not path.is_file()]
    return [*linked, CHECKED_FILE]


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder next to `out`. At the end it is renamed to `out`, so readers see only a complete bundle."""
    building = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.building")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        building.mkdir()
        yield building
        _replace(out, building)
    except OSError as error:
        raise BundleError(f"{out.name} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _replace(out: Path, building: Path) -> None:
    """Rename `building` to `out`. If another process does so at the same time, one of the two bundles remains."""
    old = building.with_suffix(".old")
    with suppress(FileNotFoundError):
        out.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        building.rename(out)
    except OSError:
        if read_stamp(out) is None:
            raise


def _remove_abandoned(out: Path) -> None:
    """Remove the temporary folders of builds that were killed."""
    for left in out.parent.glob(f".{out.name}.*"):
        if time.time() - left.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)


class CpuTarget(Struct, frozen=True):
    """One graph with dynamic shapes for the CPU provider."""

    activations: Activations = "int8"

    @property
    def name(self) -> str:
        return CPU_TARGETS[self.activations]

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> Graphs:
        report = partial(progress, "writing the layers")
        write_cpu_graph(source, folder / "model.onnx", report, self.activations)
        decoder = {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        }
        return Graphs(decoder=decoder, context_length=source.config.context_length)


def _copy_licences(folder: Path, building: Path) -> None:
    for pattern in ("LICENSE*", "LICENCE*", "NOTICE*"):
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, building / path.name)


def write_json(path: Path, content: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))

"""Builds a bundle from a model source: a folder in onnxruntime-genai's layout. It appears complete or not at all."""

from __future__ import annotations

import itertools
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.builder.encoders.build import write_encoder_files
from gateway.builder.encoders.families.find import is_encoder
from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.graphs.genai_writer import genai_config
from gateway.builder.graphs.matrices import Matrices
from gateway.builder.loss.measure import measure_loss, text_ids
from gateway.builder.loss.reference import compute_reference
from gateway.builder.size import cpu_bytes, layer_weights
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import ModelSource
from gateway.bundles.bundle import is_of_machine
from gateway.bundles.disk import folder_bytes, require_space, require_writable
from gateway.bundles.hashes import HASHES_FILE, check_hashes, write_hashes
from gateway.bundles.replace import new_folder
from gateway.bundles.stamp import (
    BUNDLE_FORMAT,
    COPIED_FILE,
    CPU_TARGETS,
    STAMP_FILE,
    Activations,
    Loss,
    Precision,
    Stamp,
    read_stamp,
)
from gateway.child import Progress
from gateway.errors import BundleError

SMALLEST_MEASURED = 10_000_000  # weights in the layers. What a smaller model answers to a text says nothing


class Graphs(Struct, frozen=True, kw_only=True):
    """What genai_config.json says about the graphs of a target."""

    decoder: dict[str, Any]
    context_length: int
    precision: str = ""  # see Stamp
    loss: Loss | None = None


class Target(Protocol):
    """What a bundle is built for. `name` is the `target` in its stamp."""

    @property
    def name(self) -> str: ...

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> Graphs:
        """Write the graphs into `folder`. Raises BundleError."""


def build_bundle(source: Path, out: Path, *, progress: Progress, target: Target | None = None) -> Path:
    """Build `out` from a GGUF file or a Hugging Face folder; returns `out`.

    Without a target it is for the CPU. A bundle at `out` that was built here is replaced. Raises BundleError, also if
    anything else is at `out`.
    """
    target = target or CpuTarget()
    _require_replaceable(out)
    require_writable(out.parent)
    if source.is_dir() and is_encoder(source):
        return _build_encoder(source, out, progress, target)
    progress("reading the source", 0.0)
    model = open_source(source)
    progress("reading the source", 1.0)
    for note in model.notes():
        progress(note, 1.0)
    with new_folder(out, lambda: progress(f"waiting for another program that writes {out.name}", 0.0)) as folder:
        graphs = target.write(model, folder, progress)
        config = replace(model.config, context_length=graphs.context_length)
        write_json(folder / "genai_config.json", genai_config(config, model.generation, graphs.decoder))
        (folder / "tokenizer.json").write_text(model.tokenizer_json(), encoding="utf-8", newline="\n")
        write_json(folder / "tokenizer_config.json", model.tokenizer_config())
        _copy_licences(source if source.is_dir() else source.parent, folder)
        stamp = Stamp(format=BUNDLE_FORMAT, target=target.name, source=source.name)
        write_json(folder / STAMP_FILE, replace(stamp, precision=graphs.precision, loss=graphs.loss))
        write_hashes(folder)
    return out


def _build_encoder(source: Path, out: Path, progress: Progress, target: Target) -> Path:
    """The bundle of an encoder: for the CPU, and with another target also the graphs for the NPU."""
    cpu = target if isinstance(target, CpuTarget) else CpuTarget()
    require_space({out.parent: folder_bytes(source)}, "The bundle")
    with new_folder(out, lambda: progress(f"waiting for another program that writes {out.name}", 0.0)) as folder:
        write_encoder_files(source, folder, cpu.activations, progress, for_npu=cpu is not target)
        _copy_licences(source, folder)
        numbers = {"int8": "int8", "float": "float32"}[cpu.activations]
        stamp = Stamp(format=BUNDLE_FORMAT, target=cpu.name, source=source.name, precision=numbers)
        write_json(folder / STAMP_FILE, stamp)
        write_hashes(folder)
    return out


def _require_replaceable(out: Path) -> None:
    is_ours = read_stamp(out) is not None or (out / HASHES_FILE).is_file()
    if out.exists() and not is_ours:
        raise BundleError(
            f"{out.name} exists and is not a bundle that was built here. Choose another name or remove it."
        )


def copy_bundle(source: Path, out: Path) -> Path:
    """Copy a bundle to `out` and check the copy. Links to files become files. Raises BundleError."""
    _require_replaceable(out)
    require_space({out.parent: folder_bytes(source, is_of_machine)}, f"The copy of {source.name}")
    with new_folder(out) as folder:
        _copy_files(source, folder)
        damages = check_hashes(folder)
        if damages:
            raise BundleError(f"{source.name} is damaged: {damages[0]}. Fetch it again.")
        if damages is None:
            write_hashes(folder)
        (folder / COPIED_FILE).touch()
    return out


def _copy_files(source: Path, folder: Path) -> None:
    """Stops at the first error, unlike `shutil.copytree`. Does not follow links to folders: they can be loops."""
    for path, folders, names in os.walk(source):
        folders[:] = itertools.filterfalse(is_of_machine, folders)
        target = folder / Path(path).relative_to(source)
        target.mkdir(exist_ok=True)
        for name in names:
            if not is_of_machine(name) and Path(path, name).is_file():
                shutil.copyfile(Path(path, name), target / name)


class CpuTarget(Struct, frozen=True):
    """One graph with dynamic shapes for the CPU provider."""

    activations: Activations = "int8"
    precision: Precision = "int4"

    @property
    def name(self) -> str:
        return CPU_TARGETS[self.activations]

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> Graphs:
        require_space({folder.parent: cpu_bytes(source, self.precision)}, "The bundle")
        matrices, loss = self._write_graph(source, folder / "model.onnx", progress)
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
        context = source.config.context_length
        return Graphs(decoder=decoder, context_length=context, precision=matrices.stored_as(), loss=loss)

    def _write_graph(self, source: ModelSource, path: Path, progress: Progress) -> tuple[Matrices, Loss | None]:
        """With a quantisation that a text guides, and its loss, if the weights of a model of some size are rounded."""
        matrices, writing = Matrices(source, self.precision), partial(progress, "writing the layers")
        if matrices.stored_as() not in ("int4", "int8") or layer_weights(source.config) < SMALLEST_MEASURED:
            write_cpu_graph(matrices, path, writing, self.activations)
            return matrices, None
        ids = text_ids(source)
        hidden, importance = compute_reference(source, ids, path.parent, partial(progress, "reading a text in floats"))
        matrices = Matrices(source, self.precision, importance)
        boundaries = write_cpu_graph(matrices, path, writing, self.activations)
        measuring = partial(progress, "measuring the loss")
        return matrices, measure_loss(source, ids, hidden, path, boundaries, measuring)


def _copy_licences(folder: Path, building: Path) -> None:
    for pattern in ("LICENSE*", "LICENCE*", "NOTICE*"):
        for path in folder.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, building / path.name)


def write_json(path: Path, content: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2))

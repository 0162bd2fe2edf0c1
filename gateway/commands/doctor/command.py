"""`npu-gateway doctor`: the parts of this machine, and whether each configured model can run on it.

Each check uses the real part, also the NPU's driver.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway import __version__
from gateway.commands import options
from gateway.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from gateway.config.tables import BundleModel, Config, LocalModel

LIBRARIES = ("onnxruntime", "onnxruntime-qnn", "tokenizers", "numpy", "litestar", "uvicorn")
MARKS = {"ok": "[green]ok[/green]  ", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red] "}


class Finding(NamedTuple):
    """One line of the report. A `bad` one makes the command fail; a `note` does not."""

    level: Literal["ok", "note", "bad"]
    what: str
    detail: str


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Check this machine, the configuration and every model. Exit code 1 if a line is bad."
    parser = subparsers.add_parser("doctor", help="check the machine, the configuration, the models", description=text)
    options.add_config(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    findings = list(examine_all(arguments))
    if arguments.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        _print(findings)
    return 1 if any(finding.level == "bad" for finding in findings) else 0


def examine_all(arguments: argparse.Namespace) -> Iterator[Finding]:
    yield from machine()
    yield from libraries()
    yield npu()
    try:
        config = options.load(arguments)
    except ConfigError as error:
        yield Finding("bad", "configuration", error.message)
        return
    yield from configuration(arguments, config)
    yield from models(config)


def machine() -> Iterator[Finding]:
    yield Finding("ok", "npu-gateway", __version__)
    system = f"{platform.system()} {platform.release()} on {platform.machine()}"
    yield Finding("ok", "machine", f"{system}, {os.cpu_count()} cores")
    bits = struct.calcsize("P") * 8
    python = f"{platform.python_version()}, {bits} bit, {sys.executable}"
    emulated = (
        platform.system() == "Windows" and "ARM64" in platform.machine() and "ARM" not in platform.python_compiler()
    )
    if bits != 64:
        yield Finding("bad", "Python", f"{python}: the gateway needs a 64-bit Python")
    elif emulated:
        yield Finding("bad", "Python", f"{python}: built for x64; the NPU needs an ARM64 Python")
    else:
        yield Finding("ok", "Python", python)


def libraries() -> Iterator[Finding]:
    for name in LIBRARIES:
        try:
            yield Finding("ok", name, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding("note" if name == "onnxruntime-qnn" else "bad", name, "not installed")


def npu() -> Finding:
    """The device of `provider = "qnn"`."""
    from gateway.qnn.detect import detect_npu

    try:
        device = detect_npu(emulated=True)
    except BundleError as error:
        return Finding("bad", "NPU", f"{error.message} Check the NPU driver.")
    if device is None:
        return Finding("note", "NPU", "none; models run on the CPU")
    if device.kind == "emulated":
        return Finding("note", "NPU", f"none; provider 'qnn' would use slow {device.name}, 'auto' takes the CPU")
    version = f"Hexagon v{device.architecture}" if device.architecture else "unknown Hexagon version"
    return Finding("ok", "NPU", f"{device.name}, {version}")


def configuration(arguments: argparse.Namespace, config: Config) -> Iterator[Finding]:
    from gateway.config.file import has_keys
    from gateway.config.find import find_config
    from gateway.config.keys import key_warnings

    file, _ = find_config(arguments.config)
    address = options.base_url(config.server.host, config.server.port)
    yield Finding("ok", "configuration", f"{file}: {len(config.models)} models, {address}")
    for line in key_warnings(config.server, file if has_keys(file) else None):
        yield Finding("note", "keys", line)
    if config.server.insecure and not config.server.api_keys:
        yield Finding(
            "note", "keys", "insecure is set and there are no keys: every machine that can connect may use the gateway"
        )


def models(config: Config) -> Iterator[Finding]:
    from gateway.commands.models.model_state import examine
    from gateway.config.tables import BundleModel, LocalModel

    for name, model in config.models.items():
        found = examine(model)
        what = f"model {name}"
        match found.state, model:
            case "ready", BundleModel(path=path):
                size = f", context {found.context_length}, {found.bytes / 1e6:.0f} MB" if found.bytes else ""
                speed = f", published: {found.published}" if found.published else ""
                yield Finding(
                    "note" if found.detail else "ok", what, f"{path}{size}{speed}{found.detail and f'; {found.detail}'}"
                )
                if isinstance(model, LocalModel):
                    yield from npu_graphs(name, model)
            case "missing", LocalModel(source=source) if source:
                yield Finding("note", what, found.detail)
            case (("missing" | "broken"), _):
                yield Finding("bad", what, found.detail)
            case _:
                yield Finding("ok", what, f"{found.state} {found.detail}")
        if isinstance(model, BundleModel) and found.state in ("ready", "broken"):
            yield from damages(name, model)


def damages(name: str, model: BundleModel) -> Iterator[Finding]:
    """Compare the files with their hashes. Files that were compared this week and did not change are not read."""
    from gateway.bundles.hashes import check_hashes, repair_advice
    from gateway.commands.models.model_state import bundle_folders
    from gateway.config.tables import LocalModel

    for folder in bundle_folders(model):
        if found := check_hashes(folder, quick=True):
            has_source = isinstance(model, LocalModel) and bool(model.source)
            advice = repair_advice(name, found, folder=folder, has_source=has_source)
            yield Finding("bad", f"files of {name}", f"{'; '.join(map(str, found))}. {advice}")


def npu_graphs(name: str, model: LocalModel) -> Iterator[Finding]:
    """Load the model's graphs for the NPU, and report how many of their nodes run there."""
    from gateway.bundles.genai_config import read_genai_config
    from gateway.bundles.model_package import variant_folder
    from gateway.bundles.open import is_genie
    from gateway.commands.models.model_state import bundle_folders
    from gateway.qnn.detect import npu_for
    from gateway.worker.decoders.static.load_check import check_load

    what = f"model {name} on the NPU"
    for folder in bundle_folders(model):
        try:
            is_used = folder == Path(model.path) or npu_for(model.provider) is not None
            if not is_used or not (is_genie(folder) or read_genai_config(variant_folder(folder)).decoder.stages):
                continue
            found = check_load(variant_folder(folder), model.provider, model.provider_options)
        except BundleError as error:
            yield Finding("bad", what, error.message)
            continue
        fallback = found.placement.get("CPU", 0)
        where = f"{found.placement.get('QNN', 0)} nodes on the NPU ({found.device}), {fallback} on the CPU"
        yield Finding("note" if fallback else "ok", what, f"{folder.name}: {where}; loaded in {found.load_s:.1f} s")


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    width = max(len(finding.what) for finding in findings)
    for level, what, detail in findings:
        console.print(f"{MARKS[level]}  {what:<{width}}  {escape(detail)}", soft_wrap=True)

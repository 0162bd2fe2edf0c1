"""Loads the NPU graphs of a bundle in a child process and reports where their nodes run. Used by `doctor`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.bundles.open import is_genie
from gateway.bundles.preflight.preflight import require_fit
from gateway.bundles.static_pipeline import (
    Pipeline,
    read_batch_pipelines,
    read_pipelines,
    read_verify_pipelines,
)
from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice, machine_of
from gateway.qnn.sessions import NpuSessions
from gateway.worker.decoders.static.genie_pipelines import genie_pipelines
from gateway.worker.decoders.static.open import OpenStages, select_device, why_no_npu
from gateway.worker.frames import Device


class LoadReport(Struct, frozen=True, kw_only=True):
    """`placement` counts only nodes of graphs that are meant for the NPU: every "CPU" node is a fallback.

    `refusal`: why the driver does not switch to burst mode; "" if it does.
    """

    device: Device
    placement: dict[str, int]
    load_s: float
    refusal: str = ""


class _Request(Struct, frozen=True, kw_only=True):
    folder: str
    provider: Literal["auto", "cpu", "qnn"]
    options: dict[str, str]


def check_load(folder: Path, provider: Literal["auto", "cpu", "qnn"], options: dict[str, str]) -> LoadReport:
    """Load the bundle's NPU graphs once. Raises BundleError if the bundle cannot be served, also after a crash."""
    request = _Request(folder=str(folder), provider=provider, options=options)
    return msgspec.json.decode(run_in_child(__name__, request, folder.name), type=LoadReport)


def _load(request: _Request) -> LoadReport:
    folder = Path(request.folder)
    device = select_device(request.provider, request.options)
    if device is None:
        raise BundleError(f"{folder.name} is made for an NPU, and {why_no_npu(request.provider)}")
    require_fit(folder, machine_of(device))
    with _pipelines(folder, device) as (pipelines, binaries):
        stages = {pipeline.file(stage): stage for pipeline in pipelines for stage in pipeline.stages}
        opened, started = OpenStages(device.kind), time.perf_counter()
        opened.open_on_npu(stages, NpuSessions(device, request.options, lambda stage: None, binaries))
    load_s, refusal = time.perf_counter() - started, ""
    if opened.switch:
        refusal = opened.switch.refusal()
        opened.switch.close()
    return LoadReport(device=device.kind, placement=dict(opened.placed), load_s=load_s, refusal=refusal)


@contextmanager
def _pipelines(folder: Path, device: NpuDevice) -> Iterator[tuple[list[Pipeline], dict[Path, Path]]]:
    """The pipelines, and the binaries that are not next to their graph files."""
    if is_genie(folder):
        with genie_pipelines(load_genie_bundle(folder), device) as found:
            yield [*found.pipelines, *found.narrow], found.binaries
    else:
        yield [*read_pipelines(folder), *read_batch_pipelines(folder), *read_verify_pipelines(folder)], {}


if __name__ == "__main__":
    sys.exit(serve_request(_Request, _load))

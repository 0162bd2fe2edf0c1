"""Opens a bundle's NPU graphs in a process of its own and says where their nodes went: for `doctor`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from gateway.bundles.static_pipeline import read_batches, read_pipelines, runs_on_npu
from gateway.child import run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.sessions import NpuSessions
from gateway.worker.decoders.static.open import device_for
from gateway.worker.frames import Device


class Probed(Struct, frozen=True, kw_only=True):
    """`placement`: of the graphs meant for the NPU alone, so that anything on the CPU there is a fallback."""

    device: Device
    placement: dict[str, int]
    load_s: float


class _Question(Struct, frozen=True, kw_only=True):
    folder: str
    provider: Literal["auto", "cpu", "qnn"]
    options: dict[str, str]
    answer: str


def probe(folder: Path, provider: Literal["auto", "cpu", "qnn"], options: dict[str, str]) -> Probed:
    """Raises BundleError for whatever would keep the bundle from being served, a crash included."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        answer = Path(name) / "answer.json"
        question = _Question(folder=str(folder), provider=provider, options=options, answer=str(answer))
        run_in_child(__name__, question, folder.name)
        return msgspec.json.decode(answer.read_bytes(), type=Probed)


def _probe(question: _Question) -> None:
    folder = Path(question.folder)
    pipelines = [*read_pipelines(folder), *read_batches(folder)]
    device = device_for(question.provider, question.options)
    if device is None:
        raise BundleError(f"{folder.name} is made for an NPU, and this machine has none.")
    opener = NpuSessions(device, question.options, lambda stage: None)
    started = time.perf_counter()
    opener.open(
        {
            pipeline.file(stage): stage.session_options.providers["qnn"]
            for pipeline in pipelines
            for stage in pipeline.stages
            if runs_on_npu(stage)
        }
    )
    probed = Probed(device=device.kind, placement=dict(opener.placement), load_s=time.perf_counter() - started)
    Path(question.answer).write_bytes(msgspec.json.encode(probed))


if __name__ == "__main__":
    sys.exit(serve_request(_Question, _probe))

"""The worker process for a Genie dialog. It uses the same frames as worker/main.py."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from msgspec.structs import replace

from gateway.activity import Activity
from gateway.bundles.genie.bundle import GenieBundle, load_genie_bundle
from gateway.bundles.preflight.preflight import require_fit
from gateway.qnn.binary_info import Graph
from gateway.qnn.chips import CHIPS
from gateway.qnn.context import require_binary
from gateway.qnn.detect import try_detect_npu
from gateway.qnn.device import NpuDevice, machine_of
from gateway.worker.frames import FromWorker, Loading, Ready, WorkerSpec
from gateway.worker.genie.graph_sizes import warn_of_other_metadata, with_graph_sizes
from gateway.worker.genie.library import GenieDialog
from gateway.worker.genie.loop import GenieLoop
from gateway.worker.genie.mailbox import Mailbox
from gateway.worker.genie.pass_times import time_passes
from gateway.worker.memory import peak_bytes
from gateway.worker.pipe import receive, run_worker


def genie_worker_main(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Load, warm up, send Ready, then answer until Shutdown. `spec.bundle`: see `load_genie_bundle`.

    Sends Failed(id=None) when the load fails or the dialog cannot continue.
    """
    run_worker(connection, lambda emit: _serve(connection, spec, activity, emit))


def _serve(connection: Connection, spec: WorkerSpec, activity: Activity, emit: Callable[[FromWorker], None]) -> None:
    started = time.perf_counter()
    mailbox = Mailbox()
    threading.Thread(target=receive, args=(connection, mailbox.deliver), daemon=True).start()
    emit(Loading("opening the model"))
    bundle = load_genie_bundle(Path(spec.bundle), poll=spec.poll)
    device, graphs = _fitting_device(bundle)
    warn_of_other_metadata(bundle.folder, graphs)
    bundle = with_graph_sizes(bundle, [graph for group in graphs.values() for graph in group])
    with closing(GenieDialog(bundle.config, activity)) as dialog:
        loop = GenieLoop(
            dialog, bundle, mailbox, emit, prefix_cache=spec.prefix_cache, activity=activity, clock=activity.clock
        )
        loaded = time.perf_counter()
        emit(Loading("warming up"))
        loop.warm_up()
        ready = _ready(bundle, spec, load_s=loaded - started, warm_up_s=time.perf_counter() - loaded)
        passes = time_passes(dialog, bundle, activity.clock) if ready.device == "npu" else None
        emit(replace(ready, soc=device.soc if device else None, passes=passes))
        loop.run()


def _fitting_device(bundle: GenieBundle) -> tuple[NpuDevice | None, dict[str, list[Graph]]]:
    """The NPU, compared with the bundle because Genie gives bare numbers as reasons; and the graphs of each binary.

    Without a device, Genie gives the reason. To read a damaged header can crash this process: the gateway then reports
    that the worker died. Raises BundleError.
    """
    device = _device()
    if device is None:
        return None, {}
    require_fit(bundle.folder, machine_of(device))
    infos = {binary.name: require_binary(binary, device) for binary in bundle.binaries}
    return device, {name: list(info.graphs.values()) for name, info in infos.items()}


def _device() -> NpuDevice | None:
    if sys.platform == "win32":
        return try_detect_npu()  # in a child process: this one keeps to Genie's libraries
    return NpuDevice(kind="emulated", name="Genie's emulation", soc=CHIPS[0].soc_models[0])


def _ready(bundle: GenieBundle, spec: WorkerSpec, *, load_s: float, warm_up_s: float) -> Ready:
    usable = bundle.usable_context
    return Ready(
        vocab_size=bundle.vocab_size,
        context_length=min(usable, spec.context_length or usable),
        prompt_width=bundle.prompt_width,
        device="npu" if sys.platform == "win32" else "emulated",  # Genie emulates on Linux only
        placement={"QNN": len(bundle.binaries)},
        load_s=load_s,
        warm_up_s=warm_up_s,
        peak_bytes=peak_bytes(),
    )

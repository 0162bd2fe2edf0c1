"""The entry points of the worker processes. `engines/` imports only this module and frames.py of worker/.

This module imports no native library. Each entry point imports its implementation in the child process.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from gateway.activity import Activity
from gateway.worker.frames import WorkerSpec


def local_worker(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Serve an ONNX bundle until Shutdown. A target for `multiprocessing.Process`."""
    from gateway.worker.main import worker_main

    worker_main(connection, spec, activity)


def encoder_worker(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Serve an encoder until Shutdown. A target for `multiprocessing.Process`."""
    from gateway.worker.encoder.main import encoder_worker_main

    encoder_worker_main(connection, spec, activity)


def genie_worker(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Serve a Genie bundle until Shutdown. A target for `multiprocessing.Process`."""
    from gateway.worker.genie.main import genie_worker_main

    genie_worker_main(connection, spec, activity)

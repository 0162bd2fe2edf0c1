"""The entry points of worker processes: all that the gateway process names of the child, besides `frames`.

Nothing native is imported here. Each entry point imports its implementation when it runs, in the child.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from gateway.worker.frames import WorkerSpec


def local_worker(connection: Connection, spec: WorkerSpec) -> None:
    """Serve an ONNX bundle until Shutdown. The target of `Process`, in the child."""
    from gateway.worker.main import worker_main

    worker_main(connection, spec)


def genie_worker(connection: Connection, spec: WorkerSpec) -> None:
    """Serve a Genie bundle until Shutdown. The target of `Process`, in the child."""
    from gateway.worker.genie.main import genie_worker_main

    genie_worker_main(connection, spec)

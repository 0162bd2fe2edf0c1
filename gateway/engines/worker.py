"""The child side: one process that holds one model and answers frames.

Started by the gateway with the `spawn` method: `Process(target=worker_main, args=(connection, spec))`. Frames only go
through `connection`. The process ends when it is told to (`Shutdown`), when the other end of the pipe is gone, or when
the model cannot be loaded.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Literal

from msgspec import Struct, field


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """What a worker needs to know, as plain values that travel to a spawned process."""

    bundle: str  # the bundle's folder
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)
    threads: int = 0  # 0: as many as physical cores, at most 4
    max_sequences: int = 4
    prefix_cache: bool = True
    context_length: int = 0  # 0: the bundle's own


def worker_main(connection: Connection, spec: WorkerSpec) -> None:
    """Load, warm up, say Ready, then answer until told to stop. Says Failed(id=None) when the load fails."""
    raise NotImplementedError

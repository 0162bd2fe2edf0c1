"""Workers whose device calls itself a real NPU and can be sick. Their clock is advanced by the passes only.

A test puts numbers into files next to the bundle: `sick_starts` is the number of workers that start sick, and while
there is a file `sick_now`, the passes of every worker are sick.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from msgspec.structs import replace

from gateway.activity import Activity
from gateway.worker import main as worker
from gateway.worker.decoders.base import Decoder, DecoderSpec, KVCache, Logits
from gateway.worker.frames import WorkerSpec
from tests.support.manual_clock import ManualClock
from tests.support.workers import Wrapped

WIDE_S, STEP_S, EXTRA_S = 0.1, 0.05, 1.5


class NpuDecoder(Wrapped):
    """Args:
    starts_sick: every pass takes EXTRA_S more.
    folder: may have the file `sick_now`.
    """

    def __init__(self, decoder: Decoder, clock: ManualClock, starts_sick: bool, folder: Path) -> None:
        super().__init__(decoder)
        self._clock, self._starts_sick, self._folder = clock, starts_sick, folder

    @property
    def spec(self) -> DecoderSpec:
        return replace(super().spec, device="npu", soc=60, placement={"QNN": 40, "CPU": 2}, mode_refusal="error 1010")

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        self._take(WIDE_S)
        return self._decoder.prefill(cache, ids)

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        self._take(WIDE_S)
        return self._decoder.verify(cache, ids)

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        for _ in caches:
            self._take(STEP_S)
        return self._decoder.step(caches, ids)

    def _take(self, seconds: float) -> None:
        is_sick = self._starts_sick or (self._folder / "sick_now").exists()
        self._clock.now += seconds + (EXTRA_S if is_sick else 0.0)


def npu_worker(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    folder, clock, open_decoder = Path(spec.bundle).parent, ManualClock(), worker.open_decoder
    activity.clock = clock
    counter = folder / "sick_starts"
    left = int(counter.read_text(encoding="utf-8")) if counter.exists() else 0
    counter.write_text(str(left - 1), encoding="utf-8")
    worker.open_decoder = lambda *args: NpuDecoder(open_decoder(*args), clock, left > 0, folder)
    worker.worker_main(connection, spec, activity)


def start_sick(bundle: Path, starts: int) -> None:
    """The next `starts` workers of the bundle start sick."""
    (bundle.parent / "sick_starts").write_text(str(starts), encoding="utf-8")

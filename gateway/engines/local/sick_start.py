"""Finds an NPU that is sick: every pass takes longer by about a constant, until a new process opens the device.

A healthy NPU computes a wide pass (a window of a prompt) in two or three times the time of a step, and both take less
than 0.3 s for the published models. On a sick one both take about 1.5 s more. There are three signs:

1. At the first start of a bundle: a step takes 0.5 s or more, and a wide pass about the same.
2. At a later start: both take at least 0.5 s more, and at least twice as long, as at the last recorded start.
3. While the model is served: the last steps and the last prompt take at least 0.5 s more than at the start.

A start without a sign is recorded. If new workers do not help, the slow start is recorded too: a driver or a machine
can be slower for good, and a model must not load three times at each start. Only a real NPU is judged.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from gateway.bundles.json_file import read_record, write_record
from gateway.worker.frames import FromWorker, PassTimes, Prefilled, Ready, Tokens

RECORDS_FOLDER = ".passes"  # in the models folder; a file for each bundle
_CONSTANT_S = 0.5  # a healthy pass of the largest published model takes less
_SAME = 1.25  # the two costs are about the same if none is larger than the other by this factor
_SLOWER = 2.0
_STEPS = 3  # that must be slow while the model is served
_PAUSE_S = 3600.0  # between two replacements of a worker that became sick while it served


class _Record(Struct, frozen=True, kw_only=True):
    """The passes of the last recorded start, and what they were measured with."""

    bundle: str
    device: str
    provider: str
    passes: PassTimes


class SickStart:
    """Judges the passes of one model's workers.

    Args:
        folder: the bundle's.
        models_dir: has the record of the last good start.
        clock: seconds, monotonic.
    """

    def __init__(self, folder: Path, models_dir: Path, clock: Callable[[], float]) -> None:
        bundle = str(folder.absolute())
        self._bundle, self._clock = bundle, clock
        name = hashlib.sha256(bundle.encode()).hexdigest()[:16]
        self._file = models_dir / RECORDS_FOLDER / f"{name}.json"
        self._passes: PassTimes | None = None  # at the start of this worker
        self._steps: deque[float] = deque(maxlen=_STEPS)  # the last ones of requests that ran alone, in seconds
        self._prompt_s: float | None = None  # the last pass of their prompts
        self._replaced_at: float | None = None

    def judge(self, ready: Ready) -> str:
        """The sign of a sick NPU with its figures; "" for a healthy one, which is recorded, and for other devices.

        Reads and writes a file.
        """
        passes = self._passes = ready.passes if ready.device == "npu" else None
        self._steps.clear()
        self._prompt_s = None
        if passes is None:
            return ""
        last = self._last(ready)
        if last is None:
            if passes.step_s >= _CONSTANT_S and 1 / _SAME <= passes.wide_s / passes.step_s <= _SAME:
                return f"{_times(passes)}, and a healthy NPU has fast steps"
        elif _is_slower(passes.wide_s, last.wide_s) and _is_slower(passes.step_s, last.step_s):
            return f"{_times(passes)}; at the last good start {last.wide_s:.3g} s and {last.step_s:.3g} s"
        self.accept(ready)
        return ""

    def accept(self, ready: Ready) -> None:
        """Record the passes of this start: later ones are compared with them. Writes a file."""
        if ready.passes is not None:
            record = _Record(bundle=self._bundle, device=_device(ready), provider=_provider(), passes=ready.passes)
            write_record(self._file, record)

    def note(self, frame: FromWorker) -> None:
        """Remember the duration of a pass. Only for a request that runs alone and has one choice."""
        if isinstance(frame, Tokens) and len(frame.ids) == 1 and frame.device_s and not frame.source:
            self._steps.append(frame.device_s)
        elif isinstance(frame, Prefilled) and frame.device_s:  # 0: rows that a suspension lost
            self._prompt_s = frame.device_s

    def became_sick(self) -> str:
        """The sign of an NPU that became sick while it served, with its figures; "" without one.

        At most once an hour, because a new worker does not help against everything that makes passes slow.
        """
        passes, prompt_s = self._passes, self._prompt_s
        if passes is None or prompt_s is None or len(self._steps) < _STEPS:
            return ""
        extra = [step_s - passes.step_s for step_s in self._steps]
        is_sick = min(extra) >= _CONSTANT_S and max(extra) <= _SLOWER * min(extra)
        if not is_sick or prompt_s - passes.wide_s < _CONSTANT_S or self._was_replaced():
            return ""
        self._replaced_at = self._clock()
        return f"each pass takes about {min(extra):.3g} s more than at its start ({passes.step_s:.3g} s for a step)"

    def _was_replaced(self) -> bool:
        return self._replaced_at is not None and self._clock() - self._replaced_at < _PAUSE_S

    def _last(self, ready: Ready) -> PassTimes | None:
        """None: no record, a damaged one, or one of another device or version."""
        record = read_record(self._file, _Record)
        own = (self._bundle, _device(ready), _provider())
        return record.passes if record and (record.bundle, record.device, record.provider) == own else None


def _device(ready: Ready) -> str:
    return f"{ready.device} {ready.soc}"


def _is_slower(now_s: float, then_s: float) -> bool:
    return now_s >= max(then_s + _CONSTANT_S, _SLOWER * then_s)


def _times(passes: PassTimes) -> str:
    return f"a wide pass takes {passes.wide_s:.3g} s and a step {passes.step_s:.3g} s"


def _provider() -> str:
    """The version of the library for the NPU."""
    try:
        return metadata.version("onnxruntime-qnn")
    except metadata.PackageNotFoundError:
        return ""

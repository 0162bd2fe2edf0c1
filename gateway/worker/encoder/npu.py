"""An encoder on the NPU: one graph for each length of a text, one text in a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.bundles.encoder.bundle import EncoderBundle, EncoderInfo, static_file
from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.sessions import NpuSessions, PerformanceSwitch
from gateway.worker.decoders.onnx import running_failed
from gateway.worker.encoder.model import Rows, Text
from gateway.worker.frames import Device

_FAR = -10000.0


class NpuEncoder:
    """Implements EncoderModel. Raises BundleError if the NPU refuses a graph."""

    batch_tokens = 1  # each text is a call

    def __init__(
        self, bundle: EncoderBundle, device: NpuDevice, options: Mapping[str, str], progress: Callable[[str], None]
    ) -> None:
        if not bundle.info.lengths:
            raise BundleError(f"{bundle.folder.name} has no graphs for the NPU. Remove `provider`: the CPU runs it.")
        sessions = NpuSessions(device, options, progress)
        files = {bundle.folder / static_file(length): length for length in bundle.info.lengths}
        opened = sessions.open({file: {} for file in files})
        self._info = bundle.info
        self._sessions = {length: opened[file] for file, length in files.items()}
        self._switch = PerformanceSwitch(list(opened.values())) if device.kind == "npu" else None
        self.placement = dict(sessions.placement)
        self.device: Device = device.kind
        self.longest = max(bundle.info.lengths)

    def run(self, texts: Sequence[Text]) -> Rows:
        return np.concatenate([self._one(text) for text in texts])

    def _one(self, text: Text) -> Rows:
        length = next(length for length in self._sessions if len(text.ids) <= length)
        inputs = static_inputs(text, length, self._info)
        try:
            if self._switch is None:
                rows: Rows = self._sessions[length].run(None, inputs)[0]
            else:
                with self._switch:
                    rows = self._sessions[length].run(None, inputs)[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise running_failed(error) from error
        return rows.reshape(1, -1)


def static_inputs(text: Text, length: int, info: EncoderInfo) -> dict[str, NDArray[Any]]:
    """What a graph of this length gets for one text."""
    count = len(text.ids)
    padded, mask = np.zeros((1, length), np.int32), np.full((1, 1, 1, length), _FAR, np.float32)
    padded[0, :count] = text.ids
    mask[..., :count] = 0
    weights = np.zeros((1, length), np.float32)
    match info.pooling:
        case "cls":
            weights[0, 0] = 1
        case "last":
            weights[0, count - 1] = 1
        case _:
            weights[0, :count] = 1 / count
    inputs: dict[str, NDArray[Any]] = {"input_ids": padded, "mask": mask, "weights": weights}
    if info.has_types:
        inputs["later"] = (np.arange(length) >= text.first).astype(np.float32)[:, None]
    return inputs

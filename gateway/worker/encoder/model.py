"""An encoder on a device: token ids in, one row for each text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.bundles.encoder.bundle import GRAPH_FILE, EncoderBundle
from gateway.errors import BundleError
from gateway.worker.decoders.onnx import SessionOptions, open_session, running_failed
from gateway.worker.frames import Device

Rows = NDArray[np.float32]  # (texts, dimensions); of a cross-encoder (texts, 1)


class Text(Struct, frozen=True):
    """The token ids of a text or a pair. `first`: the tokens of the first text of a pair."""

    ids: Sequence[int]
    first: int = 0


class EncoderModel(Protocol):
    """One device call at a time, in one thread."""

    @property
    def device(self) -> Device: ...

    @property
    def placement(self) -> dict[str, int]:
        """Provider -> number of nodes."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of one call, with padding, that use the device well. One text can have more."""

    @property
    def longest(self) -> int:
        """Tokens of a text."""

    def run(self, texts: Sequence[Text]) -> Rows:
        """Compute one batch. Raises EngineFailed."""


class CpuEncoder:
    """Implements EncoderModel with one graph for all shapes. Raises BundleError if it cannot be opened."""

    device: Device = "cpu"
    #: Larger batches do not stay in the caches of a core, and a cancelled request would wait longer.
    batch_tokens = 1024

    def __init__(self, bundle: EncoderBundle, options: SessionOptions) -> None:
        self._session = open_session(bundle.folder / GRAPH_FILE, options)
        outputs = self._session.get_outputs()
        wanted = "scores" if bundle.info.kind == "cross-encoder" else "vectors"
        if [output.name for output in outputs] != [wanted]:
            raise BundleError(f"{bundle.folder.name}: {GRAPH_FILE} has no output `{wanted}`. Build the bundle again.")
        self._has_types, self.longest = bundle.info.has_types, bundle.info.longest
        self.placement = {"CPU": len(self._session.get_provider_graph_assignment_info())}

    def run(self, texts: Sequence[Text]) -> Rows:
        inputs = {"input_ids": padded(texts), "lengths": np.array([len(text.ids) for text in texts], np.int64)}
        if self._has_types:
            inputs["first_lengths"] = np.array([text.first for text in texts], np.int64)
        try:
            rows: Rows = self._session.run(None, inputs)[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise running_failed(error) from error
        return rows.reshape(len(texts), -1)


def padded(texts: Sequence[Text]) -> NDArray[np.int64]:
    """(texts, longest), with 0 on the right."""
    ids = np.zeros((len(texts), max(len(text.ids) for text in texts)), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text.ids)] = text.ids
    return ids

"""Entry points of encoder workers with faults, and a bundle for them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from gateway.activity import Activity
from gateway.builder.build import CpuTarget, build_bundle
from gateway.bundles.stamp import Activations
from gateway.errors import EngineFailed
from gateway.worker.encoder import main
from gateway.worker.encoder.model import EncoderModel, Rows, Text
from gateway.worker.frames import WorkerSpec
from tests.support.encoders.models import write_folder

#: Tokens of a text. They make the device call hang, end the process, or raise.
HANG, DIE, RAISE = 91, 92, 93

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text(encoding="utf-8"))


def build(folder: Path, name: str, activations: Activations = "float") -> Path:
    """The bundle of the case `name`, in `folder` / `name`."""
    source = write_folder(folder / f"{name}-source", name, VECTORS[name]["shapes"])
    return build_bundle(source, folder / name, progress=lambda stage, done: None, target=CpuTarget(activations))


class FaultyEncoder:
    """Implements EncoderModel."""

    def __init__(self, model: EncoderModel) -> None:
        self._model = model
        self.device, self.placement, self.longest = model.device, model.placement, model.longest
        self.batch_tokens = 64

    def run(self, texts: Sequence[Text]) -> Rows:
        tokens = {token for text in texts for token in text.ids}
        if HANG in tokens:
            time.sleep(3600)
        if DIE in tokens:
            os._exit(3)
        if RAISE in tokens:
            raise EngineFailed("The device failed.")
        return self._model.run(texts)


def faulty(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The real worker with a wrapped model."""
    open_model = main.open_model
    main.open_model = lambda *args: FaultyEncoder(open_model(*args))
    main.encoder_worker_main(connection, spec, activity)

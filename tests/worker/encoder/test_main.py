"""The options with which the worker of an encoder opens its model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.encoder import main
from gateway.worker.frames import WorkerSpec


@pytest.mark.parametrize(("threads", "expected"), [(0, 3), (5, 5)])
def test_threads_on_the_cpu_are_those_of_encoders(monkeypatch: pytest.MonkeyPatch, threads: int, expected: int) -> None:
    opened: list[SessionOptions] = []
    monkeypatch.setattr(main, "CpuEncoder", lambda bundle, options: opened.append(options))
    monkeypatch.setattr(main, "default_encoder_threads", lambda: 3)
    bundle: Any = SimpleNamespace(folder=Path())
    main.open_model(bundle, WorkerSpec(bundle="", provider="cpu", threads=threads), lambda stage: None)
    assert [options.threads for options in opened] == [expected]

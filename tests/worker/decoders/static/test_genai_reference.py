"""Our bundles in onnxruntime-genai's CPU build. Needs `onnxruntime-genai`, which the gateway does not depend on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.support.decoding import IDS, greedy
from tests.support.npu.fixtures import OpenDecoder

genai = pytest.importorskip("onnxruntime_genai")


def test_genai_generates_same_tokens(windows_ml_uncompiled: Path, tmp_path: Path, open_decoder: OpenDecoder) -> None:
    folder = Path(shutil.copytree(windows_ml_uncompiled, tmp_path / "bundle"))
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    for stage in config["model"]["decoder"]["pipeline"]:
        next(iter(stage.values())).pop("session_options", None)  # its wheel has no NPU provider
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=64, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([IDS], np.int32))
    answer = []
    for _ in range(20):
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    assert answer == greedy(open_decoder(windows_ml_uncompiled, "cpu"), IDS, 20)

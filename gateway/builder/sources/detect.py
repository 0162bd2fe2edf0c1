"""Selects the reader for a model source by its path."""

from __future__ import annotations

from pathlib import Path

from gateway.builder.sources.gguf import GgufSource
from gateway.builder.sources.huggingface import HuggingFaceSource
from gateway.builder.sources.source import ModelSource
from gateway.errors import BundleError


def open_source(path: Path) -> ModelSource:
    """Open a GGUF file or a Hugging Face model folder. Raises BundleError for anything else."""
    if not path.exists():
        raise BundleError(f"There is no model at {path.name}. Give a .gguf file or a Hugging Face model folder.")
    if path.is_dir():
        return HuggingFaceSource(path)
    if path.suffix.lower() == ".gguf" or _begins_as_gguf(path):  # Ollama's files have no suffix
        return GgufSource(path)
    raise BundleError(f"{path.name} is neither a .gguf file nor a Hugging Face model folder.")


def _begins_as_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False

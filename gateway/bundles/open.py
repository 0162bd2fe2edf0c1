"""Reads a bundle in the layout that its folder has: onnxruntime-genai's, or Genie's. Our own engine runs both."""

from __future__ import annotations

from pathlib import Path

from gateway.bundles.bundle import Bundle, load_bundle
from gateway.bundles.genie.bundle import GenieBundle, load_genie_bundle
from gateway.bundles.identify import identify
from gateway.bundles.json_file import readable


def open_bundle(path: Path, dialect: str = "", tokenizer: str = "") -> Bundle | GenieBundle:
    """Read the bundle in folder `path`, but not its graphs. Raises BundleError.

    Args:
        dialect: selects the chat template of a Genie bundle that has none; "": its special tokens select it.
        tokenizer: see `load_bundle`.
    """
    return load_genie_bundle(path, dialect) if is_genie(path) else load_bundle(path, tokenizer)


def is_genie(path: Path) -> bool:
    """True if `path` is a folder with a Genie configuration. Raises BundleError if that cannot be read."""
    with readable(path):
        return path.is_dir() and identify(path).layout == "genie"

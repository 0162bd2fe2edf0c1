"""An encoder's bundle: model.onnx, tokenizer.json, encoder.json, and the stamp and hashes of every bundle.

The graph has the inputs `input_ids` int64 (batch, sequence), padded on the right, and `lengths` int64 (batch); a
cross-encoder with token types also has `first_lengths` int64 (batch), the tokens of the first text. Its output is
`vectors` float32 (batch, dimensions), or `scores` float32 (batch).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from gateway.bundles.json_file import read_json, read_optional_object

ENCODER_FILE = "encoder.json"
GRAPH_FILE = "model.onnx"
STATIC_LENGTHS = (64, 256, 512)  # tokens

Kind = Literal["embedding", "cross-encoder"]
Pooling = Literal["cls", "mean", "max", "last"]


class EncoderInfo(Struct, frozen=True, kw_only=True):
    """The content of encoder.json."""

    kind: Kind
    architecture: str
    longest: int  # tokens of a text, with the special tokens
    vocab: int
    dimensions: int = 0
    pooling: Pooling = "mean"
    normalised: bool = False
    has_types: bool = False
    lower_case: bool = False
    #: By the purpose of a text: "", "query", "document".
    prefixes: dict[str, str] = {}
    #: Of graphs with fixed shapes: their sequence lengths, shortest first; each is in model-LENGTH.onnx.
    lengths: tuple[int, ...] = ()


class EncoderBundle(Struct, frozen=True, kw_only=True):
    """One bundle. It has the fields of `TextSide`."""

    folder: Path
    info: EncoderInfo
    tokenizer_path: Path
    tokenizer_config: dict[str, Any]
    chat_template: None = None
    tool_template: None = None
    end_ids: tuple[int, ...] = ()


def static_file(length: int) -> str:
    """The name of the graph for the NPU."""
    return f"model-{length}.onnx"


def files_of_encoder(info: EncoderInfo) -> tuple[str, ...]:
    """The names of the files that its worker reads."""
    return *(map(static_file, info.lengths) if info.lengths else (GRAPH_FILE,)), "tokenizer.json"


def is_encoder_bundle(folder: Path) -> bool:
    """True if the folder has the bundle of an encoder."""
    return (folder / ENCODER_FILE).is_file()


def load_encoder_bundle(folder: Path) -> EncoderBundle:
    """Read the bundle in `folder`, but not its graph. Raises BundleError."""
    return EncoderBundle(
        folder=folder,
        info=read_json(folder / ENCODER_FILE, EncoderInfo, missing="so it is not the bundle of an encoder"),
        tokenizer_path=folder / "tokenizer.json",
        tokenizer_config=read_optional_object(folder / "tokenizer_config.json"),
    )

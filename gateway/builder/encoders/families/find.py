"""The registry of the families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.builder.encoders.config import EncoderSource, Family
from gateway.builder.encoders.families.bert import BERT, ROBERTA
from gateway.builder.encoders.families.modernbert import MODERNBERT
from gateway.builder.encoders.families.nomic import NOMIC
from gateway.builder.encoders.families.qwen3 import QWEN3
from gateway.builder.sources.safetensors_file import Weights
from gateway.bundles.json_file import read_json
from gateway.errors import BundleError

FAMILIES: tuple[Family, ...] = (BERT, ROBERTA, NOMIC, MODERNBERT, QWEN3)
_BY_TYPE = {kind: family for family in FAMILIES for kind in family.model_types}
_MAX_LAYERS = 1024
_DECODERS = QWEN3.model_types  # encoders only if their modules.json says so


def is_encoder(folder: Path) -> bool:
    """True for a Hugging Face folder of an encoder. A decoder is one if it has a modules.json with a pooling."""
    if not (folder / "config.json").is_file():
        return False
    kind = str(read_json(folder / "config.json", dict[str, Any]).get("model_type"))
    return kind in _BY_TYPE and (kind not in _DECODERS or (folder / "modules.json").is_file())


def open_encoder(folder: Path) -> EncoderSource:
    """The weights and the shape of the encoder in a Hugging Face folder. Raises BundleError."""
    content = read_json(folder / "config.json", dict[str, Any], missing="so it is not a Hugging Face model")
    family = _BY_TYPE.get(str(content.get("model_type")))
    if family is None:
        raise BundleError(
            f"Encoders of type {content.get('model_type')!r} are not supported; {', '.join(_BY_TYPE)} are."
        )
    try:
        _require_few_layers(content)
        return EncoderSource(family, content, Weights(folder))
    except KeyError as error:
        raise BundleError(f"{folder.name}: config.json lacks {error}.") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"{folder.name}: config.json has a value of the wrong kind ({error}).") from error


def _require_few_layers(content: dict[str, Any]) -> None:
    """Raises ValueError. Families make lists with an entry for each layer."""
    for key in ("num_hidden_layers", "n_layer"):
        if key in content and not 0 < int(content[key]) <= _MAX_LAYERS:
            raise ValueError(f"{key} is {str(content[key])[:100]}")

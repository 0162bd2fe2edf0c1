"""The families that can be built, and how one is found by its name in a file."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.builder.architectures.family import Family
from gateway.builder.architectures.gemma3 import GEMMA3
from gateway.builder.architectures.granite import GRANITE
from gateway.builder.architectures.llama import LLAMA, MISTRAL
from gateway.builder.architectures.olmo2 import OLMO2
from gateway.builder.architectures.phi3 import PHI3
from gateway.builder.architectures.qwen2 import QWEN2
from gateway.builder.architectures.qwen3 import QWEN3
from gateway.builder.architectures.smollm3 import SMOLLM3
from gateway.errors import BundleError

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, SMOLLM3, GRANITE, OLMO2, PHI3)

#: `general.architecture` of the GGUF files that can be built
GGUF_ARCHITECTURES = tuple(family.gguf for family in FAMILIES if family.gguf)


def find_by_model_type(name: str) -> Family:
    """The family with this `model_type` in config.json. Raises BundleError."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise unsupported_architecture(name, [family.name for family in FAMILIES])


def find_by_gguf_name(name: str) -> Family:
    """The family with this `general.architecture` in a GGUF file. Raises BundleError."""
    for family in FAMILIES:
        if family.gguf == name:
            return family
    raise unsupported_architecture(name, GGUF_ARCHITECTURES)


def unsupported_architecture(name: str, supported: Iterable[str]) -> BundleError:
    return BundleError(
        f"Models of architecture {name[:100]!r} are not supported. Only {', '.join(supported)} are. Use one of them, "
        "or serve the model with its own program as a model with engine = 'upstream'."
    )

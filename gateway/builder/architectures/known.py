"""Refuses a model with tensors that its graph would not use: its answers would be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from gateway.builder.architectures.family import Stored
from gateway.builder.sources.source import FINAL_NORM, HEAD, TransformerConfig, layer
from gateway.errors import BundleError

_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")
_OTHERS = ("lm_head.", "model.norm.", "output.", "output_norm.")
_PACKED = re.compile(r"\.(?:qweight|qzeros|scales|g_idx)$")  # of GPTQ and AWQ
_UNUSED = ("rotary_emb.inv_freq", "attn_rot_embd.weight")  # old files store what the constants say too
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def require_known(
    file: str, names: Iterable[str], config: TransformerConfig, locate: Callable[[str, TransformerConfig], Stored]
) -> None:
    """Raise BundleError if a layer, the final norm or the head has a tensor that the graph does not use.

    Args:
        names: of the stored tensors.
        locate: the family's function for the file format.
    """
    known = {locate(name, config).name for name in _used(config)}
    for name in names:
        weight = _PACKED.sub(".weight", name)
        if _is_read(name, config) and weight not in known and not name.endswith(_UNUSED):
            raise BundleError(
                f"{file} has the tensor {name[:100]}, which a model of architecture {config.architecture} does not "
                "have, so its answers would be wrong. Use another model, or serve it with its own program as a model "
                "with engine = 'upstream'."
            )


def _is_read(name: str, config: TransformerConfig) -> bool:
    found = _LAYER.match(name)
    return int(found[1]) < config.layers if found else name.startswith(_OTHERS)


def _used(config: TransformerConfig) -> Iterator[str]:
    """The canonical names of the tensors that a graph reads, and of biases that can exist."""
    yield from (FINAL_NORM, HEAD)
    for index in range(config.layers):
        for part in (*_PROJECTIONS, *_MLP):
            yield from (layer(index, f"{part}.weight"), layer(index, f"{part}.bias"))
        yield from (layer(index, f"{part}.weight") for part in _norms(config))


def _norms(config: TransformerConfig) -> Iterator[str]:
    if config.norms != "post":
        yield from ("input_layernorm", "post_attention_layernorm")
    if config.norms != "pre":
        yield from ("attention_output_norm", "mlp_output_norm")
    if config.qk_norm:
        yield from ("self_attn.q_norm", "self_attn.k_norm")

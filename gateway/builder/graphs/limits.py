"""The sizes of a model that the kernels for the CPU support."""

from __future__ import annotations

from gateway.builder.graphs import quantise
from gateway.builder.sources.source import TransformerConfig
from gateway.errors import BundleError


def check_sizes(config: TransformerConfig) -> None:
    """Raises BundleError if a matrix cannot be split into blocks, or if the kernel does not support the heads."""
    sizes = {"hidden": config.hidden, "feed-forward": config.ffn, "attention": config.heads * config.head_dim}
    for name, size in sizes.items():
        if size % quantise.BLOCK:
            raise BundleError(f"The model's {name} size, {size}, is not a multiple of {quantise.BLOCK}.")
    if config.head_dim % 16 or config.heads % config.kv_heads:
        raise BundleError(
            f"{config.heads} heads of size {config.head_dim} with {config.kv_heads} key-value heads are not supported: "
            "the size must be a multiple of 16, and the number of heads a multiple of the key-value heads."
        )
    for rope in config.ropes:
        if rope.dim % 16:
            raise BundleError(
                f"Rotary positions of {rope.dim} numbers of a head are not supported: the number must be a multiple of "
                "16. Use another model."
            )

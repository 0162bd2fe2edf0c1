"""Refuses a model whose layers the graphs of fixed shape do not have yet."""

from __future__ import annotations

from gateway.builder.sources.source import TransformerConfig
from gateway.errors import BundleError


def require_supported(config: TransformerConfig, context: int) -> None:
    """Raise BundleError if `graphs/static.py` cannot write the model for `context` tokens."""
    needs = {
        "norms of queries and keys": bool(config.qk_norm),
        "norms after attention": config.norms != "pre",
        f"the activation {config.activation}": config.activation != "silu",
        "sliding windows": any(0 < window < context for window in config.windows),
        "rotary positions of several kinds": any(kind != 0 for kind in config.rope_kinds),
        "partial rotary positions": any(rope.dim != config.head_dim for rope in config.ropes),
        "a scaled embedding": config.embedding_scale != 1,
        "a scale of attention": bool(config.attention_scale),
    }
    missing = [name for name, is_needed in needs.items() if is_needed]
    if missing:
        raise BundleError(
            f"{config.architecture} has {' and '.join(missing)}, which a bundle for the NPU cannot have yet. Build it "
            "for the CPU."
        )

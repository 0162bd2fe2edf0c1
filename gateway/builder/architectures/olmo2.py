"""OLMo 2: norms after attention and MLP, and of all queries and all keys together."""

from __future__ import annotations

from gateway.builder.architectures.family import Family

OLMO2 = Family(
    name="olmo2",
    gguf="olmo2",
    read=lambda settings: {"norms": "post", "qk_norm": "all"},
    names={
        "attention_output_norm": "post_attention_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
)

"""Qwen2 and Qwen2.5: Llama with biases of q, k and v."""

from __future__ import annotations

from gateway.builder.architectures.family import Family
from gateway.builder.architectures.llama import context_of

QWEN2 = Family(name="qwen2", gguf="qwen2", read=context_of)

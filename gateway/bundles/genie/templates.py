"""Chat templates for Genie bundles without one: many contain only binaries and a tokenizer.json.

The special tokens in the vocabulary show the model's family. Every family has one template. The templates have no
tools: the dialect writes tools into the messages.
"""

from __future__ import annotations

from collections.abc import Iterable

_CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n{{ message.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}"
    "<|{{ message.role }}|>\n{{ message.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_GRANITE = (
    "{% for message in messages %}"
    "<|start_of_role|>{{ message.role }}<|end_of_role|>{{ message.content }}<|end_of_text|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)

#: (dialects of the family, special tokens that identify the family, its template)
_FAMILIES = (
    (("qwen", "hermes"), {"<|im_start|>", "<|im_end|>"}, _CHATML),
    (("llama",), {"<|start_header_id|>", "<|eot_id|>"}, _LLAMA3),
    ((), {"<|start_of_role|>", "<|end_of_role|>"}, _GRANITE),
    (("phi",), {"<|user|>", "<|end|>"}, _PHI3),
)


def family_template(dialect: str, special_tokens: Iterable[str]) -> str | None:
    """The template of the family with this dialect, else of the first family whose tokens all exist, else None."""
    present = set(special_tokens)
    named = next((template for dialects, _, template in _FAMILIES if dialect in dialects), None)
    return named or next((template for _, tokens, template in _FAMILIES if tokens <= present), None)

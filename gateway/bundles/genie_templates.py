"""Chat templates for bundles that come without one.

Genie bundles are often just binaries and a tokenizer.json. Which family a model belongs to shows in the special tokens
of its vocabulary, and each of these families writes its turns in one way. None of the templates knows tools: a dialect
writes those into the messages.
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

#: dialect -> (special tokens that tell the family, its template)
_FAMILIES = {
    "chatml": (("<|im_start|>", "<|im_end|>"), _CHATML),
    "llama3": (("<|start_header_id|>", "<|eot_id|>"), _LLAMA3),
    "granite": (("<|start_of_role|>", "<|end_of_role|>"), _GRANITE),
    "phi3": (("<|user|>", "<|end|>"), _PHI3),
}


def family_template(dialect: str, special_tokens: Iterable[str]) -> str | None:
    """The template of the family named by `dialect`, else of the first whose tokens are all there, else None."""
    if dialect in _FAMILIES:
        return _FAMILIES[dialect][1]
    present = set(special_tokens)
    return next((template for tokens, template in _FAMILIES.values() if present.issuperset(tokens)), None)

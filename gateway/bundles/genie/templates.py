"""Chat templates for Genie bundles without one: many contain only binaries and a tokenizer.json.

The special tokens in the vocabulary show the model's family, and every family has one template. For models of no known
family, AI Dev Home's prompt.json has the text around the messages of each role; the word `string` is where the message
goes. Its texts for known families differ from the model's own by spaces, so the template of the family has priority.
The templates have no tools: the dialect writes tools into the messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from gateway.bundles.json_file import read_json
from gateway.errors import BundleError

_MESSAGE = re.compile(r"\bstring\b")

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


class _PromptFile(Struct):
    """prompt.json. A role that has no key in the file is written like the user."""

    prompt_user: str
    prompt_system: str | None = None
    prompt_assistant: str | None = None
    prompt_tool: str | None = None
    prompt_start: str = ""  # opens the answer; with `string`, it replaces `prompt_user` for the last message


def fallback_template(folder: Path, dialect: str, special_tokens: Iterable[str], begin_token: str) -> str | None:
    """The template for the bundle in `folder`, which contains none; None if nothing describes it.

    Args:
        dialect: the family with this dialect has priority; "": the special tokens show the family.
        special_tokens: of the tokenizer. With a prompt.json, only those that it writes show a family.
        begin_token: comes before the first message of prompt.json, unless that writes it itself. "": none.
    Raises BundleError if prompt.json cannot be read, or has no text of a user's message.
    """
    file = _prompt_file(folder)
    present = {token for token in special_tokens if file is None or token in file.prompt_user}
    named = next((template for dialects, _, template in _FAMILIES if dialect in dialects), None)
    family = named or next((template for _, tokens, template in _FAMILIES if tokens <= present), None)
    return family or (_template(file, begin_token) if file else None)


def _prompt_file(folder: Path) -> _PromptFile | None:
    path = folder / "prompt.json"
    if not path.is_file():
        return None
    file = read_json(path, _PromptFile)
    if not _MESSAGE.search(file.prompt_user):
        raise BundleError(f"{folder.name}: `prompt_user` in prompt.json lacks the word 'string' for the message.")
    return file


def _template(file: _PromptFile, begin_token: str) -> str:
    by_role = {"system": file.prompt_system, "assistant": file.prompt_assistant, "tool": file.prompt_tool}
    turns = {f"message.role == '{role}'": text for role, text in by_role.items() if text is not None}
    opened = bool(_MESSAGE.search(file.prompt_start))
    if opened:
        turns["loop.last and add_generation_prompt"] = file.prompt_start
    turns["true"] = file.prompt_user
    body = "".join(
        f"{{% {'elif' if index else 'if'} {condition} %}}{_turn(text, begin_token)}"
        for index, (condition, text) in enumerate(turns.items())
    )
    start = "" if opened else f"{{% if add_generation_prompt %}}{_literal(file.prompt_start)}{{% endif %}}"
    return f"{{% for message in messages %}}{body}{{% endif %}}{{% endfor %}}{start}"


def _turn(text: str, begin_token: str) -> str:
    """The part of the template for one message."""
    before, *after = _MESSAGE.split(text, maxsplit=1)
    begin = "" if before.startswith(begin_token) else f"{{% if loop.first %}}{_literal(begin_token)}{{% endif %}}"
    return f"{begin}{_literal(before)}{{{{ message.content }}}}{_literal(''.join(after))}"


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""

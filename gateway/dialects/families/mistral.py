"""Mistral: a JSON array behind `[TOOL_CALLS]`, or in newer models the name and the arguments of each call.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}

The parser reads both. Mistral's templates refuse call ids that are not nine letters or digits. So the gateway makes
ids of this form, and shortens a client's ids in calls and results alike.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import FamilyDialect
from gateway.dialects.parser import THINK_CLOSE, THINK_OPEN, Markup
from gateway.generation import Chat, Message
from gateway.text.template_traits import Traits

OPEN, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
THOUGHTS = ((THINK_OPEN, THINK_CLOSE), ("[THINK]", "[/THINK]"))

_ID = re.compile(r"[a-zA-Z0-9]{9}")


class MistralDialect(FamilyDialect):
    """`mistral` (an array), and `mistral-args` (name and arguments) for templates with `[ARGS]`."""

    inner_markers = (ARGUMENTS, CALL_ID)

    def __init__(self, name: str) -> None:
        super().__init__(name, Markup(opens=(OPEN,), named=(OPEN,), thoughts=THOUGHTS, new_id=mistral_id))
        self._by_name = name == "mistral-args"
        self.section_separator = "" if self._by_name else None
        self.before_next_call = OPEN[0] if self._by_name else ""

    def format_calls(self, calls: Sequence[tuple[str, str]]) -> str:
        if self._by_name:
            return "".join(f"{OPEN}{name}{ARGUMENTS}{arguments}" for name, arguments in calls)
        return f"{OPEN}[{', '.join(self.json_call(*call) for call in calls)}]"

    def section_rule(self, terminal: Terminal, *, single: bool) -> str:
        return "call" if self._by_name else lark.array_of_calls(single=single)

    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        if self._by_name:
            return f"{lark.literal(name)} {terminal(ARGUMENTS)} {arguments}"
        return super().call_rule(name, arguments, terminal)

    def prepare(self, chat: Chat, traits: Traits) -> Chat:
        chat = replace(chat, messages=tuple(map(_with_short_ids, chat.messages)))
        return super().prepare(chat, traits)


def mistral_id() -> str:
    return secrets.token_hex(5)[:9]


def _with_short_ids(message: Message) -> Message:
    return replace(
        message,
        tool_calls=tuple(replace(call, id=_short(call.id)) for call in message.tool_calls),
        tool_call_id=None if message.tool_call_id is None else _short(message.tool_call_id),
    )


def _short(id: str) -> str:
    return id if _ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:9]

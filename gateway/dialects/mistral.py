"""Mistral: an array behind `[TOOL_CALLS]`, or, in newer models, the name and the arguments of each call.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}

Both are read whichever is written. Their templates refuse ids that are not nine letters or digits, so ours are, and
those that a client brings from elsewhere are shortened, the same way in calls and results.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from gateway.dialects import lark
from gateway.dialects.base import Terminal
from gateway.dialects.family import Family, json_call, json_call_rule, many
from gateway.dialects.parser import Markup
from gateway.generation import Chat, Message

OPEN, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"

_ID = re.compile(r"[a-zA-Z0-9]{9}")


def mistral_id() -> str:
    return secrets.token_hex(5)[:9]


class MistralDialect(Family):
    """`mistral`, and `mistral-args` for models whose template has `[ARGS]`."""

    inner_markers = (ARGUMENTS, CALL_ID)

    def __init__(self, name: str = "mistral") -> None:
        super().__init__(name, Markup(opens=(OPEN,), named=True, new_id=mistral_id))
        self._by_name = name == "mistral-args"

    def prepare(self, chat: Chat, template: str) -> Chat:
        chat = replace(chat, messages=tuple(map(_with_short_ids, chat.messages)))
        return super().prepare(chat, template)

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        if self._by_name:
            return "".join(f"{OPEN}{name}{ARGUMENTS}{arguments}" for name, arguments in calls)
        return f"{OPEN}[{', '.join(json_call(*call) for call in calls)}]"

    def call_rule(self, name: str, arguments: str, terminal: Terminal) -> str:
        if self._by_name:
            return f"{lark.text(name)} {terminal(ARGUMENTS)} {arguments}"
        return json_call_rule(name, arguments)

    def calls_rule(self, terminal: Terminal, *, single: bool) -> str:
        if self._by_name:
            return many(f"{terminal(OPEN)} call", "", single=single)
        return f"{terminal(OPEN)} {_array(single=single)}"

    def free_grammar(self, rules: str, terminal: Terminal) -> str:
        return lark.may_call(OPEN, "call" if self._by_name else _array(single=False), rules, terminal)


def _array(*, single: bool) -> str:
    return f'"[" {many("call", lark.text(", "), single=single)} "]"'


def _with_short_ids(message: Message) -> Message:
    return replace(
        message,
        tool_calls=tuple(replace(call, id=_short(call.id)) for call in message.tool_calls),
        tool_call_id=None if message.tool_call_id is None else _short(message.tool_call_id),
    )


def _short(id: str) -> str:
    return id if _ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:9]

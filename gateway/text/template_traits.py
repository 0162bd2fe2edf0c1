"""What a chat template does with the parts of a conversation, found by rendering short conversations with it.

Templates differ: one refuses a system message, one forgets it, one takes a single tool call in a turn. A conversation
is fitted to these traits before it is rendered (`template_fit.py`), so that no part of it is refused or lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

#: Renders variables. None: the template refuses them, or fails.
Attempt = Callable[[Mapping[str, Any]], str | None]

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TOOL_VARIABLES = ("tools", "xml_tools", "available_tools")
_PARAMETERS = {"type": "object", "properties": {"p": {"type": "string", "description": "d"}}, "required": ["p"]}
_TOOLS = [{"type": "function", "function": {"name": "qTool", "description": "d", "parameters": _PARAMETERS}}]
_HEAD = 6  # characters before a text that show whose turn it is
_SPLITS_REASONING = re.compile(r"split\(\s*['\"]</think>")

IN_SYSTEM_MESSAGE = "message"
IN_CONTENT = "content"


class Traits(Struct, frozen=True, kw_only=True):
    """The defaults are those of a template that can do everything.

    Args:
        parts: content is a list of parts. As a text it would be lost.
        system: a system message may come first.
        late_system: a second system message may come behind other messages.
        system_for_user: a system message is rendered only if the user's message is the last one.
        alternates: two turns of one role in sequence are refused.
        user_first: the first turn must be the user's: another one is refused, or rendered as the user's next to tools;
            or a system message without a user is lost.
        tools: the variable for the tools. "message": the system message has them, as JSON. None: they are not rendered.
        calls: the calls of an assistant message are rendered.
        many_calls: several calls in one message are rendered.
        text_arguments: the arguments of a call are JSON text. As an object they would be refused, or spelled as Python.
        only_objects: arguments that are no JSON object, such as those of a call that was cut, must be put into one.
        null_content: an assistant message with calls must have no content, or the calls are lost.
        results: messages of the role "tool" are rendered.
        reasoning: the key for an assistant message's reasoning. "content": it is a part of the content, in `<think>`
            tags. None: it is not rendered.
    """

    parts: bool = False
    system: bool = True
    late_system: bool = True
    system_for_user: bool = False
    alternates: bool = False
    user_first: bool = False
    tools: str | None = "tools"
    calls: bool = True
    many_calls: bool = True
    text_arguments: bool = False
    only_objects: bool = False
    null_content: bool = False
    results: bool = True
    reasoning: str | None = "reasoning_content"


def find_traits(attempt: Attempt, source: str) -> Traits:
    """The traits of the template that `attempt` renders. `source`: its text."""
    for parts in (False, True):
        probe = _Probe(attempt, parts=parts)
        if probe.shows("qUser", [probe.user()]):
            return _found(probe, source)
    return Traits()  # it does not render what the user says, so nothing can be found out


def stricter(traits: Traits) -> Iterable[Traits]:
    """Traits to try when a template refuses a conversation: it can refuse what it took in the short ones."""
    strict = replace(traits, late_system=False, alternates=True, user_first=True, many_calls=False)
    yield replace(traits, only_objects=True)
    strict = replace(strict, only_objects=True)
    yield strict
    yield replace(strict, system=False)
    yield replace(strict, system=False, text_arguments=not traits.text_arguments)


def _found(probe: _Probe, source: str) -> Traits:
    tools = probe.tools_variable()
    probe.give_tools(tools)
    call_form = probe.call_form()
    text_arguments, null_content = call_form or (False, False)
    turn = probe.call_turn(1, call_form) if call_form else probe.message("assistant", "qAnswer")
    system = [probe.message("system", "qSystem")]
    has_system = probe.shows("qSystem", [*system, probe.user()])
    return Traits(
        parts=probe.parts,
        system=has_system,
        late_system=probe.shows_all(("qSystem", "qLate"), probe.two_systems()),
        system_for_user=has_system and not probe.shows("qSystem", [*system, probe.user(), turn]),
        alternates=probe.render([probe.user(), probe.user()]) is None,
        user_first=not probe.keeps_first_turn() or (has_system and not probe.shows("qSystem", system)),
        tools=tools,
        calls=call_form is not None,
        many_calls=call_form is not None and probe.shows("qCall2", [probe.user(), probe.call_turn(2, call_form)]),
        text_arguments=text_arguments,
        null_content=null_content,
        results=probe.shows("qResult", [probe.user(), turn, probe.result()]),
        reasoning=probe.reasoning_key(turn, source),
    )


class _Probe:
    """Makes short conversations of marked words, and looks for the words in what the template makes of them."""

    def __init__(self, attempt: Attempt, *, parts: bool) -> None:
        self._attempt, self.parts = attempt, parts
        self._tools: dict[str, Any] = {"tools": None}

    def give_tools(self, variable: str | None) -> None:
        """From now on, a conversation has a tool: some templates render calls only then."""
        if variable not in (None, IN_SYSTEM_MESSAGE):
            self._tools |= {str(variable): _TOOLS}

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str | None:
        conversation = {"documents": None, "messages": messages, "add_generation_prompt": True}
        return self._attempt({**self._tools, **conversation, **variables})

    def shows(self, word: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> bool:
        return word in (self.render(messages, **variables) or "")

    def shows_all(self, words: Sequence[str], messages: Sequence[Mapping[str, Any]]) -> bool:
        text = self.render(messages) or ""
        return all(word in text for word in words)

    def keeps_first_turn(self) -> bool:
        """True if the template renders a first turn of the assistant, and not otherwise if there are tools."""
        turns = [self.message("assistant", "qFirst"), self.user()]
        with_tools, without = (self.render(turns, **given) or "" for given in ({}, dict.fromkeys(self._tools)))
        before, before_without = (text.partition("qFirst")[0][-_HEAD:] for text in (with_tools, without))
        return bool(with_tools and without) and before == before_without

    def message(self, role: str, content: str, **fields: Any) -> dict[str, Any]:
        return {"role": role, "content": content_parts(content) if self.parts else content, **fields}

    def user(self) -> dict[str, Any]:
        return self.message("user", "qUser")

    def two_systems(self) -> list[dict[str, Any]]:
        first, late = (self.message("system", word) for word in ("qSystem", "qLate"))
        return [first, self.user(), self.message("assistant", "a"), late, self.user()]

    def result(self) -> dict[str, Any]:
        return self.message("tool", "qResult", name="qCall1", tool_call_id="qIdent001")

    def call_turn(self, count: int, form: tuple[bool, bool]) -> dict[str, Any]:
        text_arguments, null_content = form
        arguments = {"qKey": "qValue"}
        calls = [
            {
                "id": f"qIdent00{number}",
                "type": "function",
                "function": {
                    "name": f"qCall{number}",
                    "arguments": json.dumps(arguments) if text_arguments else arguments,
                },
            }
            for number in range(1, count + 1)
        ]
        message = self.message("assistant", "", tool_calls=calls)
        return message | ({"content": None} if null_content else {})

    def call_form(self) -> tuple[bool, bool] | None:
        """(text_arguments, null_content) in which a call is rendered as JSON. None: it is not rendered."""
        for form in ((False, False), (True, False), (False, True), (True, True)):
            text = self.render([self.user(), self.call_turn(1, form)], add_generation_prompt=False) or ""
            is_json = "'qKey'" not in text and '\\"qKey' not in text  # Python's spelling, and JSON in a JSON text
            if "qCall1" in text and "qValue" in text and is_json:
                return form
        return None

    def tools_variable(self) -> str | None:
        for variable in _TOOL_VARIABLES:
            if self.shows("qTool", [self.user()], **{variable: _TOOLS}):
                return variable
        system = self.message("system", "s", tools=json.dumps([_TOOLS[0]["function"]]))
        return IN_SYSTEM_MESSAGE if self.shows("qTool", [system, self.user()]) else None

    def reasoning_key(self, turn: Mapping[str, Any], source: str) -> str | None:
        """Many templates render the reasoning of the running turn only, so the turn here is a call or the last one."""
        for key in _REASONING_KEYS:
            thought = {**turn, key: "qThought"}
            answer = self.message("assistant", "a", **{key: "qThought"})
            if self.shows("qThought", [self.user(), thought, self.result()]) or self.shows(
                "qThought", [self.user(), answer, self.user()]
            ):
                return key
        return IN_CONTENT if _SPLITS_REASONING.search(source) else None


def content_parts(text: str) -> list[dict[str, str]]:
    """Content as a list of one text part."""
    return [{"type": "text", "text": text}]

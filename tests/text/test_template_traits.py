"""What is found out about a chat template. The templates are small, and behave as those of known families."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.text.template_traits import Traits
from gateway.text.templates import ChatTemplate
from tests.support.template_parts import (
    ALTERNATE,
    AS_IT_IS,
    AS_JSON,
    AS_TEXT,
    ONE_CALL,
    ONLY_TWO_ROLES,
    TOOLS,
    TURN,
    loop,
)

NO_TOOLS: dict[str, Any] = {"tools": None, "calls": False, "many_calls": False, "reasoning": None}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (loop(TURN), NO_TOOLS),
        (loop(TURN + AS_JSON, TOOLS), {"reasoning": None}),
        (loop(TURN + AS_JSON + "{{ m.reasoning_content }}", TOOLS), {}),
        (loop(TURN + AS_JSON + "{{ m.reasoning }}", TOOLS), {"reasoning": "reasoning"}),
        (loop(TURN + AS_JSON + "{{ m.thinking }}", TOOLS), {"reasoning": "thinking"}),
        (loop("[{{ m.role }}]{{ m.content.split('</think>')[-1] }}"), NO_TOOLS | {"reasoning": "content"}),
        (loop(TURN + "{% if tools %}" + AS_JSON + "{% endif %}", TOOLS), {"reasoning": None}),
        (loop(TURN + AS_TEXT, TOOLS), {"text_arguments": True, "reasoning": None}),
        (loop(TURN + AS_IT_IS, TOOLS), {"text_arguments": True, "reasoning": None}),
        (
            loop(
                TURN + ONE_CALL + AS_JSON,
                TOOLS,
            ),
            {"many_calls": False, "reasoning": None},
        ),
        (
            loop(TURN + "{% if m.tool_calls %}<{{ m.tool_calls[0].function | tojson }}>{% endif %}", TOOLS),
            {"many_calls": False, "reasoning": None},
        ),
        (
            loop("{% if m.content is none %}" + AS_TEXT + "{% else %}" + TURN + "{% endif %}"),
            {"tools": None, "text_arguments": True, "null_content": True, "reasoning": None},
        ),
        (loop(TURN, TOOLS.replace("tools", "xml_tools")), NO_TOOLS | {"tools": "xml_tools"}),
        (loop(TURN + "{% if m.tools %}{{ '' + m.tools }}{% endif %}"), NO_TOOLS | {"tools": "message"}),
        (
            loop(ALTERNATE + ONLY_TWO_ROLES + TURN),
            NO_TOOLS
            | {"system": False, "late_system": False, "alternates": True, "user_first": True, "results": False},
        ),
        (loop("{% if m.role != 'tool' %}" + TURN + "{% endif %}"), NO_TOOLS | {"results": False}),
        (
            loop("{% if loop.first or m.role != 'system' %}" + TURN + "{% endif %}"),
            NO_TOOLS | {"late_system": False},
        ),
        (  # the last system text only, before all turns
            loop(
                "{% if m.role != 'system' %}" + TURN + "{% endif %}",
                "{% set n = namespace(s='') %}{% for m in messages if m.role == 'system' %}{% set n.s = m.content %}"
                "{% endfor %}{{ n.s }}",
            ),
            NO_TOOLS | {"late_system": False},
        ),
        (
            loop("{% for p in m.content %}{{ p.text }}{% endfor %}"),
            NO_TOOLS | {"parts": True},
        ),
        ("nothing of it", {}),
        ("{{ 1 / 0 }}", {}),
        ("{{ messages | length }}", {}),
    ],
)
def test_traits_are_found(source: str, expected: dict[str, Any]) -> None:
    assert ChatTemplate(source, {}).traits == Traits(**expected)


def test_traits_are_found_once() -> None:
    template = ChatTemplate(loop(TURN), {})
    assert template.traits is template.traits

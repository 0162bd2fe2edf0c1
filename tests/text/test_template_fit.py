"""A conversation that a template would refuse or cut is rendered completely."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.generation import Chat, Message, Tool, ToolCall
from gateway.text.template_fit import fit
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
    calls,
    loop,
)

STRICT = loop(ALTERNATE + ONLY_TWO_ROLES + TURN)
#: Calls and results do not count as turns (Mistral).
COUNTED = (
    "{% set n = namespace(i=0) %}{% for m in messages if m.role != 'system' %}"
    "{% if not (m.role == 'tool' or m.tool_calls) %}"
    "{% if (m.role == 'user') != (n.i % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% set n.i = n.i + 1 %}{% endif %}{% endfor %}"
)
LATE = "{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"


def user(content: str) -> Message:
    return Message(role="user", content=content)


def system(content: str) -> Message:
    return Message(role="system", content=content)


def assistant(content: str | None = None, *calls: str, **fields: Any) -> Message:
    made = tuple(ToolCall(name, f"f{name}", f'{{"a": "{name}"}}') for name in calls)
    return Message(role="assistant", content=content, tool_calls=made, **fields)


def result(id: str, content: str | None = None) -> Message:
    return Message(role="tool", content=content or f"r{id}", tool_call_id=id)


def render(source: str, *messages: Message, **chat: Any) -> str:
    return ChatTemplate(source, {}).render(Chat(messages=messages, **chat))


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            (user("U"), assistant("See:", "1", "2"), result("1"), result("2")),
            '[user]U[assistant]See:<f1:{"a": "1"}>[tool]r1[assistant]<f2:{"a": "2"}>[tool]r2[assistant]',
        ),
        (
            (user("U"), assistant(None, "1", "2", "3"), result("3"), result("1"), result("2"), user("V")),
            '[user]U[assistant]<f1:{"a": "1"}>[tool]r1[assistant]<f2:{"a": "2"}>[tool]r2'
            '[assistant]<f3:{"a": "3"}>[tool]r3[user]V[assistant]',
        ),
        (
            (user("U"), assistant(None, "1", "2"), result("2"), user("V"), result("9")),
            '[user]U[assistant]<f1:{"a": "1"}>[assistant]<f2:{"a": "2"}>[tool]r2[user]V[tool]r9[assistant]',
        ),
        (
            (user("U"), assistant(None, "1", "1"), result("1", "a"), result("1", "b"), result("x")),
            '[user]U[assistant]<f1:{"a": "1"}>[tool]a[tool]b[assistant]<f1:{"a": "1"}>[tool]rx[assistant]',
        ),
        (
            (user("U"), assistant(None, "1"), result("1"), assistant(None, "2", "3"), result("2"), result("3")),
            '[user]U[assistant]<f1:{"a": "1"}>[tool]r1[assistant]<f2:{"a": "2"}>[tool]r2'
            '[assistant]<f3:{"a": "3"}>[tool]r3[assistant]',
        ),
    ],
)
@pytest.mark.parametrize("refusal", [ONE_CALL, ""])
def test_template_with_one_call_in_a_turn_gets_one_turn_for_each(
    messages: tuple[Message, ...], expected: str, refusal: str
) -> None:
    """The first template raises, the second one would print the first call only."""
    calls = AS_JSON if refusal else AS_JSON.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")
    assert render(loop(refusal + TURN + calls, TOOLS), *messages) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((system("S"), user("U")), "[user]S\n\nU[assistant]"),
        ((system("S"), system("T"), user("U")), "[user]S\n\nT\n\nU[assistant]"),
        ((system("S"),), "[user]S[assistant]"),
        ((system("S"), assistant("A"), user("U")), "[user]S[assistant]A[user]U[assistant]"),
        ((user("U"), system("S")), "[user]U\n\nS[assistant]"),
        ((user("U"), assistant("A"), system("S"), user("V")), "[user]U[assistant]A[user]S\n\nV[assistant]"),
        (
            (user("U"), user("V"), assistant("A"), assistant("B"), user("W")),
            "[user]U\n\nV[assistant]A\n\nB[user]W[assistant]",
        ),
        ((assistant("A"), user("U")), "[user][assistant]A[user]U[assistant]"),
        ((user("U"), assistant("A")), "[user]U[assistant]A"),
        ((user("U"), user(""), user("V")), "[user]U\n\nV[assistant]"),
    ],
)
def test_template_with_two_strict_roles_renders_everything(messages: tuple[Message, ...], expected: str) -> None:
    assert render(STRICT, *messages) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            (user("U"), assistant(None, "1"), result("1"), user("V")),
            '[user]U[assistant]<f1:{"a": "1"}>[tool]r1[assistant][user]V[assistant]',
        ),
        (
            (system("S"), assistant("Hi"), user("U"), assistant("A", "1"), result("1"), assistant("B"), user("V")),
            '[system]S[user][assistant]Hi[user]U[assistant]A<f1:{"a": "1"}>[tool]r1[assistant]B[user]V[assistant]',
        ),
        ((system("S"),), "[system]S[user][assistant]"),
    ],
)
def test_calls_that_do_not_count_as_turns_keep_the_alternation(messages: tuple[Message, ...], expected: str) -> None:
    assert render(loop(TURN + AS_JSON, COUNTED + TOOLS), *messages) == expected


def test_late_system_message_becomes_a_turn_of_the_user() -> None:
    source = loop(LATE + TURN)
    messages = (system("S"), system("T"), user("U"), assistant("A"), system("L"), user("V"), system("M"))
    assert render(source, *messages) == "[system]S\n\nT[user]U[assistant]A[user]L\n\nV[user]M[assistant]"
    assert (
        render(source, user("U"), system("S"), assistant("A"), user("V"))
        == "[user]U[user]S[assistant]A[user]V[assistant]"
    )


@pytest.mark.parametrize("written", [AS_TEXT, AS_IT_IS])
def test_arguments_are_json_text_where_a_template_needs_text(written: str) -> None:
    call = Message(role="assistant", tool_calls=(ToolCall("1", "f", '{"é": [1, "<"], "n": null}'),))
    assert (
        render(loop(TURN + written, TOOLS), user("U"), call)
        == '[user]U[assistant]<f:{"é": [1, "<"], "n": null}>[assistant]'
    )
    assert '"n": null' in render(loop(TURN + AS_JSON, TOOLS), user("U"), call)


@pytest.mark.parametrize("arguments", ['{"city": "Par', "[1, 2]", "7", "words"])
def test_arguments_of_a_cut_call_do_not_stop_the_conversation(arguments: str) -> None:
    """Some templates read the members of the arguments, and a client sends back what the model wrote."""
    members = calls("c.function.arguments | items | map('join', '=') | join")
    call = Message(role="assistant", tool_calls=(ToolCall("1", "f", arguments),))
    assert (
        render(loop(TURN + members, TOOLS), user("U"), call)
        == f"[user]U[assistant]<f:arguments={arguments}>[assistant]"
    )
    assert render(loop(TURN + AS_TEXT, TOOLS), user("U"), call) == f"[user]U[assistant]<f:{arguments}>[assistant]"
    assert "[user]U[assistant]<f:" in render(loop(TURN + AS_JSON, TOOLS), user("U"), call)


def test_call_and_content_are_two_messages_where_a_call_must_have_no_content() -> None:
    source = loop("{% if m.content is none %}" + AS_TEXT + "{% else %}" + TURN + "{% endif %}")
    rendered = render(source, user("U"), assistant("See:", "1"), result("1"))
    assert rendered == '[user]U[assistant]See:<f1:{"a": "1"}>[tool]r1[assistant]'
    assert render(source, user("U"), assistant("", "1")) == '[user]U<f1:{"a": "1"}>[assistant]'


def test_system_text_stays_where_a_template_renders_it_for_the_user_only() -> None:
    """Mistral's template has it in the last turn if that is the user's. During a tool call it would be lost."""
    source = (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}]"
        "{% if loop.last and m.role == 'user' %}{{ s }}+{% endif %}{{ m.content }}" + AS_JSON + "{% endfor %}"
    )
    assert render(source, system("S"), user("U"), assistant("A"), user("V")) == "[user]U[assistant]A[user]S+V"
    turns = (system("S"), user("U"), assistant("A"), user("V"), assistant(None, "1"), result("1"))
    assert render(source, *turns) == '[user]U[assistant]A[user]S\n\nV[assistant]<f1:{"a": "1"}>[tool]r1'
    assert render(source, system("S"), user("U"), assistant("So")) == "[user]S\n\nU[assistant]So"


def test_system_message_without_a_user_gets_an_empty_turn_where_it_would_be_lost() -> None:
    source = (
        "{% for m in messages[1:] %}{% if loop.first %}{{ messages[0].content }}{% endif %}[{{ m.role }}]{% endfor %}"
    )
    source = "{% if messages[0].role == 'system' %}" + source + "{% else %}" + loop(TURN) + "{% endif %}"
    assert render(source, system("S")) == "S[user]"


def test_result_gets_the_name_of_its_function() -> None:
    source = loop("{% if m.role == 'tool' and not m.name %}{{ raise_exception('name') }}{% endif %}{{ m.name }}" + TURN)
    assert "f1[tool]r1" in render(source, user("U"), assistant(None, "1"), result("1"))


def test_empty_reasoning_does_not_replace_the_content() -> None:
    source = loop("[{{ m.role }}]{{ m.content.split('</think>')[-1] }}")
    turns = (user("U"), assistant("A", reasoning=""), Message(role="user", content="V", reasoning="R"))
    assert render(source, *turns) == "[user]U[assistant]A[user]V[assistant]"


def test_reasoning_goes_under_the_key_of_the_template() -> None:
    turns = (user("U"), assistant("A", reasoning="R"), user("V"))
    for key in ("reasoning_content", "reasoning", "thinking"):
        source = loop(TURN + f"{{% if m.{key} %}}({{{{ m.{key} }}}}){{% endif %}}")
        assert render(source, *turns) == "[user]U[assistant]A(R)[user]V[assistant]"
    splits = loop(
        "[{{ m.role }}]{% set parts = m.content.split('</think>') %}{{ parts | length }}{{ parts[-1] | trim }}"
    )
    assert render(splits, *turns) == "[user]1U[assistant]2A[user]1V[assistant]"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (loop(TURN, TOOLS.replace("tools", "xml_tools")), '{"type": "function", "function": {"name": "f"'),
        (loop(TURN + "{% if m.tools %}|{{ m.tools }}|{% endif %}"), '[system]|[{"name": "f"'),
    ],
)
def test_tools_go_under_the_name_of_the_template(source: str, expected: str) -> None:
    assert render(source, user("U"), tools=(Tool(name="f"),)).startswith(expected)
    assert '"f"' not in render(source, user("U"))


def test_content_is_a_list_of_parts_where_a_template_needs_it() -> None:
    source = loop("[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}")
    assert render(source, system("S"), user("U"), assistant("A")) == "[system]S[user]U[assistant]A"


def test_refusal_that_depends_on_the_length_is_fitted_too() -> None:
    """In the short conversations, two turns of one role and a system message are rendered."""
    long = "{% if messages | length > 5 %}%s{% endif %}"
    turns = (user("U"), user("V"), assistant("A"), system("S"), user("W"), assistant("B"), user("X"))
    fitted = "[user]U\n\nV[assistant]A[user]S\n\nW[assistant]B[user]X[assistant]"
    assert render(loop(long.replace("%s", ALTERNATE + ONLY_TWO_ROLES) + TURN), *turns) == fitted
    always = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}"
    with pytest.raises(InvalidRequest, match="too long"):
        render(loop(always + TURN), *turns)


MESSAGES = st.lists(
    st.one_of(
        st.just(system("")),
        st.just(user("")),
        st.just(assistant("")),
        st.just(assistant(None, "1")),
        st.just(assistant("", "1", "2")),
        st.just(result("1")),
        st.just(result("2")),
    ),
    min_size=1,
    max_size=8,
)
TRAITS = [
    Traits(
        system=s,
        late_system=late,
        alternates=alt,
        user_first=alt,
        many_calls=many,
        null_content=null,
        system_for_user=own,
    )
    for s, late, alt, many, null, own in itertools.product((True, False), repeat=6)
]


@given(MESSAGES, st.sampled_from(TRAITS))
def test_no_text_call_or_result_is_lost(messages: list[Message], traits: Traits) -> None:
    marked = [
        Message(**{f: getattr(m, f) for f in m.__struct_fields__} | {"content": f"<{i}>"})
        for i, m in enumerate(messages)
    ]
    fitted = fit(Chat(messages=tuple(marked)), traits).messages
    text = "".join(message.content or "" for message in fitted)
    assert all(text.count(f"<{i}>") == 1 for i in range(len(marked)))
    calls = [call for message in fitted for call in message.tool_calls]
    assert calls == [call for message in marked for call in message.tool_calls]
    if not traits.many_calls:
        assert all(len(message.tool_calls) < 2 for message in fitted)
    if not traits.system:
        assert all(message.role != "system" for message in fitted)
    if traits.alternates:
        turns = [m.role for m in fitted if m.role in ("user", "assistant") and not m.tool_calls]
        assert turns[0] == "user" and not any(a == b == "user" for a, b in itertools.pairwise(turns))

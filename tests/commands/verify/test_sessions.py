"""Recorded requests of coding agents: each passes with a right answer, and fails with a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.verify import sessions
from gateway.commands.verify.outcome import GatewayFault
from gateway.commands.verify.peer import ToolCall
from gateway.commands.verify.recorded_reply import read_reply
from tests.commands.verify.conftest import Ended
from tests.support.verify_gateway import Answer, Mistake

RECORDED = sessions.sessions()
NAMES = [check.name for check in sessions.checks()]
REQUESTS = [request for session in RECORDED for request in session.requests]
CALLS = [name for name, request in zip(NAMES, REQUESTS, strict=True) if request.calls]
TEXTS = [name for name, request in zip(NAMES, REQUESTS, strict=True) if request.calls == []]


def fails(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.status, answer.code = 400, "unsupported_parameter"


def too_long(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.status, answer.code = 400, "context_length_exceeded"


def without_end(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.ends = False


def empty(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text, answer.calls = "", []


def chats(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text, answer.calls = "I cannot read files.", []


def invents_a_tool(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls = [("invented", {})]


def broken_arguments(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls = [(name, '{"a') for name, _ in answer.calls]


def calls_again(body: dict[str, Any], path: str, answer: Answer) -> None:
    tool = body["tools"][0]
    answer.calls = answer.calls or [(tool.get("function", tool)["name"], {})]


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (fails, dict.fromkeys(NAMES, "gateway")),
        (too_long, dict.fromkeys(NAMES, "model")),
        (without_end, dict.fromkeys(NAMES, "gateway")),
        (empty, dict.fromkeys(NAMES, "gateway")),
        (chats, dict.fromkeys(CALLS, "model")),
        (invents_a_tool, dict.fromkeys(NAMES, "model")),
        (broken_arguments, dict.fromkeys(CALLS, "model")),
        (calls_again, dict.fromkeys(TEXTS, "model")),
    ],
)
def test_mistake_is_found_by_its_checks(ended: Ended, mistake: Mistake, expected: dict[str, str]) -> None:
    assert ended(sessions.checks(), mistake) == expected


def test_recordings_are_small_and_have_no_personal_details() -> None:
    assert {session.client for session in RECORDED} >= {"Claude Code", "Cline", "Codex", "Continue"}
    for file in sessions._FOLDER.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert len(text) < 120_000 and "/root/" not in text and "/home/" not in text and "sk-" not in text, file


WHOLE = [
    (
        '{"choices": [{"finish_reason": "tool_calls", "message": {"content": null, "reasoning_content": "r",'
        ' "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}',
        ("", "r", [ToolCall("f", "{}")], False),
    ),
    (
        '{"object": "response", "status": "incomplete", "output": [{"type": "reasoning", "content": [{"text": "r"}]},'
        ' {"type": "message", "content": [{"text": "a"}, {"text": "b"}]},'
        ' {"type": "function_call", "name": "f", "arguments": "{}"}]}',
        ("ab", "r", [ToolCall("f", "{}")], True),
    ),
    (
        '{"type": "message", "stop_reason": "max_tokens", "content": [{"type": "thinking", "thinking": "r"},'
        ' {"type": "text", "text": "a"}, {"type": "tool_use", "name": "f", "input": {"x": 1}}]}',
        ("a", "r", [ToolCall("f", '{"x": 1}')], True),
    ),
]


@pytest.mark.parametrize(("text", "expected"), WHOLE)
def test_reply_without_a_stream_is_read(text: str, expected: tuple[Any, ...]) -> None:
    reply = read_reply(text)
    assert (reply.text, reply.reasoning, reply.calls, reply.is_cut) == expected and reply.has_ended


@pytest.mark.parametrize(
    "text", ["", "nothing", "{}", '{"choices": []}', "data: {}\n\n", 'data: {"choices": 1}', "data: x"]
)
def test_reply_of_another_form_is_a_fault_of_the_gateway(text: str) -> None:
    with pytest.raises(GatewayFault):
        read_reply(text)

"""Every reply is checked for its form, whole and as a stream."""

from __future__ import annotations

from typing import Any

import pytest
from openai import APIStatusError

from gateway.commands.client import openai_client
from gateway.commands.verify.outcome import GatewayFault
from gateway.commands.verify.peer import Peer, ToolCall
from tests.support.verify_gateway import Answer, chat_reply, serve_answers

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def choice(finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": "x", **message}, "finish_reason": finish}


def delta(finish: str | None = None, **change: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": change, "finish_reason": finish}]}


def call(index: int, name: str | None = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"index": index, "id": "1", "function": {"name": name, "arguments": arguments}}


def send(raw: Any, *, is_stream: bool) -> Any:
    def instead(body: dict[str, Any], path: str, answer: Answer) -> None:
        answer.raw = raw

    with serve_answers(instead) as url, openai_client(url, "", retries=0) as client:
        peer = Peer(client, "good")
        return peer.stream("x") if is_stream else peer.chat("x")


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ([], "0 choices in place of one"),
        ([choice(), choice()], "2 choices in place of one"),
        ([choice("end")], "the finish reason is 'end'"),
        ([choice("tool_calls")], "finish reason 'tool_calls' without a call"),
        ([choice(tool_calls=[CALL])], "calls with the finish reason 'stop'"),
        ([choice("tool_calls", tool_calls=[CALL, CALL])], "two calls have one id"),
        ([choice("tool_calls", tool_calls=[{**CALL, "id": ""}])], "two calls have one id, or none"),
        (
            [choice("tool_calls", tool_calls=[{**CALL, "function": {"name": "", "arguments": ""}}])],
            "a call has no name",
        ),
    ],
)
def test_reply_of_a_wrong_form_is_a_fault_of_the_gateway(choices: list[Any], words: str) -> None:
    with pytest.raises(GatewayFault, match=words):
        send({**chat_reply(Answer()), "choices": choices}, is_stream=False)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([delta(content="x")], "0 finish reasons in place of one"),
        ([delta("stop"), delta("stop")], "2 finish reasons in place of one"),
        ([delta(tool_calls=[call(1)]), delta("tool_calls")], r"calls of a stream have the numbers \[1\]"),
        ([delta(tool_calls=[call(0, None)]), delta("tool_calls")], "a call has no name"),
        ([{"error": {"message": "the engine failed"}}], "the request got an error: the engine failed"),
    ],
)
def test_stream_of_a_wrong_form_is_a_fault_of_the_gateway(events: list[Any], words: str) -> None:
    with pytest.raises(GatewayFault, match=words):
        send([*events, "[DONE]"], is_stream=True)


def test_pieces_of_a_stream_are_joined() -> None:
    pieces = [delta(tool_calls=[call(0, "f", '{"a"')]), delta(tool_calls=[call(1, "g", "{")])]
    pieces += [delta(tool_calls=[call(1, None, "}")]), delta(tool_calls=[call(0, None, ": 1}")])]
    reply = send([*pieces, delta("tool_calls"), "[DONE]"], is_stream=True)
    assert reply.calls == [ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")] and reply.usage is None
    assert [each.values() for each in reply.calls] == [{"a": 1}, {}] and ToolCall("f", "[]").values() is None


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_model_that_is_not_ready_is_no_reply(path: str) -> None:
    def busy(body: dict[str, Any], path: str, answer: Answer) -> None:
        answer.status, answer.code = 503, "model_not_ready"

    with serve_answers(busy) as url, openai_client(url, "", retries=0) as client, pytest.raises(APIStatusError):
        Peer(client, "good").post(path, {"messages": [], "input": []})

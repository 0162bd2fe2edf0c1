"""A server that answers the checks of `npu-gateway verify` as a gateway with a good model does, or with one mistake.

A mistake is a function that changes a reply: see `Mistake`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from msgspec import Struct

CONTEXT = 2048
CARD = {
    "id": "good",
    "object": "model",
    "context_length": CONTEXT,
    "capabilities": ["chat", "tools", "structured_outputs"],
}
_NUMBERS = "one, two, three, four, five, six, seven, eight, nine, ten"


class Answer(Struct, kw_only=True):
    """What a model says. `status`: of an error."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, dict[str, Any] | str]] = []
    finish: str = "stop"
    status: int = 200
    code: str = ""
    retry_after: str = ""  # the header of an error
    usage: tuple[int, int, int] = (0, 0, 0)
    ends: bool = True  # a stream has its last event
    raw: Any = None  # the reply, or the events of a stream, in place of all this


#: Changes the answer to a request: the body, the path below /v1, the right answer.
Mistake = Callable[[dict[str, Any], str, Answer], None]


def right_answer(body: dict[str, Any], path: str) -> Answer:
    text = " ".join(_texts(body))
    words = len(text.split())
    if words > CONTEXT:
        return Answer(status=400, code="context_length_exceeded")
    answer = _called(body, text) or Answer(text=_text(body, text))
    answer.reasoning = "Let me think." if "Think about it" in text else ""
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        answer.text = answer.text.partition(stop)[0]
    limit = body.get("max_tokens") or 1000
    tokens = re.findall(r"\s*\S+", answer.text)
    if len(tokens) > limit and not answer.calls:
        answer.text, answer.finish = "".join(tokens[:limit]), "length"
    count = min(max(1, len(tokens)), limit)
    answer.usage = (words, count, words + count)
    return answer


def _texts(body: dict[str, Any]) -> Iterator[str]:
    for message in [*body.get("messages", []), *(body.get("input") or [])]:
        content = message.get("content") or message.get("output") or ""
        yield content if isinstance(content, str) else " ".join(_part(part) for part in content)


def _part(part: dict[str, Any]) -> str:
    return str(part.get("text") or part.get("content") or "")


def _name(tool: dict[str, Any]) -> str:
    return str(tool.get("function", tool)["name"])


#: A pattern of the prompt -> the calls of a good model.
_CALLS: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = [
    ("Paris and in Rome", [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})]),
    ("a.txt and b.txt", [("read_file", {"path": "a.txt"}), ("read_file", {"path": "b.txt"})]),
    ("weather in Paris", [("get_weather", {"city": "Paris"})]),
    ("README.md", [("read_file", {"path": "README.md"})]),
    ("git status", [("run_command", {"command": "git status"})]),
    ("Iceland", [("search_web", {"query": "population of Iceland"})]),
    ("dentist", [("add_event", {"title": "dentist", "date": "2026-03-05"})]),
    ("Oslo", [("get_weather", {"city": "Oslo"})]),
    ("src/main.py", [("read_file", {"path": "src/main.py"})]),
    ("with ls", [("run_command", {"command": "ls"})]),
    ("solar", [("search_web", {"query": "solar energy news"})]),
    ("Review", [("add_event", {"title": "Review", "date": "2026-04-01"})]),
]


def _called(body: dict[str, Any], text: str) -> Answer | None:
    names, choice = [_name(tool) for tool in body.get("tools", [])], body.get("tool_choice", "auto")
    has_result = any(key in json.dumps(body) for key in ('"tool_call_id"', '"function_call_output"', '"tool_result"'))
    if not names or choice == "none":
        return None
    if has_result and "attempt_completion" not in names:
        return None
    calls = next((calls for pattern, calls in _CALLS if pattern in text), [])
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        calls = [call for call in calls if call[0] == name] or [(name, {"path": "x"})]
    elif "get_weather" not in names and len(names) > 1:  # a recorded session
        calls = [("attempt_completion" if has_result else _reader(names), {})]
    elif choice == "required":
        calls = calls or [("read_file", {"path": "x"})]
    calls = calls[:1] if body.get("parallel_tool_calls") is False else calls
    return Answer(calls=list(calls), finish="tool_calls") if calls else None


def _reader(names: list[str]) -> str:
    return next(name for name in ("read_file", "read_files", "read", "Read", "exec_command", "shell") if name in names)


#: A pattern of the prompt -> the text of a good model.
_TEXTS = [
    ("BANANA", "BANANA"),
    ("Answer in French", "Non."),
    ("number 42", "It has number 42."),
    ("My name is Ada", "Ada"),
    ("kiwi", "kiwi"),
    ("17 degrees", "It has 17 degrees."),
    ("Count from one", _NUMBERS),
    ("apples", "7"),
    ("", "Here you are, I am well, thank you."),
]
_JSON = {
    "capital": '{"capital": "Paris"}',
    "fruits": '{"fruits": ["apple", "pear", "fig"]}',
    "people": '{"people": [{"name": "Bob", "age": 9}, {"name": "Eve", "age": 12}]}',
    "age": '{"name": "Anna", "age": 31}',
    "colour": '{"colour": "green"}',
    "is_even": '{"is_even": true}',
}


def _text(body: dict[str, Any], text: str) -> str:
    kind = body.get("response_format")
    if kind:
        wanted = json.dumps(kind) + text
        return next(value for key, value in _JSON.items() if f'"{key}"' in wanted)
    return next(answer for pattern, answer in _TEXTS if pattern in text)


# --- the forms of the three APIs


def _call_objects(answer: Answer) -> list[dict[str, Any]]:
    return [
        {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": _arguments(arguments)}}
        for number, (name, arguments) in enumerate(answer.calls)
    ]


def _arguments(arguments: dict[str, Any] | str) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def _usage(answer: Answer) -> dict[str, int]:
    return dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), answer.usage, strict=True))


def chat_reply(answer: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "reasoning_content": answer.reasoning or None}
    message = {**message, "tool_calls": _call_objects(answer)} if answer.calls else message
    choice = {"index": 0, "message": message, "finish_reason": answer.finish}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "good", "choices": [choice]} | {
        "usage": _usage(answer)
    }


def chat_events(answer: Answer) -> Iterator[Any]:
    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "good", "choices": choices} | more

    yield chunk({"role": "assistant", "reasoning_content": answer.reasoning})
    for piece in re.findall(r"\s*\S+", answer.text):
        yield chunk({"content": piece})
    for number, call in enumerate(_call_objects(answer)):
        text = call["function"].pop("arguments")
        yield chunk({"tool_calls": [{**call, "index": number}]})
        for part in (text[:3], text[3:]):
            yield chunk({"tool_calls": [{"index": number, "function": {"arguments": part}}]})
    yield chunk({}, answer.finish)
    yield chunk({}, usage=_usage(answer)) | {"choices": []}
    yield from ["[DONE]"] if answer.ends else []


def response_events(answer: Answer) -> Iterator[Any]:
    output: list[dict[str, Any]] = [
        {"type": "function_call", "name": name, "arguments": _arguments(arguments), "call_id": "1"}
        for name, arguments in answer.calls
    ]
    output += [{"type": "message", "content": [{"type": "output_text", "text": answer.text}]}] if answer.text else []
    yield {"type": "response.created"}
    if answer.ends:
        yield {"type": "response.completed", "response": {"status": "completed", "output": output}}


def message_events(answer: Answer) -> Iterator[Any]:
    yield {"type": "message_start"}
    blocks = [({"type": "text", "text": ""}, {"type": "text_delta", "text": answer.text})] if answer.text else []
    blocks += [
        ({"type": "tool_use", "name": name}, {"type": "input_json_delta", "partial_json": _arguments(arguments)})
        for name, arguments in answer.calls
    ]
    for index, (block, delta) in enumerate(blocks):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "message_delta", "delta": {"stop_reason": "tool_use" if answer.calls else "end_turn"}}
    yield from [{"type": "message_stop"}] if answer.ends else []


_EVENTS = {"chat/completions": chat_events, "responses": response_events, "messages": message_events}


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        listed = self.server.card.get("listed") or json.dumps({"object": "list", "data": [self.server.card]})
        self._send(200, "application/json" if listed[0] in "[{" else "text/html", listed)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.removeprefix("/v1/")
        answer = right_answer(body, path)
        self.server.mistake(body, path, answer)
        if answer.status != 200:
            error = {"message": answer.code, "type": "error", "param": None, "code": answer.code}
            self._send(answer.status, "application/json", json.dumps({"error": error}), answer.retry_after)
        elif body.get("stream"):
            events = answer.raw or _EVENTS[path](answer)
            lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]
            self._send(200, "text/event-stream", "".join(lines))
        else:
            self._send(200, "application/json", json.dumps(answer.raw or chat_reply(answer)))

    def _send(self, status: int, kind: str, text: str, retry_after: str = "") -> None:
        content = text.encode()
        self.send_response(status)
        if retry_after:
            self.send_header("retry-after", retry_after)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    card: dict[str, Any] = CARD
    mistake: Mistake

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A stream that was left is no error."""


@contextmanager
def serve_answers(mistake: Mistake = lambda body, path, answer: None, **card: Any) -> Iterator[str]:
    """Run the server until the end of the block. Yields the URL of its API."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.mistake, server.card = mistake, CARD | card  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

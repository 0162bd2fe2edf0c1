"""Tool calling: one call, the right one of several, two in one turn, the answer after a result, forced calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gateway.commands.verify.check import Check
from gateway.commands.verify.outcome import NotApplicable, expect, promise
from gateway.commands.verify.peer import Message, Peer, Reply
from gateway.commands.verify.schema import misfit

GROUP = "tools"


def _tool(name: str, description: str, **arguments: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in arguments.items()}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = {
    tool["function"]["name"]: tool
    for tool in (
        _tool("get_weather", "Get the weather of a city now.", city="The city"),
        _tool("read_file", "Read a text file of the project.", path="Path of the file"),
        _tool("run_command", "Run a command in the shell.", command="The whole command line"),
        _tool("search_web", "Search the web.", query="What to search for"),
        _tool("add_event", "Add an event to the calendar.", title="Title of the event", date="Date as YYYY-MM-DD"),
    )
}
_ALL = list(TOOLS.values())

#: prompt, the tool, a word in each of these arguments
_ONE = (
    ("What is the weather in Paris?", "get_weather", {"city": "paris"}),
    ("Read the file README.md and summarise it.", "read_file", {"path": "readme.md"}),
    ("Run the command `git status`.", "run_command", {"command": "git status"}),
    ("Search the web for the population of Iceland.", "search_web", {"query": "iceland"}),
    ("Add a dentist appointment to my calendar on 2026-03-05.", "add_event", {"date": "2026-03-05"}),
)
_CHOICE = (
    ("Is it raining in Oslo right now?", "get_weather", {"city": "oslo"}),
    ("Show me what is in src/main.py.", "read_file", {"path": "src/main.py"}),
    ("List the files here with ls.", "run_command", {"command": "ls"}),
    ("Find recent news about solar energy on the internet.", "search_web", {"query": "solar"}),
    ("Put a meeting called Review into my calendar for 2026-04-01.", "add_event", {"title": "review"}),
)
_TWO = (
    ("What is the weather in Paris and in Rome? Call the tool once for each city.", "get_weather", ("paris", "rome")),
    ("Read both files, a.txt and b.txt.", "read_file", ("a.txt", "b.txt")),
)
#: prompt, tool, arguments, result, a word of the answer
_RESULTS = (
    ("What is the weather in Paris?", "get_weather", {"city": "Paris"}, "17 degrees and light rain", "17"),
    ("Which word is in note.txt?", "read_file", {"path": "note.txt"}, "The word is kiwi.", "kiwi"),
)


def checks() -> Iterator[Check]:
    for prompt, name, words in _ONE:
        yield _check(
            f"one tool: {prompt}", partial(_called, prompt=prompt, tools=[TOOLS[name]], name=name, words=words)
        )
    for prompt, name, words in _CHOICE:
        yield _check(f"five tools: {prompt}", partial(_called, prompt=prompt, tools=_ALL, name=name, words=words))
    for prompt, name, both in _TWO:
        yield _check(f"two calls: {prompt}", partial(_called_twice, prompt=prompt, name=name, both=both))
    for row in _RESULTS:
        yield _check(f"answer after the result: {row[0]}", partial(_answered, row=row))
    yield _check("no call for a greeting", _greeted)
    yield _check('tool_choice "none"', _forbidden)
    yield _check('tool_choice "required"', _required)
    yield _check("tool_choice with a name", _named)
    yield _check("parallel_tool_calls false", _single)
    yield _check("streamed arguments", _streamed)


def _check(name: str, run: Callable[[Peer], None]) -> Check:
    def able(peer: Peer) -> None:
        if peer.capabilities is not None and "tools" not in peer.capabilities:
            raise NotApplicable("the model has no tools")
        run(peer)

    return Check(GROUP, name, able)


def _called(peer: Peer, prompt: str, tools: list[Any], name: str, words: dict[str, str]) -> None:
    reply = peer.chat(prompt, tools=tools)
    expect(len(reply.calls) == 1, f"not one call, but {reply}")
    (call,) = reply.calls
    expect(call.name == name, f"not {name}, but {reply}")
    values = call.values()
    expect(values is not None, f"arguments that are no JSON object: {reply}")
    wrong = misfit(values, TOOLS[name]["function"]["parameters"])
    expect(not wrong, f"{wrong}: {reply}")
    for key, word in words.items():
        expect(word in str((values or {}).get(key)).lower(), f"no {word!r} in {key}: {reply}")


def _called_twice(peer: Peer, prompt: str, name: str, both: tuple[str, str]) -> None:
    reply = peer.chat(prompt, tools=_ALL)
    right = [call for call in reply.calls if call.name == name]
    found = [word for word in both if any(word in call.arguments.lower() for call in right)]
    expect(len(right) == 2 == len(reply.calls) and len(found) == 2, f"not two calls of {name}, but {reply}")


def _answered(peer: Peer, row: tuple[str, str, dict[str, str], str, str]) -> None:
    prompt, name, arguments, result, word = row
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    messages: list[Message] = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    reply = peer.chat(messages, tools=_ALL)
    expect(not reply.calls and word in reply.text.lower(), f"no answer with {word!r}, but {reply}")


def _greeted(peer: Peer) -> None:
    reply = peer.chat("Hello, how are you?", tools=_ALL)
    expect(not reply.calls and reply.text.strip(), f"no greeting, but {reply}")


def _forbidden(peer: Peer) -> None:
    reply = peer.chat(_ONE[0][0], tools=_ALL, tool_choice="none")
    promise(not reply.calls, f"a call: {reply}")


def _required(peer: Peer) -> None:
    reply = peer.chat("Hello, how are you?", tools=_ALL, tool_choice="required")
    _valid(reply)
    promise(len(set(reply.calls)) == len(reply.calls), f"the same call twice: {reply}")


def _named(peer: Peer) -> None:
    choice = {"type": "function", "function": {"name": "read_file"}}
    _valid_one(peer.chat("What is the weather in Paris?", tools=_ALL, tool_choice=choice), "read_file")


def _single(peer: Peer) -> None:
    reply = peer.chat(_TWO[0][0], tools=_ALL, tool_choice="required", parallel_tool_calls=False)
    _valid_one(reply, "")


def _streamed(peer: Peer) -> None:
    choice = {"type": "function", "function": {"name": "add_event"}}
    _valid_one(peer.stream(_ONE[4][0], tools=_ALL, tool_choice=choice), "add_event")


def _valid_one(reply: Reply, name: str) -> None:
    _valid(reply)
    promise(len(reply.calls) == 1, f"{len(reply.calls)} calls in place of one: {reply}")
    promise(not name or reply.calls[0].name == name, f"not {name}, but {reply}")


def _valid(reply: Reply) -> None:
    """The gateway's part: a forced call is there, and it fits the tool. The model's: it ends."""
    promise(reply.calls or (reply.finish == "length" and not reply.text), f"no call: {reply}")
    expect(reply.finish != "length", f"a call that does not end: {reply}")
    for call in reply.calls:
        promise(call.name in TOOLS, f"a tool that is not in the request: {reply}")
        wrong = misfit(call.values(), TOOLS[call.name]["function"]["parameters"])
        promise(not wrong, f"{wrong}: {reply}")

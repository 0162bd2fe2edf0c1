"""Replays requests that coding agents sent: recordings with personal details replaced, in sessions/*.json.

    {"client": "Codex", "requests": [{"path": "/responses", "body": {...}, "calls": ["shell"]}]}

`path` is below /v1. `calls`: one of these tools is a right answer; []: a text is; absent: any.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.commands.verify.check import Check
from gateway.commands.verify.outcome import expect, promise
from gateway.commands.verify.peer import Peer
from gateway.commands.verify.recorded_reply import Recorded, read_reply

GROUP = "sessions"
_FOLDER = Path(__file__).with_name("sessions")
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_MAX_TOKENS = 256  # of one answer; the recorded limits are for fast servers


class Request(Struct, frozen=True, kw_only=True):
    path: str
    body: dict[str, Any]
    calls: list[str] | None = None


class Session(Struct, frozen=True, kw_only=True):
    client: str
    requests: list[Request]


def sessions(folder: Path = _FOLDER) -> list[Session]:
    return [msgspec.json.decode(file.read_bytes(), type=Session) for file in sorted(folder.glob("*.json"))]


def checks() -> Iterator[Check]:
    for session in sessions():
        for number, request in enumerate(session.requests, 1):
            name = f"{session.client}, request {number}"
            yield Check(GROUP, name, partial(_replayed, request=request))


def _replayed(peer: Peer, request: Request) -> None:
    status, text = peer.post(request.path, _body(request, peer))
    is_too_long = status == 400 and ("context_length_exceeded" in text or "prompt is too long" in text.lower())
    expect(not is_too_long, f"the prompt of this client does not fit into the context: {text}")
    promise(status == 200, f"the request got an error: {status} {text}")
    reply = read_reply(text)
    known = {_name(tool) for tool in request.body.get("tools", [])}
    for call in reply.calls:
        expect(call.name in known, f"a tool that is not in the request: {call}")
        expect(reply.is_cut or call.values() is not None, f"arguments that are no JSON object: {call}")
    _compare(reply, request)


def _compare(reply: Recorded, request: Request) -> None:
    promise(reply.calls or reply.text or reply.reasoning or reply.is_cut, "the answer is empty")
    if request.calls is None:
        return
    names = [call.name for call in reply.calls]
    if request.calls:
        expect(any(name in request.calls for name in names), f"no call of {' or '.join(request.calls)}, but {reply}")
    else:
        expect(not names, f"a call in place of a text: {reply}")


def _body(request: Request, peer: Peer) -> dict[str, Any]:
    """The request for this model, with a short answer."""
    body, most = {**request.body, "model": peer.model}, _MAX_TOKENS + peer.spare
    limit = next((name for name in _LIMITS if name in body), "max_output_tokens" if "input" in body else "max_tokens")
    return {**body, limit: min(body.get(limit) or most, most)}


def _name(tool: dict[str, Any]) -> str:
    return str(tool.get("function", tool).get("name", tool.get("type", "")))

"""The gateway and the model that are verified, through OpenAI's client library. Each reply is checked for its form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from gateway.commands.verify.outcome import GatewayFault, ModelFault, promise

if TYPE_CHECKING:
    from openai import OpenAI

Message = Mapping[str, Any]
MAX_TOKENS = 160  # of one answer
_EXACT = 16  # a limit up to this is what a check is about
_SPARE = 2000
_NOT_NOW = (401, 403, 429, 503)  # a wrong key, a full queue, a model that is loading or too slow
_MOST_WAIT_S = 180.0  # for one request, until a gateway that answers 429 or 503 can take it
_FINISHES = ("stop", "length", "tool_calls")


class ToolCall(NamedTuple):
    name: str
    arguments: str

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"

    def values(self) -> dict[str, Any] | None:
        """The arguments; None: they are no JSON object."""
        try:
            found = json.loads(self.arguments)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


class Reply(Struct, kw_only=True):
    """Args:
    usage: (prompt, completion, total) in tokens; None: the reply has none.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = []
    finish: str = ""
    usage: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.calls)) or repr(self.text)
        return f"{shown} ({self.finish})"


class Peer:
    """Args:
    model: its name in requests.
    context: tokens; 0: the server does not say.
    capabilities: of the model; None: the server does not say.
    """

    #: More tokens for an answer of a model that reasons first.
    spare = 0

    def __init__(
        self, client: OpenAI, model: str, *, context: int = 0, capabilities: tuple[str, ...] | None = None
    ) -> None:
        import httpx  # before the first stream: one that is collected during this import reports an error

        self._whole = httpx.Response
        self._client, self.model, self.context, self.capabilities = client, model, context, capabilities

    @property
    def makes_text(self) -> bool:
        """False for a model that makes only embeddings or scores."""
        return self.capabilities is None or not {"embeddings", "rerank"} & {*self.capabilities}

    def find_spare(self) -> None:
        """Allow more tokens if the model reasons before it answers."""
        try:
            self.spare = _SPARE if self.chat("Hello!", max_tokens=_EXACT).reasoning else 0
        except (GatewayFault, ModelFault):  # the checks name it
            self.spare = 0

    def chat(self, messages: str | list[Message], **options: Any) -> Reply:
        """One answer. Raises GatewayFault if it has an error, or not the form of the API."""
        with _no_error():
            answer: Any = self._create(**self._request(messages, options))
        promise(len(answer.choices or []) == 1, f"{len(answer.choices or [])} choices in place of one")
        (choice,) = answer.choices
        calls = choice.message.tool_calls or []
        reply = Reply(
            text=choice.message.content or "",
            reasoning=_reasoning(choice.message),
            calls=[ToolCall(call.function.name, call.function.arguments) for call in calls],
            finish=str(choice.finish_reason),
            usage=_usage(answer.usage),
        )
        promise(len({call.id for call in calls if call.id}) == len(calls), "two calls have one id, or none")
        return _formed(reply)

    def stream(self, messages: str | list[Message], **options: Any) -> Reply:
        """The same from a stream: its pieces joined."""
        reply, calls, finishes = Reply(calls=[]), dict[int, list[str]](), list[str]()
        for chunk in self._chunks(messages, options):
            reply.usage = _usage(chunk.usage) or reply.usage
            for choice in chunk.choices:
                reply.text += choice.delta.content or ""
                reply.reasoning += _reasoning(choice.delta)
                finishes += [choice.finish_reason] if choice.finish_reason else []
                for call in choice.delta.tool_calls or []:
                    parts = calls.setdefault(call.index, ["", ""])
                    parts[0] += call.function.name or ""
                    parts[1] += call.function.arguments or ""
        promise(len(finishes) == 1, f"a stream has {len(finishes)} finish reasons in place of one")
        reply.finish = finishes[0]
        reply.calls = [ToolCall(*calls[index]) for index in sorted(calls)]
        promise(sorted(calls) == list(range(len(calls))), f"calls of a stream have the numbers {sorted(calls)}")
        return _formed(reply)

    def cancel(self, messages: str | list[Message], pieces: int, **options: Any) -> None:
        """Begin a stream and leave it after some pieces."""
        with _no_error():
            stream: Any = self._create(**self._request(messages, options), stream=True)
            with stream:
                for _ in zip(range(pieces), stream, strict=False):
                    pass

    def refusal(self, messages: str | list[Message], **options: Any) -> tuple[int, str]:
        """Status and code of the error that the request must get; 200: it has none."""
        from openai import APIStatusError

        try:
            self._create(**self._request(messages, options))
        except APIStatusError as error:
            if error.status_code in _NOT_NOW:
                raise
            return error.status_code, str(error.code)
        return 200, ""

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, str]:
        """Status and body of a request as it is, to a path below /v1."""
        from openai import APIStatusError

        try:
            reply = _when_possible(lambda: self._client.post(path, body=dict(body), cast_to=self._whole))
        except APIStatusError as error:
            if error.status_code in _NOT_NOW:
                raise
            return error.status_code, error.response.text
        return reply.status_code, reply.text

    def _chunks(self, messages: str | list[Message], options: Mapping[str, Any]) -> Iterator[Any]:
        usage = {"include_usage": True}
        with _no_error():
            stream: Any = self._create(**self._request(messages, options), stream=True, stream_options=usage)
            yield from stream

    def _create(self, **request: Any) -> Any:
        return _when_possible(lambda: self._client.chat.completions.create(**request))

    def _request(self, messages: str | list[Message], options: Mapping[str, Any]) -> Any:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        limit = options.get("max_tokens", MAX_TOKENS)
        limit += self.spare if limit > _EXACT else 0
        return {"model": self.model, "messages": messages, "seed": 1, **options, "max_tokens": limit}


def _when_possible(send: Callable[[], Any]) -> Any:
    """What `send` returns. If the gateway names a time after which it can answer (a breaker is open), send then."""
    from openai import APIStatusError

    waited_s = 0.0
    while True:
        try:
            return send()
        except APIStatusError as error:
            text = error.response.headers.get("retry-after", "")
            wait_s = float(text) if text.isdecimal() else 0.0
            if error.status_code not in _NOT_NOW or not 0 < wait_s <= _MOST_WAIT_S - waited_s:
                raise
        sleep(wait_s)
        waited_s += wait_s


@contextmanager
def _no_error() -> Iterator[None]:
    """An error is a fault of the gateway, except that nothing answers, or not now: then no check can be made."""
    from openai import APIConnectionError, APIError

    try:
        yield
    except APIConnectionError:
        raise
    except APIError as error:
        if getattr(error, "status_code", 0) in _NOT_NOW:
            raise
        if error.code == "context_length_exceeded":
            raise ModelFault(f"the context is too short: {error.message}") from error
        raise GatewayFault(f"the request got an error: {error.message}") from error


def _formed(reply: Reply) -> Reply:
    promise(reply.finish in _FINISHES, f"the finish reason is {reply.finish!r}")
    promise(bool(reply.calls) or reply.finish != "tool_calls", "finish reason 'tool_calls' without a call")
    promise(not reply.calls or reply.finish != "stop", "calls with the finish reason 'stop'")
    promise(all(call.name for call in reply.calls), "a call has no name")
    return reply


def _reasoning(message: Any) -> str:
    return getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None) or ""


def _usage(usage: Any) -> tuple[int, int, int] | None:
    return (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) if usage else None

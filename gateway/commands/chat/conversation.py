"""The messages of a conversation, and one answer as a stream."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from gateway.commands.client import gateway_error
from gateway.errors import UpstreamFailed

if TYPE_CHECKING:
    from openai import OpenAI, Stream
    from openai.types.chat import ChatCompletionChunk


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def for_terminal(text: str) -> str:
    """Text of a model with its control characters escaped: a terminal would obey them."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class Piece(Struct, frozen=True):
    """A part of an answer as it arrives."""

    kind: Literal["text", "reasoning"]
    text: str


class Answer(Struct, kw_only=True):
    """An answer, also an unfinished one. Times in seconds since the request was sent; 0: no token arrived."""

    text: str = ""
    tokens: int | None = None  # None: the end of the answer did not arrive
    first_s: float = 0.0
    last_s: float = 0.0
    note: str = ""  # why the answer is not complete: one sentence for a person

    @property
    def figures(self) -> str:
        """ "first token 268 ms, 22.4 tokens/s, 10 tokens"."""
        if not self.tokens or not self.first_s:
            return ""
        parts = [f"first token {self.first_s * 1000:.0f} ms"]
        if self.tokens > 1 and self.last_s > self.first_s:
            parts.append(f"{(self.tokens - 1) / (self.last_s - self.first_s):.1f} tokens/s")
        return ", ".join([*parts, f"{self.tokens} token{'' if self.tokens == 1 else 's'}"])


class Conversation:
    """The messages so far, the model and the limit of an answer."""

    def __init__(self, client: OpenAI, model: str, *, system: str = "", max_tokens: int) -> None:
        self.model = model
        self.system = system
        self.max_tokens = max_tokens
        self._client = client
        self.turns: list[dict[str, str]] = []

    def clear(self) -> None:
        """Start a new conversation. The system prompt stays."""
        self.turns = []

    def ask(self, question: str, answer: Answer) -> Generator[Piece, None, None]:
        """Send a question, and yield the answer as it arrives.

        Close the generator to stop the answer: the gateway then stops the device. What arrived is a part of the
        conversation; a question without an answer is not.

        Args:
            answer: a new one; it is filled while the answer arrives.

        Raises:
            GatewayError: the gateway refused the question or ended.
        """
        from openai import APIConnectionError, APIError

        sent = time.monotonic()
        try:
            with self._open(question) as stream:
                for piece in self._pieces(stream, answer):
                    answer.last_s = time.monotonic() - sent
                    answer.first_s = answer.first_s or answer.last_s
                    yield piece
        except APIConnectionError as error:
            if answer.first_s:
                raise UpstreamFailed("The gateway ended before its answer was complete.") from None
            raise gateway_error(error) from None
        except APIError as error:
            raise gateway_error(error) from None
        finally:
            if answer.text:
                self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]

    def _open(self, question: str) -> Stream[ChatCompletionChunk]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages: list[Any] = [*system, *self.turns, {"role": "user", "content": question}]
        return self._client.chat.completions.create(
            model=self.model,
            messages=messages,
            max_tokens=self.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )

    def _pieces(self, stream: Stream[ChatCompletionChunk], answer: Answer) -> Iterator[Piece]:
        reason = None
        for chunk in stream:
            if chunk.usage:
                answer.tokens = chunk.usage.completion_tokens
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
                if thought := getattr(choice.delta, "reasoning_content", None):
                    yield Piece("reasoning", thought)
                if choice.delta.content:
                    answer.text += choice.delta.content
                    yield Piece("text", choice.delta.content)
        if reason == "length":
            answer.note = self._cut_note(answer.tokens)

    def _cut_note(self, tokens: int | None) -> str:
        if tokens is not None and tokens < self.max_tokens:
            return f"the answer was cut after {tokens} tokens: the context of the model is full"
        return f"the answer was cut at {self.max_tokens} tokens; --max-tokens allows more"

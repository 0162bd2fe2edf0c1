"""One request to one server. What comes before its first content is held back, so that another server can still answer.
Of a reply that is not streamed, everything can be held back.

async with Attempt(name, target, question, watchdog_s) as attempt:
    await attempt.first()
    usage = await attempt.rest(meter, emit)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Self

import httpcore
import msgspec
from msgspec import Struct

from gateway.engines.base import Emit
from gateway.engines.upstream import refusals
from gateway.engines.upstream.chunks import MALFORMED, Chunk, read_chunk
from gateway.engines.upstream.client import Body, LargeBodyRefused, header, start_of_body
from gateway.engines.upstream.connection.stream import AnswerTooLarge
from gateway.engines.upstream.events import ChunkTranslator, most_tokens
from gateway.engines.upstream.sse import EventParser, EventTooLarge
from gateway.engines.upstream.targets.target import Target
from gateway.generation import ChoiceFinished, Event, Generation, Meter, Started, Usage

_ERROR_BYTES = 64 * 1024
# Of one answer, and more for each token that it may have. Lines: also empty ones and comments.
_ANSWER_BYTES, _TOKEN_BYTES = 16 * 1024 * 1024, 16 * 1024
_ANSWER_LINES, _TOKEN_LINES = 100_000, 8


class Question(Struct, frozen=True, kw_only=True):
    """What every server gets: the request without the model's name, which differs between servers."""

    generation: Generation
    path: str
    fields: dict[str, Any]
    hops: tuple[str, ...]

    def body(self, model: str) -> bytes:
        return msgspec.json.encode({"model": model, "stream": True, **self.fields})


class Attempt:
    """Args:
    name: of the model.
    watchdog_s: the longest silence of the server, in seconds.
    meter: of this attempt.
    gives_up: another server can answer, so it does not wait for one that hangs (targets/silence.py).
    """

    def __init__(
        self,
        name: str,
        target: Target,
        question: Question,
        watchdog_s: float,
        meter: Meter,
        *,
        gives_up: bool = False,
    ) -> None:
        self.target = target
        self._gives_up = gives_up
        self._name, self._question, self._watchdog_s = name, question, watchdog_s
        self._meter = meter
        self._translator = ChunkTranslator(question.generation, meter)
        self._held: list[Event] = []
        self._chunks = self._answer()
        self._stack = AsyncExitStack()
        self._clock = asyncio.get_running_loop().time
        self._lines, self._until = -1, 0.0  # that are complete; when the next one is too late

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self.target.counted())
        self._stack.push_async_callback(self._chunks.aclose)
        self._meter.call_started()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.call_ended()
        await self._stack.aclose()

    async def first(self) -> None:
        """Return when the first content is there, or the end of an answer without content. Raises GatewayError."""
        with _mapped(self._name):
            async with self.target.silence.limited() if self._gives_up else nullcontext():
                await self._until_content()

    async def _until_content(self) -> None:
        async for chunk in self._chunks:
            self._held.extend(self._translator.take(chunk))
            self._meter.call_started()
            if any(not isinstance(event, Started | ChoiceFinished) for event in self._held):
                return
        self._translator.check_complete()

    async def hold(self, meter: Meter, emit: Emit) -> None:
        """After `first`: hold back the whole answer too. Raises GatewayError: another server can still answer.

        Args:
            meter: as in `rest`.
        """
        self._hand_over(meter)
        emit.begin()
        with _mapped(self._name):
            async for chunk in self._chunks:
                self._held.extend(self._translator.take(chunk))
                meter.call_started()
            self._translator.check_complete()

    async def rest(self, meter: Meter, emit: Emit) -> Usage:
        """Hand over what is held back, then the rest of the answer as it comes. Without `first`: the whole answer.

        Args:
            meter: of the request. It gets what this attempt has measured, and is written from now on.

        Raises:
            GatewayError: the answer ends here.
        """
        self._hand_over(meter)
        for event in self._held:
            emit(event)
            await emit.drain()
        self._held.clear()
        try:
            with _mapped(self._name):
                async for chunk in self._chunks:
                    for event in self._translator.take(chunk):
                        emit(event)
                    await emit.drain()
                    meter.call_started()
                return self._translator.finish()
        finally:
            meter.call_ended()

    def _hand_over(self, meter: Meter) -> None:
        own = self._meter
        if meter is not own:
            meter.device_s, meter.prompt_s, meter.first_token_at = own.device_s, own.prompt_s, own.first_token_at
            meter.completion_tokens, meter.call_since = own.completion_tokens, own.call_since
            self._translator.meter = self._meter = meter

    async def _answer(self) -> AsyncGenerator[Chunk, None]:
        """The chunks up to `[DONE]`, or to the end without it."""
        generation, target = self._question.generation, self.target
        most = most_tokens(generation)
        parser = EventParser(_ANSWER_LINES + _TOKEN_LINES * most)
        body = self._question.body(target.server.upstream_model)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._watchdog_s):
                post = target.client.post(
                    self._question.path, body, self._question.hops, truncation=generation.truncation
                )
                response = await stack.enter_async_context(post)
                await self._check(response)
            received = Body(response, _ANSWER_BYTES + _TOKEN_BYTES * most)
            while (found := await self._next(received, parser)) is not None:
                for data in found:
                    if data.startswith(b"[DONE]"):
                        return
                    yield self._chunk(data)

    async def _next(self, received: Body, parser: EventParser) -> Iterator[bytes] | None:
        """The data of the events that came next; None after the end."""
        if received.is_over:
            return None
        if parser.lines > self._lines:  # a line that does not end in time is silence, however it drips
            self._lines, self._until = parser.lines, self._clock() + self._watchdog_s
        piece = await received.next(self._until)
        if not piece:
            return parser.end()
        self.target.silence.heard()
        return parser.feed(piece)

    def _chunk(self, data: bytes) -> Chunk:
        chunk = read_chunk(data)
        if chunk.error:
            detail = refusals.error_detail({"error": chunk.error}, self.target.server.api_key)
            raise refusals.failure(self._name, detail, "no reason")
        return chunk

    async def _check(self, response: httpcore.Response) -> None:
        """Raise the error for an answer that is not a stream."""
        encoded = header(response, "content-encoding") not in ("", "identity")
        is_json = header(response, "content-type").startswith("application/json")
        if 200 <= response.status < 300 and not encoded and not is_json:
            return
        body = b"" if encoded else await start_of_body(response, _ERROR_BYTES)
        detail = refusals.error_detail(body, self.target.server.api_key)
        if not 200 <= response.status < 300:
            raise refusals.refusal(self._name, response.status, detail, header(response, "retry-after"))
        if detail:
            raise refusals.failure(self._name, detail, "no reason")
        raise refusals.malformed(self._name)


@contextmanager
def _mapped(name: str) -> Iterator[None]:
    """The one mapper for what the connection and the server's bytes raise."""
    try:
        yield
    except (AnswerTooLarge, EventTooLarge) as error:
        raise refusals.too_large(name) from error
    except MALFORMED as error:
        raise refusals.malformed(name) from error
    except LargeBodyRefused as error:
        raise refusals.cut_off(name) from error
    except httpcore.ConnectTimeout as error:
        raise refusals.unreachable(name) from error
    except TimeoutError as error:
        raise refusals.silent(name) from error
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
        raise refusals.unreachable(name) from error
    except (OSError, httpcore.UnsupportedProtocol) as error:
        raise refusals.unreachable(name) from error

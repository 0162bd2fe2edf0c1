"""A model on another server with OpenAI's API: llama.cpp, Ollama, vLLM, LM Studio, OpenAI itself.

1. The server is not trusted. What it sends is read within bounds (client.py, sse.py) and its types are checked
   (chunks.py). Whatever it does is one error at most.
2. Nothing is retried here: the lane knows the deadline of the client, and if there is a fallback.
3. `device_s` is the time that the gateway waits for the server: the gateway cannot measure that server's device.
   `Started` comes with the first chunk, when the prompt is not counted yet: its count is 0. The usage has the count.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any

import httpcore
import msgspec

from gateway.config.hosts import server_url
from gateway.config.tables import UpstreamModel
from gateway.engines.base import Emit, EngineStatus, Prepared, State
from gateway.engines.context import check_logprobs, text_prompt
from gateway.engines.upstream import refusals
from gateway.engines.upstream.body import chat_body, completion_body
from gateway.engines.upstream.chunks import MALFORMED, read_chunk
from gateway.engines.upstream.client import AnswerTooLarge, HttpClient, LargeBodyRefused, header, pieces, start_of_body
from gateway.engines.upstream.events import ChunkTranslator, most_tokens
from gateway.engines.upstream.sse import EventParser, EventTooLarge
from gateway.errors import ConfigError, ModelNotReady
from gateway.generation import Chat, Generation, Meter, Route, Usage

_ERROR_BYTES = 64 * 1024
# Of one answer, and more for each token that it may have. Lines: also empty ones and comments.
_ANSWER_BYTES, _TOKEN_BYTES = 16 * 1024 * 1024, 16 * 1024
_ANSWER_LINES, _TOKEN_LINES = 100_000, 8


class UpstreamEngine:
    """A model on another server. Implements Engine.

    Args:
        name: of the model; also its name on the server, unless `model.upstream_model` is set.

    Raises:
        ConfigError: `model.url` is missing or not a URL.
    """

    text_tools = None
    takes_turns = False  # `max_sequences` limits the load of the server

    def __init__(self, name: str, model: UpstreamModel) -> None:
        try:
            url = server_url(model.url)
        except ValueError as error:
            raise ConfigError(f"models.{name}.url: an upstream model needs the server's URL, {error}") from None
        self._name, self._model = name, model
        self._route = Route(target=url.netloc)
        self._client = HttpClient(url, model.api_key)
        self._state: State = "loading"
        self._hop = f"npu-gateway-{secrets.token_hex(8)}"

    @property
    def status(self) -> EngineStatus:
        length = self._model.context_length
        return EngineStatus(state=self._state, runtime="upstream", device="remote", context_length=length)

    async def start(self) -> None:
        """Make the HTTP client. Sends nothing: a server that is down shows in the requests and in their breaker."""
        await self._client.open()
        self._state = "ready"

    async def aclose(self) -> None:
        self._state = "closed"
        await self._client.aclose()

    async def lost(self) -> str:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never  # a server that is down shows in its requests

    def breaker_opened(self) -> None: ...

    def free_cache(self) -> None: ...

    async def prepare(self, generation: Generation) -> Prepared:
        text_prompt(self._name, generation)
        check_logprobs(generation, most_tokens(generation))
        if self._hop in generation.hops:  # found before the queue, in which it would wait for itself
            raise refusals.loop(self._name)
        return Prepared(generation=generation)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        if self._state != "ready":
            raise ModelNotReady(f"The model '{self._name}' is not ready ({self._state}).", retry_after_s=1)
        generation = prepared.generation
        path, body = self._request(generation)
        translator = ChunkTranslator(generation, meter)
        meter.route = self._route
        meter.call_started()
        try:
            with _mapped(self._name):
                async with aclosing(self._answer(path, body, generation)) as answer:
                    async for data in answer:
                        self._take(data, translator, emit)
                        await emit.drain()
                        meter.call_started()
                return translator.finish()
        finally:
            meter.call_ended()

    def _take(self, data: bytes, translator: ChunkTranslator, emit: Emit) -> None:
        chunk = read_chunk(data)
        if chunk.error:
            raise refusals.failure(
                self._name, refusals.error_detail({"error": chunk.error}, self._model.api_key), "no reason"
            )
        for event in translator.take(chunk):
            emit(event)

    def _request(self, generation: Generation) -> tuple[str, bytes]:
        """Path and body."""
        body: dict[str, Any] = {"model": self._model.upstream_model or self._name, "stream": True}
        prompt = text_prompt(self._name, generation)
        if isinstance(prompt, Chat):
            return "/chat/completions", msgspec.json.encode(body | chat_body(generation, prompt))
        return "/completions", msgspec.json.encode(body | completion_body(generation, prompt))

    async def _answer(self, path: str, body: bytes, generation: Generation) -> AsyncGenerator[bytes, None]:
        """The data of each event up to `[DONE]`, or to the end without it."""
        most = most_tokens(generation)
        hops = (*generation.hops, self._hop)
        parser = EventParser(_ANSWER_LINES + _TOKEN_LINES * most)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self._model.watchdog_s):
                post = self._client.post(path, body, hops, truncation=generation.truncation)
                response = await stack.enter_async_context(post)
                await self._check(response)
            received = await stack.enter_async_context(aclosing(pieces(response, _ANSWER_BYTES + _TOKEN_BYTES * most)))
            async with aclosing(self._data(received, parser)) as answer:
                async for data in answer:
                    if data.startswith(b"[DONE]"):
                        return
                    yield data

    async def _data(self, received: AsyncIterator[bytes], parser: EventParser) -> AsyncGenerator[bytes, None]:
        """The data of each event. A line that does not end in time is silence, however it drips."""
        clock, lines, until = asyncio.get_running_loop().time, -1, 0.0
        while True:
            if parser.lines > lines:
                lines, until = parser.lines, clock() + self._model.watchdog_s
            async with asyncio.timeout_at(until):
                piece = await anext(received, None)
            if piece is None:
                break
            for data in parser.feed(piece):
                yield data
        for data in parser.end():
            yield data

    async def _check(self, response: httpcore.Response) -> None:
        """Raise the error for an answer that is not a stream."""
        encoded = header(response, "content-encoding") not in ("", "identity")
        is_json = header(response, "content-type").startswith("application/json")
        if 200 <= response.status < 300 and not encoded and not is_json:
            return
        body = b"" if encoded else await start_of_body(response, _ERROR_BYTES)
        detail = refusals.error_detail(body, self._model.api_key)
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

"""A model on another server with OpenAI's API: llama.cpp, Ollama, vLLM, LM Studio, OpenAI itself.

1. Most of a body is sent as `extra_body`: local servers have fields that the typed methods of the SDK do not have.
2. Nothing is retried here: the lane knows the deadline of the client, and if there is a fallback.
3. `device_s` is the time that the gateway waits for the server: the gateway cannot measure that server's device.
   `Started` comes with the first chunk, when the prompt is not counted yet: its count is 0. The usage has the count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import openai
from openai import AsyncOpenAI, AsyncStream

from gateway.config.tables import UpstreamModel
from gateway.engines.base import Emit, EngineStatus, Prepared, State
from gateway.engines.upstream.body import chat_body, completion_body
from gateway.engines.upstream.events import ChunkTranslator
from gateway.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    UpstreamFailed,
)
from gateway.generation import Chat, Generation, Meter, Usage

_CONNECT_S = 10.0
_MALFORMED = (ValueError, TypeError, AttributeError)  # raised for a chunk that is not JSON or has wrong types
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "maximum context length")


class UpstreamEngine:
    """A model on another server. Implements Engine.

    Args:
        name: of the model; also its name on the server, unless `model.upstream_model` is set.

    Raises:
        ConfigError: `model.url` is missing.
    """

    text_tools = None

    def __init__(self, name: str, model: UpstreamModel) -> None:
        if not model.url.startswith(("http://", "https://")):
            raise ConfigError(f"models.{name}.url: an upstream model needs the server's URL, like http://host:8080/v1")
        self._name, self._model = name, model
        self._client: AsyncOpenAI | None = None
        self._state: State = "loading"

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(state=self._state, device="remote", context_length=self._model.context_length)

    async def start(self) -> None:
        """Make the HTTP client. Sends nothing: a server that is down shows in the requests and in their breaker."""
        omitted = {name: openai.Omit() for name in ("OpenAI-Organization", "OpenAI-Project")}  # of the environment
        self._client = AsyncOpenAI(
            base_url=self._model.url,
            api_key=self._model.api_key or "none",
            default_headers=cast(Any, omitted),
            max_retries=0,
            timeout=openai.Timeout(self._model.watchdog_s, connect=_CONNECT_S),
        )
        self._state = "ready"

    async def aclose(self) -> None:
        self._state = "closed"
        if self._client is not None:
            await self._client.close()

    async def lost(self) -> str:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never  # a server that is down shows in its requests

    async def prepare(self, generation: Generation) -> Prepared:
        return Prepared(generation=generation)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        if self._client is None or self._state != "ready":
            raise ModelNotReady(f"The model '{self._name}' is not ready ({self._state}).", retry_after_s=1)
        generation = prepared.generation
        translator = ChunkTranslator(generation.n, meter)
        chunks: AsyncStream[Any] | None = None
        meter.call_started()
        try:
            chunks = await self._send(self._client, generation)
            async for chunk in chunks:
                for event in translator.take(chunk):
                    emit(event)
                await emit.drain()
                meter.call_started()
            return translator.finish()
        except (openai.OpenAIError, *_MALFORMED) as error:
            raise gateway_error(error, self._name) from error
        finally:
            meter.call_ended()
            if chunks is not None:
                await chunks.close()

    async def _send(self, client: AsyncOpenAI, generation: Generation) -> AsyncStream[Any]:
        """The chunks of the server's answer."""
        model = self._model.upstream_model or self._name
        if isinstance(generation.prompt, Chat):
            body = chat_body(generation, generation.prompt)
            messages = body.pop("messages")
            return await client.chat.completions.create(model=model, messages=messages, stream=True, extra_body=body)
        body = completion_body(generation, generation.prompt)
        return await client.completions.create(model=model, prompt=body.pop("prompt"), stream=True, extra_body=body)


def gateway_error(error: Exception, name: str) -> GatewayError:
    """The one mapper for the exceptions of the library."""
    kind = next((kind for kind in type(error).__mro__ if kind in _ERRORS), None)
    return _broken(error, name) if kind is None else _ERRORS[kind](error, name)


def _broken(error: Exception, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' answered with something that is not OpenAI's API.")


def _failed(error: openai.APIError, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' failed: {error.message}", retry_after_s=_retry_after_s(error))


def _refused(error: openai.APIError, name: str) -> GatewayError:
    """The server found a mistake in the request: the client must correct it."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body["message"] if isinstance(body.get("message"), str) else error.message
    text = f"{error.code} {error.type} {message}"
    kind = ContextLengthExceeded if any(words in text for words in _TOO_LONG) else InvalidRequest
    return kind(message, param=error.param)


def _key(error: openai.APIStatusError, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' does not accept the key that is configured for it.")


def _not_found(error: openai.APIStatusError, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' does not have that model or endpoint.")


def _busy(error: openai.APIStatusError, name: str) -> GatewayError:
    return QueueFull(f"The server behind '{name}' is busy.", retry_after_s=_retry_after_s(error) or 1.0)


def _unreachable(error: openai.APIConnectionError, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' cannot be reached, or broke the connection.")


def _timeout(error: openai.APITimeoutError, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' was silent for too long.")


def _unexpected(error: Exception, name: str) -> GatewayError:
    return EngineFailed(f"The client library of '{name}' failed: {type(error).__name__}.")


def _retry_after_s(error: openai.APIError) -> float | None:
    """The server's own `Retry-After`, when it is a number of seconds."""
    value = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    try:
        return max(0.0, float(value))
    except ValueError:
        return None


#: Every exception class that the library exports. A test fails when a new version has another one.
_ERRORS: dict[type, Callable[[Any, str], GatewayError]] = {
    openai.BadRequestError: _refused,
    openai.UnprocessableEntityError: _refused,
    openai.AuthenticationError: _key,
    openai.OAuthError: _key,
    openai.PermissionDeniedError: _key,
    openai.NotFoundError: _not_found,
    openai.ConflictError: _failed,
    openai.RateLimitError: _busy,
    openai.InternalServerError: _failed,
    openai.APIStatusError: _failed,
    openai.APITimeoutError: _timeout,
    openai.APIConnectionError: _unreachable,
    openai.APIResponseValidationError: _broken,
    openai.APIError: _failed,
    openai.LengthFinishReasonError: _unexpected,  # this and the next: parts of the library that are not used here
    openai.ContentFilterFinishReasonError: _unexpected,
    openai.InvalidWebhookSignatureError: _unexpected,
    openai.WebSocketConnectionClosedError: _unexpected,
    openai.WebSocketQueueFullError: _unexpected,
    openai.OpenAIError: _unexpected,
}

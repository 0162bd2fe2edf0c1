"""A model on another server that speaks OpenAI's API: llama.cpp, Ollama, vLLM, LM Studio, OpenAI itself.

1. Nearly all of a body goes out as `extra_body`: local servers know fields that the SDK's typed methods do not.
2. Nothing is retried here: the lane knows how long the client will wait, and whether there is a fallback.
3. `device_s` is the time spent waiting for the server; more cannot be known of its device from here. `Started` comes
   with the server's first chunk, before the prompt's tokens are counted: its count is 0, that of `Finished` is true.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import openai
from openai import AsyncOpenAI, AsyncStream

from gateway.config import UpstreamModel
from gateway.engines.base import EngineStatus, Plan, State
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
from gateway.generation import Chat, Event, Generation, Meter

_CONNECT_S = 10.0
_MALFORMED = (ValueError, TypeError, AttributeError)  # a frame that is not JSON, or not the JSON one expects
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error", "maximum context length")


class UpstreamEngine:
    """Args:
    name: of the model; also its name upstream unless `model.upstream_model` says another.
    clock: seconds, monotonic.

    Raises ConfigError when `model.url` is missing.
    """

    def __init__(self, name: str, model: UpstreamModel, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not model.url.startswith(("http://", "https://")):
            raise ConfigError(f"models.{name}.url: an upstream model needs the server's URL, like http://host:8080/v1")
        self._name, self._model, self._clock = name, model, clock
        self._client: AsyncOpenAI | None = None
        self._state: State = "loading"

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(state=self._state, device="remote", context_length=self._model.context_length)

    async def start(self) -> None:
        """Nothing is asked of the server yet: one that is down shows in its requests, and in their breaker."""
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

    async def prepare(self, generation: Generation, meter: Meter) -> Plan | None:
        return None

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event, None]:
        if self._client is None or self._state != "ready":
            raise ModelNotReady(f"The model '{self._name}' is not ready ({self._state}).", retry_after_s=1)
        answer = ChunkTranslator(generation, meter, self._clock)
        chunks: AsyncStream[Any] | None = None
        try:
            chunks = await self._ask(self._client, generation)
            async for chunk in chunks:
                for event in answer.take(chunk):
                    yield event
            for event in answer.finish():
                yield event
        except (openai.OpenAIError, *_MALFORMED) as error:
            raise gateway_error(error, self._name) from error
        finally:
            meter.call_since = None
            if chunks is not None:
                await chunks.close()

    async def _ask(self, client: AsyncOpenAI, generation: Generation) -> AsyncStream[Any]:
        """The server's answer, chunk by chunk."""
        model = self._model.upstream_model or self._name
        if isinstance(generation.prompt, Chat):
            body = chat_body(generation, generation.prompt)
            messages = body.pop("messages")
            return await client.chat.completions.create(model=model, messages=messages, stream=True, extra_body=body)
        body = completion_body(generation, generation.prompt)
        return await client.completions.create(model=model, prompt=body.pop("prompt"), stream=True, extra_body=body)


def gateway_error(error: Exception, name: str) -> GatewayError:
    """The one way in for the library's exceptions: what the client of the gateway is told."""
    kind = next((kind for kind in type(error).__mro__ if kind in _ERRORS), None)
    return _broken(error, name) if kind is None else _ERRORS[kind](error, name)


def _broken(error: Exception, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' answered with something that is not OpenAI's API.")


def _failed(error: openai.APIError, name: str) -> GatewayError:
    return UpstreamFailed(f"The server behind '{name}' failed: {error.message}", retry_after_s=_retry_after_s(error))


def _refused(error: openai.APIError, name: str) -> GatewayError:
    """The server found fault with the request: so it is the client's to put right."""
    body = error.body if isinstance(error.body, dict) else {}
    message = body["message"] if isinstance(body.get("message"), str) else error.message
    said = f"{error.code} {error.type} {message}"
    kind = ContextLengthExceeded if any(words in said for words in _TOO_LONG) else InvalidRequest
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


#: Every exception class that the library exports; a test fails when it grows another.
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
    openai.LengthFinishReasonError: _unexpected,  # from here on: of parts of the library that are not used here
    openai.ContentFilterFinishReasonError: _unexpected,
    openai.InvalidWebhookSignatureError: _unexpected,
    openai.WebSocketConnectionClosedError: _unexpected,
    openai.WebSocketQueueFullError: _unexpected,
    openai.OpenAIError: _unexpected,
}

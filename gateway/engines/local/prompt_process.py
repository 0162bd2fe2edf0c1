"""The processes that prepare the prompts of one model, and which request goes to which.

A short request goes to a process that is always there. If that takes more than half a second of processor time, or if
the request is long, it goes to a second process, which starts when it is needed and ends when it is idle. So no request
delays the short requests of others for long. In each process, clients take turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import msgspec

from gateway.engines.local.turns import Turns
from gateway.errors import (
    BundleError,
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotReady,
    Unavailable,
    UnsupportedParameter,
)
from gateway.generation import Chat, Text
from gateway.prompts.messages import (
    Decode,
    Encode,
    EncodeInputs,
    Opened,
    Predict,
    Refused,
    Reply,
    Request,
    Setup,
    Tokenize,
    decode_reply,
    encode_request,
)
from gateway.sandbox.process import Sandbox, SandboxUnavailable
from gateway.sandbox.running import BUSY_RETRY_S, Limits, SandboxLate, SandboxLimit
from gateway.text.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

_TASK = "gateway.prompts.encoder:open_task"
LIMITS = Limits(cpu_s=5, wall_s=60, resident_bytes=512 << 20, address_bytes=1 << 30)
_SHORT_CPU_S = 0.5
_SHORT_BYTES = 64 * 1024  # of a request
_IDLE_S = 60.0
#: What the process can refuse a request with, by name.
_REFUSALS = {kind.__name__: kind for kind in (InvalidRequest, ContextLengthExceeded, UnsupportedParameter)}


class PromptProcess:
    """For the event loop.

    Args:
        setup: what the processes read.
    """

    def __init__(self, setup: Setup) -> None:
        self._model = setup.model
        plain = msgspec.to_builtins(setup)
        self._short = _SharedSandbox(Sandbox(_TASK, lambda: plain, LIMITS._replace(cpu_s=_SHORT_CPU_S)))
        self._long = _SharedSandbox(Sandbox(_TASK, lambda: plain, LIMITS, is_background=True))
        self._long_requests = 0  # that wait or run
        self._idle: asyncio.Task[None] | None = None  # only if there are none
        self._is_closed = False
        #: The token that ends an answer by the tokenizer's configuration, after `start`. None: it names none.
        self.end_id: int | None = None

    def begin(self) -> None:
        """Start the process for short requests, and do not wait for it. Raises SandboxUnavailable."""
        self._short.sandbox.begin()

    def end(self) -> None:
        """End the processes, before a request. Blocks until they are gone."""
        for lane in (self._short, self._long):
            lane.sandbox.close()

    async def start(self) -> Vocabulary:
        """Start the process for short requests. Raises BundleError."""
        try:
            reply = decode_reply(await asyncio.to_thread(self._short.sandbox.start))
        except SandboxUnavailable as error:
            raise BundleError(f"The text files of '{self._model}' cannot be read: {error}.") from None
        if isinstance(reply, Refused):
            raise BundleError(reply.message)
        assert isinstance(reply, Opened)
        self.end_id = reply.end_id
        return Vocabulary(reply.table)

    async def ask(self, request: Request, client: str, param: str) -> Reply:
        """The reply, which is not Refused. Raises a GatewayError.

        Args:
            client: requests of different clients take turns.
            param: the field of the request with the text, for messages.
        """
        try:
            reply = await self._exchange(request, client)
        except SandboxLate as error:
            raise Unavailable(
                f"The machine is too busy: preparing the text {error}. Try again.", retry_after_s=BUSY_RETRY_S
            ) from None
        except SandboxLimit as error:
            _log.warning("%s: a prompt was refused: preparing it %s", self._model, error)
            raise InvalidRequest(
                f"The text is too long or too complex: preparing it {error}. Send a shorter text.", param=param
            ) from None
        except SandboxUnavailable as error:
            raise ModelNotReady(f"The process that prepares prompts is not ready: {error}.", retry_after_s=1) from None
        except UnicodeEncodeError:
            raise InvalidRequest("The text contains characters that are not valid Unicode.", param=param) from None
        except RecursionError:
            raise InvalidRequest("The request is nested too deeply.", param=param) from None
        if isinstance(reply, Refused):
            self._raise(reply)
        return reply

    async def aclose(self) -> None:
        """End the processes. Running requests end with ModelNotReady. No process and no task is left."""
        self._is_closed = True
        self._stay()
        await asyncio.gather(*(asyncio.to_thread(lane.sandbox.close) for lane in (self._short, self._long)))

    async def _exchange(self, request: Request, client: str) -> Reply:
        if (reply := await self._try_short(request, client)) is not None:
            return reply
        self._long_requests += 1
        self._stay()
        try:  # the message is made in its turn, so that requests that wait need no memory for it
            return await self._long.ask(client, lambda: encode_request(request))
        finally:
            self._long_requests -= 1
            self._rest_later()

    async def _try_short(self, request: Request, client: str) -> Reply | None:
        """None: the request is for the other process."""
        if _units(request) > _SHORT_BYTES:
            return None
        message = encode_request(request)
        if len(message) <= _SHORT_BYTES:
            with suppress(SandboxLimit):
                return await self._short.ask(client, lambda: message)
        return None

    def _rest_later(self) -> None:
        """End the process for long requests if no request needs it for a time."""
        if not self._long_requests and not self._is_closed:
            self._idle = asyncio.create_task(self._end_when_idle())

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(_IDLE_S)
        async with self._long.turns.turn(""):
            await asyncio.to_thread(self._long.sandbox.end)

    def _raise(self, refused: Refused) -> NoReturn:
        if refused.trace:
            _log.warning("%s: a prompt could not be prepared:\n%s", self._model, refused.trace)
        if error := _REFUSALS.get(refused.kind):
            raise error(refused.message, param=refused.param)
        raise ModelNotReady(refused.message, retry_after_s=1)  # the bundle has changed on disk


def characters_of(prompt: Chat | Text) -> int:
    """The characters that every template renders. The prompt process checks the rendered text."""
    if isinstance(prompt, Text):
        return len(prompt.text) + len(prompt.suffix or "")
    return sum(len(message.content or "") for message in prompt.messages)


def _units(request: Request) -> int:
    """Characters or token ids of a request, without those of its tools and template variables."""
    match request:
        case Encode(prompt=prompt, prediction=prediction):
            return characters_of(prompt) + len(prediction)
        case EncodeInputs(texts=texts, pairs=pairs):
            return sum(map(len, texts)) + sum(len(query) + len(document) for query, document in pairs)
        case Predict(prediction=text) | Tokenize(text=text):
            return len(text)
        case Decode(ids=ids):
            return len(ids)


class _SharedSandbox:
    """One process, and the order of its requests."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox, self.turns = sandbox, Turns()

    async def ask(self, client: str, message: Callable[[], bytes]) -> Reply:
        """A request that is cancelled while it waits is skipped. One that runs keeps its turn until it ends."""

        def exchange() -> Reply:
            reply: Reply = decode_reply(self.sandbox.request(message()))
            return reply

        async with self.turns.turn(client):
            running = asyncio.ensure_future(asyncio.to_thread(exchange))
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.gather(running, return_exceptions=True)
                raise

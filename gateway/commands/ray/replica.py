"""Runs requests on a gateway inside of this process. Without Ray, so that a test can do the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from gateway.commands.ray.call import Call
from gateway.server.target import with_any_target

T = TypeVar("T")

Messages = list[Any]  # of ASGI, from the application
Receive = Callable[[], Awaitable[Any]]


class Replica:
    """A gateway, the ASGI application `app`, whose lifespan has begun."""

    def __init__(self, app: Any) -> None:
        self._app = with_any_target(app)
        self._running: set[asyncio.Task[None]] = set()

    async def forward(self, call: Call) -> AsyncGenerator[Messages, None]:
        """The messages of the answer. What is there at the same time is one item.

        To close it is the disconnect of the client: the gateway then ends the request.
        """
        sent: asyncio.Queue[Any] = asyncio.Queue()
        gone = asyncio.Event()
        scope = {**call.scope, "state": {}, "extensions": {}}
        task = asyncio.create_task(self._run(scope, _receive_of(call, gone), sent))
        self._running.add(task)
        task.add_done_callback(lambda _: sent.put_nowait(None))
        task.add_done_callback(self._running.discard)
        try:
            while messages := await _all_of(sent):
                yield messages
            task.result()
        finally:
            gone.set()

    async def ended(self) -> None:
        """Wait for the end of the requests whose client is gone."""
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, scope: Any, receive: Receive, sent: asyncio.Queue[Any]) -> None:
        await self._app(scope, receive, sent.put)


def _receive_of(call: Call, gone: asyncio.Event) -> Receive:
    is_read = False

    async def receive() -> Any:
        nonlocal is_read
        if is_read:
            await gone.wait()
            return {"type": "http.disconnect"}
        is_read = True
        return {"type": "http.request", "body": call.body, "more_body": False}

    return receive


async def _all_of(queue: asyncio.Queue[Any]) -> Messages:
    """Every message that is there, at least one. Empty at the end of the answer."""
    found = [await queue.get()]
    while found[-1] is not None and not queue.empty():
        found.append(queue.get_nowait())
    if found[-1] is None:
        found.pop()
        if found:
            queue.put_nowait(None)
    return found


class Held(Generic[T]):
    """A context that one task enters and leaves. Ray makes and deletes a replica in two different tasks."""

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._context = context
        self._is_over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def enter(self) -> T:
        """The value of the context. Raises what entering it raises."""
        entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(entered))
        either: list[asyncio.Future[Any]] = [entered, self._task]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not entered.done():
            self._task.result()
        return entered.result()

    async def leave(self) -> None:
        """No effect if it was not entered."""
        self._is_over.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _hold(self, entered: asyncio.Future[T]) -> None:
        async with self._context as value:
            entered.set_result(value)
            await self._is_over.wait()

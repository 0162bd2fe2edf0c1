"""Looks for changes of the configuration while the gateway runs: for new models, and with `server.watch` for all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from functools import partial

from msgspec.structs import replace

from gateway.config.tables import Config
from gateway.errors import BundleError, Conflict, GatewayError
from gateway.lanes.reload.plan import Reloaded, make_plan
from gateway.lanes.reload.presence import Presence
from gateway.lanes.reload.reloader import InThread, Reloader, Source
from gateway.lanes.router import Router

_INTERVAL_S = 5.0
_SETTLE_S = 1.0  # an editor can write a file in several steps: it counts when it has stayed the same for this time

_log = logging.getLogger(__name__)


class Watcher:
    """Args:
    presence: it looks only while someone is connected.
    sleep: waits for the given number of seconds.
    in_thread: calls a function that blocks.
    """

    def __init__(
        self,
        reloader: Reloader,
        source: Source,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        in_thread: InThread = asyncio.to_thread,
        presence: Presence | None = None,
    ) -> None:
        self._reloader = reloader
        self._source = source
        self._sleep = sleep
        self._in_thread = in_thread
        self._presence = presence or Presence()
        self._state: Hashable = None  # of the files, at the last look
        self._logged: set[str] = set()  # what was written to the log for this state
        self._is_waiting = False  # for a bundle, or for the correction of a mistake

    async def run(self, router: Router) -> None:
        """Runs until it is cancelled."""
        while True:
            if not self._presence.is_here:
                self._presence.rests()
                await self._presence.someone()
            self._reloader.found.clear()
            try:
                await self._look()
            except GatewayError as error:
                self._is_waiting = True
                self._note(f"the configuration was changed and is not applied: {error.message}")
            except Exception as error:
                self._is_waiting = True
                self._note("the configuration could not be read again", error)
            self._presence.looked()
            await self._sleep(_INTERVAL_S)

    async def _look(self) -> None:
        state = await self._in_thread(self._source.state)
        is_first = self._state is None
        if state != self._state:
            if self._applies_all and not is_first and await self._changes(state):
                return
            self._state = state
            self._logged.clear()
        elif not self._is_waiting:
            return
        self._is_waiting = False
        if self._applies_all:
            self._note_changes(await self._reloader.apply())
        else:
            await self._add_models()

    @property
    def _applies_all(self) -> bool:
        return self._reloader.running.server.watch

    async def _changes(self, state: Hashable) -> bool:
        """True if a program writes the file at this moment."""
        await self._sleep(_SETTLE_S)
        return await self._in_thread(self._source.state) != state

    async def _add_models(self) -> None:
        fresh = await self._in_thread(self._source.read)
        for name in fresh.models:
            if name not in self._reloader.running.models:
                await self._add(name)
        left = make_plan(self._reloader.running, fresh).report
        self._note_left(replace(left, added=[]))

    async def _add(self, name: str) -> None:
        try:
            await self._reloader.apply(partial(_with_model, name))
        except BundleError as error:
            self._is_waiting = True
            self._note(error.message)
        except GatewayError as error:  # the next models are still added
            self._note(f"{name} is not added: {error.message}")
        else:
            self._reloader.found.append(name)
            _log.info("%s is new in the configuration; it is loaded", name)

    def _note_changes(self, reloaded: Reloaded) -> None:
        if reloaded != Reloaded(restart=reloaded.restart):
            _log.info("the configuration was changed; %s", "; ".join(reloaded.lines))
        elif reloaded.restart:
            self._note(f"the configuration was changed; {reloaded.lines[0]}")

    def _note_left(self, left: Reloaded) -> None:
        if left != Reloaded(restart=left.restart):
            self._note(f"the configuration was changed; `npu-gateway reload` applies it: {'; '.join(left.lines)}")
        elif left.restart:
            self._note(f"the configuration was changed; {left.lines[0]}")

    def _note(self, line: str, error: Exception | None = None) -> None:
        """Log a warning, once for each state of the files."""
        if line not in self._logged:
            self._logged.add(line)
            _log.warning("%s", line, exc_info=error)


def _with_model(name: str, running: Config, fresh: Config) -> Config:
    """The configuration that runs, with one model more. Raises Conflict for a name of another model."""
    if (model := fresh.models.get(name)) is None:  # it was removed at this moment
        return running
    owners = {each: owner for owner, table in running.models.items() for each in (owner, *table.aliases)}
    if taken := next((each for each in (name, *model.aliases) if each in owners), None):
        raise Conflict(f"{taken} already names the model {owners[taken]}.")
    return replace(running, models={**running.models, name: model})

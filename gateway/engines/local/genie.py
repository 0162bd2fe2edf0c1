"""The engine for bundles in the layout of Qualcomm's Genie, for example those that Snapdragon laptops come with.

Prompts and events are the same as in the local engine. The worker process runs Genie and not our own token loop. A
request that needs something that Genie cannot do is refused with the name of the parameter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec.structs import replace

from gateway.config.tables import GenieModel
from gateway.engines.base import EngineStatus
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import Entry
from gateway.errors import UnsupportedParameter
from gateway.generation import Generation
from gateway.prompts.messages import Encoded
from gateway.sampling import unsupported
from gateway.worker.entry import genie_worker


class GenieEngine(LocalEngine):
    """A Genie bundle, run by a worker process, one request at a time. Implements Engine.

    Args: see LocalEngine. `model.path` is the bundle's folder or its configuration.
    """

    takes_turns = False

    def __init__(
        self,
        name: str,
        model: GenieModel,
        models_dir: Path,
        *,
        entry: Entry = genie_worker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name, model, models_dir, entry=entry, clock=clock)

    @property
    def status(self) -> EngineStatus:
        return replace(super().status, runtime="genie", capabilities=("chat", "tools"))

    def _check_supported(self, generation: Generation, prompt: Encoded) -> None:
        for param in _unsupported(generation, prompt):
            raise UnsupportedParameter(
                f"The model '{self._name}' runs in Genie, which does not support '{param}'. Remove it.", param=param
            )


def _unsupported(generation: Generation, prompt: Encoded) -> Iterator[str]:
    """The request's parameters that Genie does not support."""
    yield from unsupported(generation.sampling, "genie")
    used = {
        "n": generation.n > 1,
        "logprobs": generation.logprobs is not None or generation.prompt_logprobs,
        "min_tokens": generation.min_tokens > 0,
        "ignore_eos": generation.ignore_eos,
        "prediction": generation.prediction is not None,
    }
    yield from (param for param, is_used in used.items() if is_used)
    if prompt.grammar is not None:
        yield prompt.grammar.param

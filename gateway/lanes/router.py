"""From the model name in a request to the lanes that can answer it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace

from gateway.config.tables import Config, Defaults
from gateway.config.value import nearest
from gateway.embedding import EmbeddingAnswer, EmbeddingRequest
from gateway.engines.base import Capability, EngineStatus, TextTools
from gateway.errors import LONGEST_QUOTE, InvalidRequest, ModelNotFound, quote
from gateway.generation import Generation
from gateway.lanes.answer import RoutedAnswer
from gateway.lanes.embed import embedding_answer, generation_of, makes_same_vectors, needs, wrong_kind
from gateway.lanes.lane import Lane
from gateway.lanes.status import LaneStatus
from gateway.monitoring.observers import Observers

BACKGROUND_SUFFIX = ":background"
LATEST = ":latest"


class Named(Struct, frozen=True):
    """The model that a name means. `name`: that name as the config spells it."""

    model: str
    name: str
    background: bool = False


class ModelInfo(Struct, frozen=True, kw_only=True):
    """One entry of the model list."""

    name: str
    aliases: tuple[str, ...]
    status: LaneStatus


class Router:
    """All lanes of the gateway.

    Args:
        lanes: one for each of `config.models`, by name, not started.
        clock: seconds, monotonic; the lanes' clock.
        observers: get the record of every request that ends.
    """

    def __init__(
        self,
        config: Config,
        lanes: Mapping[str, Lane],
        clock: Callable[[], float] = time.monotonic,
        observers: Observers | None = None,
    ) -> None:
        self.config = config
        self.observers = observers or Observers()
        self.lanes = dict(lanes)
        self.replaced: set[Lane] = set()  # lanes that finish what they have begun
        self.is_closed = False
        self._clock = clock
        self._read_names()

    async def start(self) -> None:
        """Begin to load all models in the background. `tried` waits for them."""
        for lane in self.lanes.values():
            lane.start()

    def update(self, config: Config, lanes: Mapping[str, Lane]) -> None:
        """Route to these lanes, one for each of `config.models`. The caller starts the new ones and ends the others."""
        self.lanes = dict(lanes)
        self.config = replace(config, models={name: lane.config for name, lane in lanes.items()})
        self._read_names()

    def _read_names(self) -> None:
        aliases = {alias: name for name, model in self.config.models.items() for alias in model.aliases}
        self._names = aliases | {name: name for name in self.lanes}
        self._spellings = _spellings(self._names)

    def replace(self, lane: Lane) -> Lane:
        """Let `lane`, which is loaded or loads on demand, answer in place of the lane with its name. Returns that lane.

        The old lane finishes what it has begun. The caller closes it when it is idle, and removes it from `replaced`.
        """
        old = self.lanes[lane.name]
        self.config = replace(self.config, models={**self.config.models, lane.name: lane.config})
        self.lanes[lane.name] = old.successor = lane
        old.claim.is_leaving = True
        self.replaced.add(old)
        lane.start()
        return old

    async def tried(self) -> None:
        """Wait until each model is ready, has failed to load once, or is to be loaded on demand."""
        await asyncio.gather(*(lane.settled() for lane in self.lanes.values()))

    async def aclose(self) -> None:
        """End every request and every engine."""
        self.is_closed = True
        await asyncio.gather(*(lane.aclose() for lane in (*self.lanes.values(), *self.replaced)))

    def lookup(self, name: str | None) -> Named:
        """The model of a name, an alias, `NAME:latest` or `NAME:background`, in any case: clients change the case, and
        Ollama's append `:latest`. Raises ModelNotFound with the list of models.
        """
        wanted = name or ""
        named = self._named(wanted)
        if named is None or not self._may_use(named.model):
            error = self._not_found(wanted)
            error.requested = wanted
            raise error
        return named

    def _named(self, wanted: str) -> Named | None:
        if wanted in self._names:
            return Named(self._names[wanted], wanted)
        base = wanted.removesuffix(BACKGROUND_SUFFIX)
        known = self._known(base)
        if known is None:
            known = self.config.default_model
        return None if known is None else Named(self._names.get(known, known), known, background=base != wanted)

    def _may_use(self, model: str) -> bool:
        """Whether the request may use it; see KeyRouter."""
        return True

    def _not_found(self, wanted: str) -> ModelNotFound:
        what = f"The model {quote(wanted)} does not exist" if wanted else "The request names no model"
        hint = nearest(wanted, self._names) if len(wanted) <= LONGEST_QUOTE else ""
        return ModelNotFound(
            f"{what}{f'{hint} There' if hint else '; there'} is {', '.join(self.lanes)}.", param="model"
        )

    def name_for(self, name: str | None, *needs: Capability) -> str:
        """The model for a request that can name none. `needs`: what it must be able to do, the best first.

        Without a name: the default model if it can do it, else the only model that can. "": several can, or none.
        """
        default = self.known(self.config.default_model or "")
        for need in () if name else needs:
            able = self._names_with(need)
            if default is not None and default in able:
                return default
            if len(able) == 1:
                return able[0]
        return name or ""

    def defaults_for(self, name: str | None) -> Defaults:
        """The defaults of a request for `name`."""
        route = self.lookup(name)
        recommended = self.lanes[route.model].speed[0].sampling
        return self.config.defaults_for(route.model, recommended, alias=route.name)

    async def open(self, generation: Generation) -> RoutedAnswer:
        """The answer to a request, when a device has begun with it. Raises every refusal. Close the answer."""
        answer = self.route(generation)
        try:
            await answer.open()
        except BaseException:
            await answer.aclose()
            raise
        return answer

    def route(self, generation: Generation) -> RoutedAnswer:
        """The answer to a request, not begun; the first read begins it. Close the answer.

        Raises ModelNotFound, and InvalidRequest for embeddings of a model that generates text, or the reverse.
        """
        route = self.lookup(generation.model)
        lanes = self._able(route.model, needs(generation))
        longest_s = self.config.server.timeout_s
        return RoutedAnswer(
            replace(generation, background=generation.background or route.background),
            lanes,
            longest_s if generation.timeout_s is None else min(generation.timeout_s, longest_s),
            self._clock,
            self.config.server.log_prompts,
            self.observers,
        )

    async def embed(self, request: EmbeddingRequest) -> EmbeddingAnswer:
        """Embed texts or score pairs. Cancel the task to cancel the request. Raises every refusal, as `open` does."""
        return await embedding_answer(self.route(generation_of(request)))

    def models(self) -> list[ModelInfo]:
        """All models, in the order of the configuration."""
        return [self.model(name) for name in self.lanes if self._may_use(name)]

    def model(self, name: str) -> ModelInfo:
        """One model, by name or alias. Raises ModelNotFound."""
        lane = self.lanes[self.lookup(name).model]
        return ModelInfo(name=lane.name, aliases=tuple(lane.config.aliases), status=lane.status)

    def speed(self, name: str) -> tuple[EngineStatus, float | None]:
        """The status of the model's engine, and its tokens per second. Raises ModelNotFound."""
        return self.lanes[self.lookup(name).model].speed

    def has_tools(self, name: str | None) -> bool:
        """False for a model that has its tokenizer on another server."""
        return self.lanes[self.lookup(name).model].engine.text_tools is not None

    @asynccontextmanager
    async def tools(self, name: str | None, *, may_load: bool = True) -> AsyncGenerator[TextTools]:
        """The model's tokenizer and template, of a model that stays loaded meanwhile.

        Args:
            may_load: load a model that was unloaded; else its tools raise ModelNotReady.
        Raises InvalidRequest for a model that has them on another server.
        """
        lane = self.lanes[self.lookup(name).model]
        async with lane.text_tools(may_load=may_load) as tools:
            if tools is None:
                raise InvalidRequest(f"The tokenizer of {lane.name} is not on this machine.", param="model")
            yield tools

    def status(self) -> list[LaneStatus]:
        """The state of all lanes now, for `/readyz`."""
        return [lane.status for lane in self.lanes.values()]

    def known(self, name: str) -> str | None:
        """The model with this name or alias; None if there is none, also with a default model."""
        found = self._known(name)
        return None if found is None else self._names[found]

    @property
    def requests(self) -> int:
        """The number of requests that have not ended."""
        return sum(len(lane.uses) for lane in (*self.lanes.values(), *self.replaced))

    def _known(self, name: str) -> str | None:
        """The name of the config that `name` means; the exact spelling first."""
        exact = (name, name.removesuffix(LATEST))
        found = next((each for each in exact if each in self._names), None)
        return found or next(filter(None, (self._spellings.get(each.casefold()) for each in exact)), None)

    def _able(self, name: str, need: Capability) -> list[Lane]:
        """The lanes to try for a request that needs `need`. A lane without a bundle can be of any kind."""
        chain = self._chain(name)
        able = [lane for lane in chain if need in (lane.engine.status.capabilities or (need,))]
        if chain[0] not in able:
            others = self._names_with(need)
            if need == "rerank":
                others += self._names_with("embeddings")
            raise wrong_kind(name, need, others)
        return [lane for lane in able if need != "embeddings" or makes_same_vectors(chain[0], lane)]

    def _names_with(self, capability: Capability) -> list[str]:
        """The models that are known to have it."""
        able = [name for name, lane in self.lanes.items() if capability in lane.engine.status.capabilities]
        return [name for name in able if self._may_use(name)]

    def _chain(self, name: str) -> list[Lane]:
        """The lanes to try, in order: the model, its fallback, and so on."""
        chain: list[Lane] = []
        step: str | None = name
        while step in self.lanes and self.lanes[step] not in chain:  # a fallback that came later can be refused
            chain.append(self.lanes[step])
            step = self.lanes[step].config.fallback
        return [lane for lane in chain if self._may_use(lane.name)]


def _spellings(names: Iterable[str]) -> dict[str, str]:
    """Each name by its spelling without case; the first one of those that differ only in case."""
    return {name.casefold(): name for name in reversed(list(names))}

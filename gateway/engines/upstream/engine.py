"""A model on another server with OpenAI's API: llama.cpp, Ollama, vLLM, LM Studio, OpenAI itself. Or on several.

1. The server is not trusted. What it sends is read within bounds (client.py, sse.py) and its types are checked
   (chunks.py). Whatever it does is one error at most.
2. With one server, nothing is retried here: the lane knows the deadline of the client, and if there is a fallback. With
   several, a request moves to the next one (targets/pool.py) as long as its client has no content: of a reply that
   is not streamed, up to its end.
3. `device_s` is the time that the gateway waits for the server that answers: the gateway cannot measure that server's
   device. `Started` comes with the first chunk, when the prompt is not counted yet: its count is 0. The usage has it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from gateway.config.tables import UpstreamModel
from gateway.config.upstream import missing_key, servers_of
from gateway.engines.base import Emit, EngineStatus, Prepared, State
from gateway.engines.context import check_logprobs, text_prompt
from gateway.engines.upstream import refusals
from gateway.engines.upstream.attempt import Attempt, Question
from gateway.engines.upstream.body import chat_body, completion_body
from gateway.engines.upstream.events import most_tokens
from gateway.engines.upstream.hedge import Hedging, Race
from gateway.engines.upstream.prefixes import blocks_of
from gateway.engines.upstream.targets.pool import Pool, clients_error, moves_on
from gateway.engines.upstream.targets.target import Target
from gateway.engines.upstream.trial import hello, try_out
from gateway.errors import ConfigError, GatewayError, ModelNotReady, UpstreamFailed, UpstreamRefused
from gateway.generation import Chat, Generation, Meter, Route, RouteReason, Usage


class UpstreamEngine:
    """A model on another server, or on several. Implements Engine.

    Args:
        name: of the model; also its name on the server, unless `upstream_model` is set.

    Raises:
        ConfigError: the URL of a server is missing or not a URL, or its key is not there.
    """

    text_tools = None
    takes_turns = False  # `max_sequences` limits the load of the servers

    def __init__(self, name: str, model: UpstreamModel) -> None:
        self._name, self._model = name, model
        self.targets = _targets(name, model)
        self._pool = Pool(name, self.targets, self._trial) if len(self.targets) > 1 else None
        self.hedging = Hedging(self.targets) if model.hedge else None
        self._state: State = "loading"
        self._is_chat = True  # the last request
        self._hop = f"npu-gateway-{secrets.token_hex(8)}"

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(
            state=self._state,
            runtime="upstream",
            device="remote",
            context_length=self._model.context_length,
            targets=self._pool.status if self._pool else (),
        )

    async def start(self) -> None:
        """Make the HTTP clients. One server is sent nothing: if it is down, requests and their breaker show it."""
        await asyncio.gather(*(target.client.open() for target in self.targets))
        if self._pool:
            self._pool.start()
        self._state = "ready"

    async def aclose(self) -> None:
        self._state = "closed"
        if self._pool:
            await self._pool.aclose()
        for target in self.targets:
            await target.aclose()

    async def lost(self) -> str:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never  # a server that is down shows in its requests

    def breaker_opened(self) -> None: ...

    def free_cache(self) -> None: ...

    async def prepare(self, generation: Generation) -> Prepared:
        text_prompt(self._name, generation)
        check_logprobs(generation, most_tokens(generation))
        if self._hop in generation.hops:  # found before the queue, in which it would wait for itself
            raise refusals.loop(self._name, UpstreamRefused if self._pool else UpstreamFailed)
        return Prepared(generation=generation)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        if self._state != "ready":
            raise ModelNotReady(f"The model '{self._name}' is not ready ({self._state}).", retry_after_s=1)
        question = self._question(prepared.generation)
        if self._pool:
            return await self._from_pool(self._pool, question, meter, emit)
        meter.route = Route(target=self.targets[0].address)
        async with self._attempt(self.targets[0], question, meter) as attempt:
            return await attempt.rest(meter, emit)

    async def _from_pool(self, pool: Pool, question: Question, meter: Meter, emit: Emit) -> Usage:
        """The answer of the first target that gives one."""
        prompt = text_prompt(self._name, question.generation)
        self._is_chat = isinstance(prompt, Chat)
        blocks = blocks_of(prompt, question.generation.owner)
        failures: dict[Target, GatewayError] = {}
        suspects: dict[Target, GatewayError] = {}  # the failures since the last content of a target
        while chosen := pool.choose(blocks, failures):
            target, choice = chosen
            reason = "failover" if failures else choice.reason
            meter.route = Route(target=target.address, reason=reason, attempts=len(failures) + 1)
            async with self._race(pool, blocks, target, failures, question, meter) as race:
                attempt = await race.winner()
                for failed, error in race.errors.items():
                    failures[failed.target] = suspects[failed.target] = error
                    pool.failed(failed.target, error)
                meter.route = _route(race, attempt or race.first, failures, reason)
                if attempt is not None:
                    self._judge(pool, race, attempt, suspects)
                    suspects.clear()
                    broken = await _broken(attempt, question, meter, emit)
                    if broken is None:
                        return await self._rest(pool, attempt, meter, emit)
                    failures[attempt.target] = broken
                    pool.blame(attempt.target, broken)
                elif not all(map(moves_on, race.errors.values())):
                    break
        raise clients_error([*failures.values()])

    def _race(
        self,
        pool: Pool,
        blocks: Sequence[int],
        target: Target,
        tried: Collection[Target],
        question: Question,
        meter: Meter,
    ) -> Race[Attempt]:
        """The attempt at `target`, and with `hedge` one at another target if it is late."""
        hedging = self.hedging

        def attempt(target: Target, *before: Target) -> Attempt:
            gives_up = pool.has_usable(target, *before, *tried)
            return self._attempt(target, question, Meter(clock=meter.clock), gives_up=gives_up)

        def second() -> Attempt | None:
            if hedging is None or not (target.health.is_out or hedging.has_credit()):
                return None
            other = pool.second(blocks, target, tried)
            if other is None:
                return None
            if not target.health.is_out:  # else it is no hedge: the request leaves that target
                hedging.spend()
            return attempt(other, target)

        if hedging is not None:
            hedging.earn()

        late_s = None if hedging is None else partial(hedging.late_s, target)
        return Race(attempt(target), late_s, second, lambda error: not moves_on(error))

    def _judge(self, pool: Pool, race: Race[Attempt], winner: Attempt, failures: Mapping[Target, GatewayError]) -> None:
        """Learn from the first content of `winner`."""
        pool.answered(winner.target, failures)
        if self.hedging is None or not race.waited_s:
            return
        self.hedging.answered(winner.target, race.waited_s[winner])
        if race.lost is not None and self.hedging.lost(race.lost.target, race.waited_s[race.lost]):
            pool.blame(race.lost.target, refusals.silent(self._name))

    async def _rest(self, pool: Pool, attempt: Attempt, meter: Meter, emit: Emit) -> Usage:
        try:
            usage = await attempt.rest(meter, emit)
        except UpstreamFailed as error:
            pool.blame(attempt.target, error)
            if pool.is_down:
                raise
            raise refusals.uncounted(error) from error
        attempt.target.health.completed()
        return usage

    async def _trial(self, target: Target) -> None:
        question = self._question(hello(self._name, is_chat=self._is_chat))
        await try_out(self._name, self._attempt(target, question, Meter()), self._model.watchdog_s)

    def _attempt(self, target: Target, question: Question, meter: Meter, *, gives_up: bool = False) -> Attempt:
        return Attempt(self._name, target, question, self._model.watchdog_s, meter, gives_up=gives_up)

    def _question(self, generation: Generation) -> Question:
        prompt = text_prompt(self._name, generation)
        if isinstance(prompt, Chat):
            path, fields = "/chat/completions", chat_body(generation, prompt)
        else:
            path, fields = "/completions", completion_body(generation, prompt)
        return Question(generation=generation, path=path, fields=fields, hops=(*generation.hops, self._hop))


async def _broken(attempt: Attempt, question: Question, meter: Meter, emit: Emit) -> UpstreamFailed | None:
    """Hold back an answer that is not streamed, up to its end. The error of one that breaks, of which its client has
    nothing: another target, or the fallback, can begin it again."""
    if not question.generation.is_whole:
        return None
    try:
        await attempt.hold(meter, emit)
    except UpstreamFailed as error:
        meter.begin_again()
        return error
    return None


def _route(race: Race[Attempt], last: Attempt, failures: Collection[Target], reason: RouteReason) -> Route:
    """After a race. `last`: the attempt that answers, or one that failed."""
    return Route(
        target=last.target.address,
        reason=reason if last is race.first else "hedge",
        attempts=len(failures) + (last.target not in failures) + (race.lost is not None),
        hedged=race.is_hedged,
    )


def _targets(name: str, model: UpstreamModel) -> list[Target]:
    """Raises ConfigError."""
    servers = servers_of(name, model)
    for server in servers:
        if problem := missing_key(server):
            raise ConfigError(f"models.{name}.{problem}")
    try:
        return [Target(number, server, is_only=len(servers) == 1) for number, server in enumerate(servers, 1)]
    except ValueError as error:
        raise ConfigError(f"models.{name}.url: an upstream model needs the server's URL, {error}") from None

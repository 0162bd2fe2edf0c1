"""An engine without a model. A script says what it answers, when, and how it fails.

For tests of faults that a device does not show on demand, for demonstrations, and to replay the published timing of a
chip. It behaves like the local engine: one device makes one call at a time for all requests in turn, a watchdog ends a
hung call, and then all running requests fail. Its device is always reported as `simulated`.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from msgspec.structs import replace

from gateway.activity import Activity
from gateway.config.tables import Fault, ScriptedModel
from gateway.dialects.choose import choose_dialect
from gateway.dialects.plain import PlainParser
from gateway.embedding import Inputs
from gateway.engines.base import Emit, EngineStatus, Plan, Prepared, State
from gateway.engines.choice import ChoiceText
from gateway.engines.context import answer_reserve, max_answer_tokens, text_prompt
from gateway.engines.scripted.embedding import CAPABILITIES, count_tokens, embed
from gateway.engines.scripted.script import Timing, error_of, timing
from gateway.errors import EngineFailed, GatewayError, ModelNotReady
from gateway.generation import Chat, ChoiceFinished, Generation, Meter, Prompt, Started, Text, TokenLogprob, Usage
from gateway.prompts.history import Histories

_TOKEN = re.compile(r"\s*\S+|\s+$")


class ScriptedPrepared(Prepared, frozen=True, kw_only=True):
    plan: Plan
    inputs: Inputs | None = None
    counts: tuple[int, ...] = ()  # tokens of each of them


class ScriptedEngine:
    """Implements Engine.

    Args:
        name: of the model, for messages.
        model: its table in the configuration.
        clock: seconds, monotonic.
        sleep: waits for a number of seconds of `clock`. Tests pass both, so that they do not wait.
    """

    text_tools = None
    takes_turns = False

    def __init__(
        self,
        name: str,
        model: ScriptedModel,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._name, self._model = name, model
        self._script = model.script
        self._dialect = choose_dialect(model.dialect, "")
        self._clock, self._sleep = clock, sleep
        self._activity = Activity(clock=clock)
        self._slots = asyncio.Semaphore(model.max_sequences)
        self._device = asyncio.Lock()  # one call at a time, in the order of the requests for it
        self._requests = 0
        self._restarts = 0
        self._ready_at = math.inf  # the time on the clock from which requests are answered
        self._failure = ""  # why the load failed
        self._closed = False

    @property
    def status(self) -> EngineStatus:
        state, detail = self._state()
        return EngineStatus(
            runtime="scripted",
            state=state,
            detail=detail,
            device="simulated",
            context_length=self._context_length,
            restarts=self._restarts,
            load_s=self._script.load_s,
            peak_bytes=self._script.memory_mb * 1_000_000,
            capabilities=CAPABILITIES[self._script.kind],
        )

    async def start(self) -> None:
        await self._sleep(self._script.load_s)
        if self._script.load_error:
            self._failure = self._script.load_error
            raise EngineFailed(self._failure)
        self._ready_at = self._clock()

    async def lost(self) -> str:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never  # after a hung call it is ready again when `load_s` has passed

    def breaker_opened(self) -> None: ...

    def free_cache(self) -> None: ...

    async def aclose(self) -> None:
        self._closed = True

    async def prepare(self, generation: Generation) -> ScriptedPrepared:
        if isinstance(inputs := generation.prompt, Inputs):
            return self._prepare_inputs(generation, inputs)
        prompt, dropped = self._fitted(generation)
        prompt_tokens = self._count(prompt)
        plan = Plan(
            prompt_tokens=prompt_tokens,
            cached_tokens=min(self._script.cached_tokens, max(0, prompt_tokens - 1)),
            chunk_width=timing(self._model, self._requests).chunk_width,
            max_tokens=max_answer_tokens(generation, prompt_tokens, self._context_length, dropped),
            dropped_messages=dropped,
        )
        return ScriptedPrepared(generation=generation, plan=plan)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        assert isinstance(prepared, ScriptedPrepared)
        self._check_ready()
        number, self._requests = self._requests, self._requests + 1
        since_s = self._activity.device_s
        async with self._slots:
            self._check_ready()
            run = _Run(self, number, prepared, meter, since_s)
            await (run.run(emit) if prepared.inputs is None else run.embed(prepared.inputs, emit))
        return Usage(
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=meter.cached_tokens,
            completion_tokens=meter.completion_tokens,
        )

    def _prepare_inputs(self, generation: Generation, inputs: Inputs) -> ScriptedPrepared:
        if self._script.kind == "chat":
            text_prompt(self._name, generation)
        counts = count_tokens(inputs, self._context_length)
        width = timing(self._model, self._requests).chunk_width
        cut = sum(count == self._context_length for count in counts) if inputs.truncate else 0
        plan = Plan(prompt_tokens=sum(counts), chunk_width=width, max_tokens=1, cut_texts=cut)
        return ScriptedPrepared(generation=generation, plan=plan, inputs=inputs, counts=counts)

    async def call(self, meter: Meter, seconds: float, faults: Sequence[Fault], restarts: int) -> None:
        """One device call for a request that began when the engine had been restarted `restarts` times."""
        seconds += sum(fault.stall_s for fault in faults)
        try:
            async with self._device:
                self._check_alive(restarts)
                meter.call_started()
                try:
                    with self._activity.device_call() as device_call:
                        await self._sleep(min(seconds, self._model.watchdog_s))
                finally:
                    meter.device_s += device_call.seconds
                if seconds > self._model.watchdog_s and not self._closed:
                    self._restart()
                self._check_alive(restarts)
        finally:
            meter.call_ended()
        for error in filter(None, map(error_of, faults)):
            self._raise(error)

    def _raise(self, error: GatewayError) -> NoReturn:
        if isinstance(error, EngineFailed):
            with self._activity.device_call():
                raise error
        raise error

    @property
    def _context_length(self) -> int:
        return self._model.context_length or self._script.context_length

    def _fitted(self, generation: Generation) -> tuple[Prompt, int]:
        """The prompt without the messages that do not fit if the request allows that, and their number."""
        chat, reserve = text_prompt(self._name, generation), answer_reserve(generation, self._context_length)
        if reserve is None or not isinstance(chat, Chat):
            return chat, 0
        histories, limit = Histories(chat.messages, step=self._context_length), self._context_length - reserve

        def shortened(number: int) -> Chat:
            return replace(chat, messages=histories.messages(number))

        number = histories.longest(lambda number: self._count(shortened(number)) <= limit, self._context_length)
        return shortened(number), histories.dropped(number)

    def _count(self, prompt: Prompt) -> int:
        """The number of prompt tokens: from the script, else the number of words."""
        if self._script.prompt_tokens is not None:
            return self._script.prompt_tokens
        match prompt:
            case Chat(messages=messages):
                return sum(len(_TOKEN.findall(message.content or "")) for message in messages)
            case Text(text=text):
                return len(_TOKEN.findall(text))
            case _:
                return len(prompt.ids)

    def _state(self) -> tuple[State, str]:
        if self._closed:
            return "closed", ""
        if self._clock() >= self._ready_at:
            return "ready", f"simulates {self._model.simulate}" if self._model.simulate else "answers from a script"
        if self._restarts:
            return "restarting", "a device call hung"
        return ("failed", self._failure) if self._failure else ("loading", "")

    def _check_ready(self) -> None:
        state, _ = self._state()
        if state != "ready":
            raise ModelNotReady(f"The model '{self._name}' is not ready: {state}.", retry_after_s=1.0)

    def _check_alive(self, restarts: int) -> None:
        if self._closed:
            raise EngineFailed(f"The model '{self._name}' was closed.")
        if self._restarts != restarts:
            self._raise(EngineFailed(f"A device call of '{self._name}' hung and its worker was restarted; try again."))

    def _restart(self) -> None:
        self._restarts += 1
        self._ready_at = self._clock() + self._script.load_s


class _Run:
    """One running request: its device calls in order, its choices in parallel."""

    def __init__(
        self, engine: ScriptedEngine, number: int, prepared: ScriptedPrepared, meter: Meter, since_s: float
    ) -> None:
        script, generation = engine._script, prepared.generation
        self._engine, self._number, self._generation, self._meter = engine, number, generation, meter
        self._restarts, self._since_s = engine._restarts, since_s
        self._timing: Timing = timing(engine._model, number)
        self._faults = [fault for fault in script.faults if not fault.requests or number in fault.requests]
        self._repeat = script.repeat or generation.ignore_eos
        self._limit, self._counts = prepared.plan.max_tokens, prepared.counts
        meter.prompt_tokens, meter.cached_tokens = prepared.plan.prompt_tokens, prepared.plan.cached_tokens

    async def run(self, emit: Emit) -> None:
        await self._prefill(emit)
        choices = [(self._tokens(i), self._choice_text(i)) for i in range(self._generation.n)]
        for k in range(self._limit):  # token k of every choice that has not ended
            for tokens, text in list(choices):
                if k:
                    await self._call(self._timing.step_s, after=k)
                if not self._token(k, tokens, text, emit):
                    choices.remove((tokens, text))
                await emit.drain()
        for _, text in choices:
            for event in text.finish("length"):
                emit(event)

    async def embed(self, inputs: Inputs, emit: Emit) -> None:
        await self._prefill(emit)
        self._meter.count_result()
        emit(embed(inputs, self._counts, self._engine._script.dimensions))
        emit(ChoiceFinished("stop"))

    async def _prefill(self, emit: Emit) -> None:
        meter = self._meter
        meter.begin()
        emit(Started(prompt_tokens=meter.prompt_tokens, cached_tokens=meter.cached_tokens))
        for i in range(self._timing.chunks(meter.computed_tokens)):
            await self._call(self._timing.chunk_s, after=0 if i == 0 else None)
        meter.shared_s = self._engine._activity.device_s - self._since_s

    def _token(self, k: int, tokens: list[str], text: ChoiceText, emit: Emit) -> bool:
        """Emit token k of a choice. False: it was the last one."""
        self._meter.count_token()  # the end-of-turn token has no text and is counted too
        events = text.push(tokens[k], self._logprob(tokens[k])) if k < len(tokens) else []
        is_last = k == len(tokens) or text.is_over
        for event in [*events, *text.finish("stop")] if is_last else events:
            emit(event)
        return not is_last

    async def _call(self, seconds: float, after: int | None) -> None:
        faults = [fault for fault in self._faults if fault.after == after]
        await self._engine.call(self._meter, seconds, faults, self._restarts)

    def _tokens(self, choice: int) -> list[str]:
        replies = self._engine._script.replies
        tokens: list[str] = _TOKEN.findall(replies[(self._number + choice) % len(replies)])
        return tokens * math.ceil(self._limit / len(tokens)) if tokens and self._repeat else tokens

    def _choice_text(self, choice: int) -> ChoiceText:
        generation, prompt = self._generation, self._generation.prompt
        dialect = self._engine._dialect
        parser = dialect.parser(prompt, "", choice) if isinstance(prompt, Chat) else PlainParser(choice)
        return ChoiceText(choice, generation.stop, parser)

    def _logprob(self, token: str) -> TokenLogprob | None:
        if self._generation.logprobs is None:
            return None
        entry = TokenLogprob(token, tuple(token.encode()), 0.0)  # the script has probability 1
        return replace(entry, top=(entry,) if self._generation.logprobs else ())

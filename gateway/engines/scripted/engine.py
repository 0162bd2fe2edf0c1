"""An engine without a model: answers what its script says, when it says it, and fails as it says.

For tests of what cannot be ordered from a device, for demonstrations, and to replay the published timing of a chip.
It behaves as the local engine does: one device that makes one call at a time for all requests in turn, a watchdog, a
restart after a hang that ends every request in progress. What it shows is always labelled `simulated`.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from gateway.config import ScriptedModel
from gateway.dialects.choose import choose_dialect
from gateway.dialects.plain import PlainParser
from gateway.engines.base import EngineStatus, Plan, State
from gateway.engines.choice import ChoiceText
from gateway.engines.scripted.script import Fault, Timing, error_of, read_script, timing
from gateway.errors import ContextLengthExceeded, EngineFailed, ModelNotReady
from gateway.generation import (
    Chat,
    Event,
    Finished,
    Generation,
    Meter,
    Prompt,
    Started,
    Text,
    Timings,
    TokenLogprob,
    Usage,
)

_TOKEN = re.compile(r"\s*\S+|\s+$")


class ScriptedEngine:
    """Args: `clock` in seconds and `sleep`, which moves it on; tests pass their own and wait for nothing.

    Raises ConfigError when the model's `script` or `simulate` is wrong.
    """

    def __init__(
        self,
        name: str,
        model: ScriptedModel,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._name, self._model = name, model
        self._script = read_script(name, model)
        self._dialect = choose_dialect(model.dialect, "")
        self._clock, self._sleep = clock, sleep
        self._slots = asyncio.Semaphore(model.max_sequences)
        self._device = asyncio.Lock()  # one call at a time; waiters get it in order
        self._requests = 0
        self._restarts = 0
        self._ready_at = math.inf  # the clock's time from which requests are answered
        self._failure = ""  # why the load failed
        self._closed = False

    @property
    def status(self) -> EngineStatus:
        state, detail = self._state()
        return EngineStatus(
            state=state,
            detail=detail,
            device="simulated",
            context_length=self.context_length,
            restarts=self._restarts,
            load_s=self._script.load_s,
            capabilities=("chat", "tools", "logprobs"),
        )

    @property
    def context_length(self) -> int:
        return self._model.context_length or self._script.context_length

    async def start(self) -> None:
        await self._sleep(self._script.load_s)
        if self._script.load_error:
            self._failure = self._script.load_error
            raise EngineFailed(self._failure)
        self._ready_at = self._clock()

    async def aclose(self) -> None:
        self._closed = True

    async def prepare(self, generation: Generation, meter: Meter) -> Plan:
        prompt_tokens = self.count(generation.prompt)
        return Plan(
            prompt_tokens=prompt_tokens,
            cached_tokens=self._cached(prompt_tokens),
            pass_width=timing(self._model, self._script, self._requests).pass_width,
        )

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event, None]:
        called_at = self._clock()
        self._check_ready()
        number, self._requests = self._requests, self._requests + 1
        async with self._slots:
            self._check_ready()
            request = _Request(self, number, generation, meter)
            began_at = self._clock()
            async with aclosing(request.run()) as events:
                async for event in events:
                    yield event
        yield Finished(usage=request.usage, timings=self._timings(meter, called_at, began_at))

    def count(self, prompt: Prompt) -> int:
        """Prompt tokens: the script's number, else the words."""
        if self._script.prompt_tokens is not None:
            return self._script.prompt_tokens
        match prompt:
            case Chat(messages=messages):
                return sum(len(_TOKEN.findall(message.content or "")) for message in messages)
            case Text(text=text):
                return len(_TOKEN.findall(text))
            case _:
                return len(prompt.ids)

    def _cached(self, prompt_tokens: int) -> int:
        return min(self._script.cached_tokens, max(0, prompt_tokens - 1))

    async def call(self, meter: Meter, seconds: float, faults: Sequence[Fault], restarts: int) -> None:
        """One device call for a request that began when the engine had been restarted `restarts` times."""
        seconds += sum(fault.stall_s for fault in faults)
        try:
            async with self._device:
                self._check_alive(restarts)
                meter.call_since = self._clock()
                await self._sleep(min(seconds, self._model.watchdog_s))
                meter.device_s += self._clock() - meter.call_since
                self._check_alive(restarts)
                if seconds > self._model.watchdog_s:
                    self._restart()
                    self._check_alive(restarts)
        finally:
            meter.call_since = None
        for error in filter(None, map(error_of, faults)):
            raise error

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
            raise EngineFailed(f"A device call of '{self._name}' hung and its worker was restarted; try again.")

    def _restart(self) -> None:
        self._restarts += 1
        self._ready_at = self._clock() + self._script.load_s

    def _timings(self, meter: Meter, called_at: float, began_at: float) -> Timings:
        now = self._clock()
        first = meter.first_token_at if meter.first_token_at is not None else now
        return Timings(
            queue_s=began_at - called_at, ttft_s=first - called_at, device_s=meter.device_s, total_s=now - called_at
        )


class _Request:
    """One request in progress: its device calls in order, and its choices side by side."""

    def __init__(self, engine: ScriptedEngine, number: int, generation: Generation, meter: Meter) -> None:
        script = engine._script
        self._engine, self._number, self._generation, self._meter = engine, number, generation, meter
        self._restarts = engine._restarts
        self._timing: Timing = timing(engine._model, script, number)
        self._faults = [fault for fault in script.faults if not fault.requests or number in fault.requests]
        self._repeat = script.repeat or generation.ignore_eos
        self._limit = generation.max_tokens

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._meter.prompt_tokens,
            cached_tokens=self._meter.cached_tokens,
            completion_tokens=self._meter.completion_tokens,
        )

    async def run(self) -> AsyncGenerator[Event, None]:
        meter, clock = self._meter, self._engine._clock
        self._admit()
        yield Started(prompt_tokens=meter.prompt_tokens, cached_tokens=meter.cached_tokens)
        for i in range(self._timing.passes(meter.computed_tokens)):
            await self._call(self._timing.pass_s, after=0 if i == 0 else None)
        choices = [(self._tokens(i), self._choice_text(i)) for i in range(self._generation.n)]
        for k in range(self._limit):  # token k of every choice that is still talking
            for tokens, text in list(choices):
                if k:
                    await self._call(self._timing.step_s, after=k)
                meter.completion_tokens += 1  # the end-of-turn token, which says nothing, counts as well
                if meter.first_token_at is None:
                    meter.first_token_at, meter.prompt_s = clock(), meter.device_s
                events = text.push(tokens[k], self._logprob(tokens[k])) if k < len(tokens) else []
                if k == len(tokens) or text.stopped is not None:
                    events += text.finish("stop")
                    choices.remove((tokens, text))
                for event in events:
                    yield event
        for _, text in choices:
            for event in text.finish("length"):
                yield event

    def _admit(self) -> None:
        """Count the prompt and see what the context leaves for the answer."""
        meter, context = self._meter, self._engine.context_length
        meter.prompt_tokens = self._engine.count(self._generation.prompt)
        meter.cached_tokens = self._engine._cached(meter.prompt_tokens)
        if meter.prompt_tokens >= context:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens. However, your messages resulted in "
                f"{meter.prompt_tokens} tokens. Please reduce the length of the messages."
            )
        self._limit = min(self._limit, context - meter.prompt_tokens)

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
        alone = TokenLogprob(token, tuple(token.encode()), 0.0)  # the script is certain
        return replace(alone, top=(alone,) if self._generation.logprobs else ())

"""The local engine: text on this side, tokens in a worker process on the other.

A request is prepared (template, tokens) on a thread, submitted, and answered from frames as they come. Frames are
turned into events when they arrive, not when the client reads: a stop string ends the device's work at once, and the
meter is true, however slow the client is. Closing the stream cancels the request at the worker's next step.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.bundle import load_bundle
from gateway.config import GenieModel, LocalModel
from gateway.engines.base import EngineStatus, Plan
from gateway.engines.local.events import FrameTranslator
from gateway.engines.local.process import Entry, WorkerProcess
from gateway.engines.local.prompts import PreparedPrompt, Prompts
from gateway.engines.local.supervisor import Supervisor
from gateway.errors import (
    BundleError,
    ContextLengthExceeded,
    EngineFailed,
    GatewayError,
    ModelNotReady,
    error_class,
)
from gateway.generation import Chat, Event, Finished, Generation, Meter, Prompt
from gateway.worker.entry import local_worker
from gateway.worker.frames import Began, Cancel, Ended, Failed, FromWorker, Prefilled, Submit, Tokens, WorkerSpec


class LocalEngine:
    """A bundle on this machine, served by a worker process. Implements Engine and TextTools.

    Args:
        models_dir: what `model.path` is relative to.
        entry: what runs in the worker process.
        clock, sleep: for the pauses between restarts and all times reported.
    """

    def __init__(
        self,
        name: str,
        model: LocalModel | GenieModel,
        models_dir: Path,
        *,
        entry: Entry = local_worker,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._name, self._model = name, model
        self._path = models_dir / model.path
        self._entry, self._clock = entry, clock
        self._prompts: Prompts | None = None  # known once the bundle is read
        self._answers: dict[int, FrameTranslator] = {}
        self._ids = itertools.count(1)
        #: Owner and tokens of what is likely cached: the worker keeps more than what it has in its slots.
        self._rows: deque[tuple[str, list[int]]] = deque(maxlen=4 * model.max_sequences)
        self._supervisor = Supervisor(
            name,
            self._worker,
            load_timeout_s=model.load_timeout_s,
            watchdog_s=model.watchdog_s,
            on_frame=self._receive,
            on_lost=self._lose,
            is_busy=lambda: bool(self._answers),
            clock=clock,
            sleep=sleep,
        )

    @property
    def status(self) -> EngineStatus:
        supervisor, ready = self._supervisor, self._supervisor.ready
        if ready is None:
            return EngineStatus(state=supervisor.state, detail=supervisor.detail)
        return EngineStatus(
            state=supervisor.state,
            detail=supervisor.detail,
            device=ready.device,
            context_length=ready.context_length,
            restarts=supervisor.restarts,
            placement=ready.placement,
            load_s=ready.load_s + ready.warm_up_s,
            peak_bytes=ready.peak_bytes,
        )

    async def start(self) -> None:
        """Read the bundle, spawn the worker, wait until it is warm. Raises BundleError, EngineFailed."""
        if not self._model.path:
            raise BundleError(f"The model '{self._name}' needs `path`, where its bundle is.")
        self._prompts = await asyncio.to_thread(self._open_prompts)
        await self._supervisor.start()

    async def aclose(self) -> None:
        self._lose(EngineFailed(f"The model '{self._name}' was closed."))
        await self._supervisor.aclose()

    async def prepare(self, generation: Generation, meter: Meter) -> Plan:
        prompts = self._ready_prompts()
        meter.prepared = prompt = await asyncio.to_thread(prompts.prepare, generation)
        ready = self._supervisor.ready
        return Plan(
            prompt_tokens=len(prompt.ids),
            cached_tokens=self._likely_cached(generation, prompt.ids),
            pass_width=ready.prompt_width if ready else math.inf,
        )

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event, None]:
        called_at = self._clock()
        prompts = self._ready_prompts()
        prompt: PreparedPrompt = meter.prepared or await asyncio.to_thread(prompts.prepare, generation)
        self._ready_prompts()  # the worker may have died meanwhile
        submit = self._submit(generation, prompt)
        answer = FrameTranslator(
            submit.id,
            generation,
            prompt.ids,
            meter,
            tokens=prompts.tokens,
            parsers=prompts.parsers(generation, prompt),
            called_at=called_at,
            send=self._supervisor.send,
            clock=self._clock,
        )
        self._supervisor.send(submit)
        self._answers[answer.id] = answer
        self._rows.append((generation.owner, answer.ids))
        try:
            while True:
                event = await answer.events.get()
                if isinstance(event, GatewayError):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            meter.call_since = None
            if self._answers.pop(answer.id, None) is not None:
                self._supervisor.send(Cancel(answer.id))

    def encode(self, prompt: Prompt) -> list[int]:
        return self._ready_prompts().prompt(prompt).ids

    def tokenize(self, text: str, *, begin: bool, specials: bool) -> list[int]:
        return self._ready_prompts().tokens.encode(text, begin=begin, specials=specials)

    def decode(self, ids: Sequence[int]) -> str:
        return self._ready_prompts().tokens.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        tokens = self._ready_prompts().tokens
        tokens.check_ids(ids, "tokens")
        return [tokens.token_bytes(index) for index in ids]

    def render(self, chat: Chat) -> str:
        return self._ready_prompts().prompt(chat).rendered

    def _open_prompts(self) -> Prompts:
        return Prompts(load_bundle(self._path), self._model.dialect)

    def _worker(self, on_frame: Callable[[FromWorker], None]) -> WorkerProcess:
        return WorkerProcess(self._name, _spec(self._model, self._path), on_frame, self._entry)

    def _ready_prompts(self) -> Prompts:
        """Raises ModelNotReady unless the worker can take a request."""
        state, detail = self._supervisor.state, self._supervisor.detail
        if self._prompts is None or state != "ready":
            why = f"{state}: {detail}" if detail else state
            raise ModelNotReady(f"The model '{self._name}' is not ready ({why}).", retry_after_s=1)
        return self._prompts

    def _likely_cached(self, generation: Generation, ids: Sequence[int]) -> int:
        """The longest beginning shared with a recent request; the worker may have lost it, and says what is true."""
        if not self._model.prefix_cache or generation.prompt_logprobs:
            return 0
        shared = (_shared(ids, rows) for owner, rows in self._rows if owner == generation.owner)
        return max(shared, default=0)

    def _submit(self, generation: Generation, prompt: PreparedPrompt) -> Submit:
        """The frame, its `max_tokens` what the context leaves. Raises ContextLengthExceeded."""
        context, length = self.status.context_length, len(prompt.ids)
        room = context - length
        if room < min(1, generation.max_tokens):
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context} tokens. However, your prompt has {length} tokens. "
                "Please reduce its length.",
                param="messages" if isinstance(generation.prompt, Chat) else "prompt",
            )
        assert self._prompts is not None
        return Submit(
            id=next(self._ids),
            ids=prompt.ids,
            sampling=generation.sampling,
            max_tokens=min(generation.max_tokens, room),
            min_tokens=generation.min_tokens,
            stop_ids=[] if generation.ignore_eos else self._prompts.end_ids,
            n=generation.n,
            logprobs=generation.logprobs,
            prompt_logprobs=generation.prompt_logprobs,
            grammar=prompt.grammar,
            prediction=prompt.prediction,
            background=generation.background,
            owner=generation.owner,
        )

    def _receive(self, frame: FromWorker) -> None:
        """A frame from the worker: a device call has come back."""
        for running in self._answers.values():
            if running.has_begun:
                running.device_reported()
        answer = self._answers.get(getattr(frame, "id", None) or 0)
        if answer is None:
            return  # of a request that was cancelled meanwhile
        match frame:
            case Began():
                answer.began(frame)
                answer.device_reported()
            case Prefilled():
                answer.prefilled(frame)
            case Tokens():
                answer.produced(frame)
            case Ended():
                answer.ended(frame)
            case Failed():
                answer.fail(error_class(frame.kind)(frame.message, param=frame.param))
        if answer.is_over:
            del self._answers[answer.id]

    def _lose(self, error: GatewayError) -> int:
        """End every request in progress with `error`; how many there were."""
        lost = list(self._answers.values())
        self._answers.clear()
        for answer in lost:
            answer.fail(error)
        return len(lost)


def _spec(model: LocalModel | GenieModel, bundle: Path) -> WorkerSpec:
    spec = WorkerSpec(
        bundle=str(bundle),
        max_sequences=model.max_sequences,
        prefix_cache=model.prefix_cache,
        context_length=model.context_length,
    )
    if isinstance(model, GenieModel):
        return spec
    return replace(spec, provider=model.provider, provider_options=model.provider_options, threads=model.threads)


def _shared(ids: Sequence[int], rows: Sequence[int]) -> int:
    """How many of `rows` a prompt can take over; its last two tokens are always computed."""
    limit = max(0, min(len(ids) - 2, len(rows)))
    return next((i for i in range(limit) if ids[i] != rows[i]), limit)

"""Seam 1: an `Engine` turns a Generation into Events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct, field

from gateway.generation import Chat, Event, Generation, Meter, Prompt, Usage
from gateway.worker.frames import Device, PassTimes

State = Literal["loading", "ready", "restarting", "failed", "closed", "unloaded"]
#: What a client can use. `structured_outputs` also means that a required tool call is always a valid call. A model
#: without `chat` generates no text.
Capability = Literal["chat", "tools", "logprobs", "structured_outputs", "embeddings", "rerank"]


class TargetStatus(Struct, frozen=True, kw_only=True):
    """One of several servers of an upstream model. It has no address, because `/readyz` needs no key."""

    number: int  # in the configuration, from 1
    #: `trial`: it was down, and now lists its models. `busy`: it refused a request for its load.
    state: Literal["up", "trial", "busy", "down"]
    detail: str = ""  # why it is not up
    running: int = 0  # requests
    weight: float = 1.0


class EngineStatus(Struct, frozen=True, kw_only=True):
    """What `/readyz`, `/v1/models/{id}` and `doctor` show of an engine."""

    state: State
    detail: str = ""  # one line for a person: why the engine is not ready, the stage of the load, or a warning
    #: What runs the model. A Genie bundle runs in our own engine, or in Genie if that refuses it.
    runtime: Literal["own", "genie", "upstream", "scripted"] = "own"
    device: Device = "cpu"
    soc: int | None = None  # Qualcomm's number of the NPU's chip; None: unknown, or no NPU
    mode_refusal: str = ""  # why the NPU's driver refuses burst mode; "": it accepts it, or there is no NPU
    context_length: int = 0
    context_note: str = ""  # one sentence if the context is limited for the memory; "": it is not
    restarts: int = 0
    #: provider name -> number of graph nodes that it runs, summed over the graphs of the bundle
    placement: dict[str, int] = field(default_factory=dict)
    passes: PassTimes | None = None  # of this start, after the warm-up; None: not measured
    pid: int | None = None  # of the process that runs the model; None: it has none
    chip: str = ""  # of the NPU, for a person; "": unknown, or the model does not run on an NPU
    published_tokens_per_s: float | None = None  # of this model on the NPU of this machine
    draft: str = ""  # the model that drafts for it, or why that does not; "": none is configured
    load_s: float = 0.0
    peak_bytes: int = 0
    #: What the model's files recommend for requests that do not choose, by the name of the key in config.toml.
    sampling: dict[str, float] = field(default_factory=dict)
    targets: tuple[TargetStatus, ...] = ()  # the servers of an upstream model that has several
    capabilities: tuple[Capability, ...] = ("chat", "tools", "logprobs", "structured_outputs")

    @property
    def is_down(self) -> bool:
        """True if the model has several servers and none of them answers."""
        return bool(self.targets) and all(target.state == "down" for target in self.targets)

    @property
    def cpu_nodes(self) -> int:
        """Nodes of the graphs that run on the CPU. On an NPU, that is slow."""
        return self.placement.get("CPU", 0)


class Plan(Struct, frozen=True, kw_only=True):
    """What an engine knows about the cost of a request before the request runs."""

    prompt_tokens: int
    cached_tokens: int = 0  # an estimate: the cached part can be evicted before the request runs
    chunk_width: float = math.inf  # prompt tokens in one device call (chunked prefill)
    max_tokens: int  # tokens that one choice can get: the request's limit, or what the context has left
    dropped_messages: int = 0  # of the chat, because it did not fit into the context
    cut_texts: int = 0  # texts for an encoder that were longer than it reads

    @property
    def computed_tokens(self) -> int:
        return max(1, self.prompt_tokens - self.cached_tokens)


class Prepared(Struct, frozen=True, kw_only=True):
    """A request that `Engine.run` can run. Engines subclass it to keep what they made of the prompt."""

    generation: Generation
    plan: Plan | None = None  # None: the engine cannot know the cost


class Emit(Protocol):
    """Where `Engine.run` puts its events: the one queue between the device and the reader.

    emit(TextDelta("Paris"))
    await emit.drain()
    """

    def __call__(self, event: Event) -> None:
        """Append an event. Never waits, so a slow reader does not delay the device, the meter or a stop string."""

    def begin(self) -> None:
        """The first content is there, and the engine holds it back: from now on, the time limit of the first token is
        kept. Events with content need no call."""

    async def drain(self) -> None:
        """Backpressure: wait while the reader is far behind.

        An engine that can produce events without a bound calls it between events. An engine whose output is limited
        by its context length does not need it.
        """


class Engine(Protocol):
    """Seam 1: one model that answers.

        prepared = await engine.prepare(generation)
        usage = await engine.run(prepared, meter, emit)

    Any number of requests may run at the same time. The engine batches what it can and queues the rest in order.
    """

    @property
    def takes_turns(self) -> bool:
        """True if more requests than `max_sequences` can run: they take turns on the device. Can change at a start."""

    @property
    def status(self) -> EngineStatus:
        """The state now. `ready` means that `prepare` and `run` are accepted."""

    @property
    def text_tools(self) -> TextTools | None:
        """The model's tokenizer and chat template; None for a model that has them on another server."""

    async def start(self) -> None:
        """Load the model and warm it up. Returns when `status` is ready.

        The caller may call it again after a failure and after `lost`. The engine itself does not retry.

        Raises:
            GatewayError: the model cannot be loaded now.
        """

    async def lost(self) -> str:
        """Return when a ready engine needs another `start`, because its worker died or was killed.

        An engine without a worker never returns from it.

        Returns:
            the reason and an advice, in one line for the log.
        """

    def breaker_opened(self) -> None:
        """The latency breaker of this model has opened. An engine replaces its worker if that can help."""

    def free_cache(self) -> None:
        """Drop what is kept of finished requests, and give its memory back. Called while no request runs."""

    async def prepare(self, generation: Generation) -> Prepared:
        """Make the prompt ready for the device and estimate its cost. Does not use the device.

        Args:
            generation: one request with every default applied.

        Returns:
            what `run` needs, with the plan if the engine can know one.

        Raises:
            InvalidRequest: the prompt or a parameter is wrong, or the prompt is too long (ContextLengthExceeded).
            ModelNotReady: the engine is not ready.
        """

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        """Answer the request on the device.

        Emits Started, then deltas, and one ChoiceFinished for each choice. Updates `meter` at every device call.
        Cancel the task to cancel the request: the device stops at its next step.

        Args:
            prepared: from `prepare` of this engine.
            meter: a new one; the engine writes it until `run` ends.
            emit: takes the events.

        Returns:
            the token counts of the whole answer.

        Raises:
            GatewayError: the request failed (EngineFailed, UpstreamFailed, ModelNotReady, ...).
        """

    async def aclose(self) -> None:
        """End the requests that run and free everything. No task, thread or process is left when it returns."""


class TextTools(Protocol):
    """What a local tokenizer can do without the device: `/tokenize`, `/apply-template`, and counting tokens.

    All methods raise ModelNotReady before the engine is ready, and InvalidRequest for a wrong argument. `client` is the
    client that the request is from: clients take turns.
    """

    async def encode(self, prompt: Prompt, client: str) -> list[int]:
        """The token ids that the model gets for `prompt`."""

    async def tokenize(self, text: str, client: str, *, begin: bool, specials: bool) -> list[int]:
        """The token ids of `text`, which may be empty.

        Args:
            begin: add the tokenizer's begin token.
            specials: parse special tokens in the text.
        """

    async def decode(self, ids: Sequence[int], client: str) -> str:
        """The text of `ids`, with special tokens."""

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token. A character can span several tokens. Call it in a thread: there can be many."""

    async def render(self, chat: Chat, client: str) -> str:
        """The conversation as text, from the model's chat template."""

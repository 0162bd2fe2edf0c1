"""Seam 1: an `Engine` turns a Generation into Events."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

from msgspec import Struct, field

from gateway.generation import Chat, Event, Generation, Meter, Prompt
from gateway.worker.frames import Device

State = Literal["loading", "ready", "restarting", "failed", "closed"]
#: What clients may rely on; `structured_outputs` also means that a demanded tool call is one.
Capability = Literal["chat", "tools", "logprobs", "structured_outputs"]


class EngineStatus(Struct, frozen=True, kw_only=True):
    """What `/readyz`, `/v1/models/{id}` and `doctor` show of an engine."""

    state: State
    detail: str = ""  # why it is not ready, or how far the load is: one line for a person
    device: Device = "cpu"
    context_length: int = 0
    restarts: int = 0
    #: provider name -> number of graph nodes placed there, summed over the bundle's graphs
    placement: dict[str, int] = field(default_factory=dict)
    load_s: float = 0.0
    peak_bytes: int = 0
    capabilities: tuple[Capability, ...] = ("chat", "tools", "logprobs", "structured_outputs")


class Plan(Struct, frozen=True, kw_only=True):
    """What an engine knows of a request before it begins."""

    prompt_tokens: int
    cached_tokens: int = 0  # of the prompt, as far as it is known: what is cached may be gone when the request begins
    pass_width: float = math.inf  # prompt tokens that one device call takes

    @property
    def computed_tokens(self) -> int:
        return max(1, self.prompt_tokens - self.cached_tokens)


class Engine(Protocol):
    """Seam 1: one model that answers.

    `start` loads and warms up, and returns when the engine can answer; it raises a GatewayError when it cannot.
    `prepare` says what a request will cost, None where that cannot be known, and may keep its work in
    `meter.prepared` for `stream`, which does without; it raises what is wrong with the prompt.
    `stream` yields Started, then deltas, one ChoiceFinished per choice and one Finished; it keeps `meter` current; it
    raises a GatewayError (ContextLengthExceeded, EngineFailed, ...) instead of finishing. Closing the generator early
    cancels the request: the device stops at its next step. Any number of streams may run at once; the engine
    interleaves what it can run together and queues the rest in order.
    """

    @property
    def status(self) -> EngineStatus: ...

    async def start(self) -> None: ...

    async def prepare(self, generation: Generation, meter: Meter) -> Plan | None: ...

    def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event, None]: ...

    async def aclose(self) -> None: ...


class TextTools(Protocol):
    """What an engine that owns its tokenizer can do beside generating (`/tokenize`, `/apply-template`, counting).

    All raise ModelNotReady before the engine has started, and InvalidRequest for what they are given. Long texts take
    a while: not for the event loop.
    """

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids that the model gets for `prompt`."""

    def tokenize(self, text: str, *, begin: bool, specials: bool) -> list[int]:
        """The ids of a text, which may be empty: with the tokenizer's begin token, with special tokens parsed."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens as they are written."""

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """Each token as it is written; several of them may share a character."""

    def render(self, chat: Chat) -> str:
        """The conversation through the model's own chat template."""

"""The two seams: `Engine` turns a Generation into Events, `Decoder` turns token ids into logits."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, Protocol

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from gateway.generation import Chat, Event, Generation, Meter, Prompt
from gateway.lanes.forecast import Plan

Logits = NDArray[np.float32]
State = Literal["loading", "ready", "restarting", "failed", "closed"]
#: Where the model runs. `emulated` is the HTP backend on a host CPU, `simulated` the scripted engine's timing model.
Device = Literal["cpu", "npu", "emulated", "simulated", "remote"]
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


class KVCache(Protocol):
    """The keys and values of one sequence: rows 0..length-1 are valid."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def truncate(self, length: int) -> None:
        """Keep the first `length` rows (0 <= length <= self.length); nothing is moved."""

    def copy_from(self, other: KVCache, length: int) -> None:
        """Become a copy of the first `length` rows of `other`, a cache of the same decoder."""

    def keep(self) -> KVCache:
        """A copy of the valid rows that takes no more memory than they do and is only for `copy_from`."""


class DecoderSpec(Struct, frozen=True, kw_only=True):
    """What the token loop must know of a decoder."""

    vocab_size: int
    context_length: int
    prompt_width: int  # the most ids one `prefill` or `verify` call takes
    device: Device
    placement: dict[str, int] = field(default_factory=dict)
    is_exact: bool = False  # a token's logits are the same bits computed alone, in company, and among several


class Decoder(Protocol):
    """Seam 2: token ids in, logits out. Synchronous, one thread, no text, no JSON.

    Returned logits are float32 and may be a view that the next call overwrites; the caller may change them in place.
    Every call appends to the cache(s) it is given and raises EngineFailed when the device refuses. A cache never
    grows past `spec.context_length`: the caller checks before it calls.
    """

    @property
    def spec(self) -> DecoderSpec: ...

    def new_cache(self) -> KVCache: ...

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        """Append 1..prompt_width ids; the logits after the last of them, shape (vocab,)."""

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        """Append one id to each cache; logits of shape (len(ids), vocab)."""

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        """Append 1..prompt_width ids; the logits after each of them, shape (len(ids), vocab)."""

    def close(self) -> None:
        """Give the device and the memory back."""

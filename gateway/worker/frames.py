"""What the gateway and a worker process say to each other: msgpack frames, one struct a frame.

Token ids in, token ids out. A frame is `encode(struct)` sent with `Connection.send_bytes`; the worker's stdout and
stderr never carry any (native libraries print there when they load).
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct, field

from gateway.generation import FinishReason, Grammar
from gateway.sampling import Sampling

#: Where a model runs. `emulated`: the HTP backend on a host CPU. `simulated`: the timing model of the scripted engine.
Device = Literal["cpu", "npu", "emulated", "simulated", "remote"]

#: The message of a `Failed` frame when an allocation failed.
NO_MEMORY = "The machine has no memory left for this model."


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """What a worker needs to know, as plain values that travel to a spawned process."""

    bundle: str  # the bundle's folder
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)
    threads: int = 0  # 0: as many as physical cores, at most 8
    max_sequences: int = 4
    prefix_cache: bool = True
    context_length: int = 0  # 0: the bundle's own


class Submit(Struct, frozen=True, tag=True, kw_only=True):
    """One request. `id` is the parent's own number, never reused."""

    id: int
    ids: list[int]
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_ids: list[int] = field(default_factory=list)  # end-of-turn tokens; empty with ignore_eos
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    prediction: list[int] = field(default_factory=list)
    background: bool = False
    owner: str = ""


class Cancel(Struct, frozen=True, tag=True):
    """Nothing more is said of what is cancelled; what was sent before may still be on its way."""

    id: int
    choice: int | None = None  # None: the whole request; else one choice (it met a stop string)


class Shutdown(Struct, frozen=True, tag=True):
    pass


class Loading(Struct, frozen=True, tag=True):
    stage: str


class Ready(Struct, frozen=True, tag=True, kw_only=True):
    vocab_size: int
    context_length: int
    prompt_width: int = 128  # prompt tokens that one device call takes
    device: Device
    placement: dict[str, int]
    load_s: float
    warm_up_s: float
    peak_bytes: int


class Began(Struct, frozen=True, tag=True):
    """The request has a slot and its first device call is about to start."""

    id: int
    cached_tokens: int


class Prefilled(Struct, frozen=True, tag=True):
    """One prompt chunk is done. `prompt_logprobs`: those of the prompt's next tokens, one after another over all the
    chunks, from the prompt's second token on (the first has none)."""

    id: int
    device_s: float
    prompt_logprobs: list[Scored] = field(default_factory=list)


class Scored(Struct, frozen=True, array_like=True):
    """A token with its log-probability and the most likely ones at its place."""

    id: int
    logprob: float
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)


class Tokens(Struct, frozen=True, tag=True, kw_only=True):
    """Tokens one device call gave one choice. `device_s` is what the call cost this request."""

    id: int
    ids: list[int]
    device_s: float
    choice: int = 0
    scored: list[Scored] = field(default_factory=list)
    accepted: int = 0  # prediction tokens among `ids`
    rejected: int = 0


class Ended(Struct, frozen=True, tag=True):
    """One choice is over; the request is when all `n` are. The stop token is not in any `Tokens`."""

    id: int
    reason: FinishReason
    choice: int = 0
    counted_stop: int = 0  # 1 when a stop token was generated and withheld: it counts as a completion token


class Failed(Struct, frozen=True, tag=True):
    """The request (id) or the worker as a whole (id None) failed. `kind` names a GatewayError subclass."""

    id: int | None
    kind: str
    message: str
    param: str | None = None


class FrameBatch(Struct, frozen=True, tag=True):
    """What one device call brought several sequences, in one message, so that it wakes the gateway once."""

    frames: list[Tokens]


ToWorker = Submit | Cancel | Shutdown
FromWorker = Loading | Ready | Began | Prefilled | Tokens | Ended | Failed
Message = FromWorker | FrameBatch  # as it travels

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(Message)

encode = _encoder.encode
decode_to_worker = _to_worker.decode
decode_from_worker = _from_worker.decode

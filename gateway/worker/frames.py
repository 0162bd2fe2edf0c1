"""The messages between the gateway process and a worker process: token ids in, token ids out.

Each frame is one struct, sent as msgpack: `connection.send_bytes(encode(frame))`. Frames never go through stdout or
stderr, because native libraries print there when they load.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct, field

from gateway.generation import FinishReason, Grammar
from gateway.sampling import Sampling

#: Where a model runs. `emulated`: the HTP backend on a host CPU. `simulated`: the timing model of the scripted engine.
Device = Literal["cpu", "npu", "emulated", "simulated", "remote"]
#: Where a draft of the next tokens is from; "": there is none.
DraftSource = Literal["", "grammar", "prediction", "lookup", "model"]


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """The configuration of a worker. Plain values, because a spawned process gets them by pickle."""

    bundle: str  # path of the bundle's folder; genie: or of its configuration
    tokenizer: str = ""  # path of the folder with tokenizer.json; "": where the bundle says
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)
    threads: int = 0  # 0: one for each physical core, of an encoder for each second one, at most 8
    max_sequences: int = 4
    prefix_cache: bool = True
    context_length: int = 0  # 0: the bundle's own
    poll: bool = False  # genie: wait for the NPU in a busy loop
    draft: str = ""  # path of the folder of the bundle that drafts; "": none


class Submit(Struct, frozen=True, tag=True, kw_only=True):
    """One request. The prompt and `max_tokens` together fit the context: the gateway has checked that."""

    id: int  # chosen by the gateway, never used again
    ids: list[int]  # the prompt
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_ids: list[int] = field(default_factory=list)  # end-of-turn tokens; empty with `ignore_eos`
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    prediction: list[int] = field(default_factory=list)
    background: bool = False
    owner: str = ""  # requests of one owner share cached prefixes
    client: str = ""  # clients take turns on the device and in the grammar compiler


class Embed(Struct, frozen=True, tag=True, kw_only=True):
    """One request for the vectors of texts, or for the scores of pairs. Each text fits the model."""

    id: int  # chosen by the gateway, never used again
    ids: list[list[int]]  # token ids of each text or pair, with the special tokens
    firsts: list[int] = field(default_factory=list)  # tokens of the first text of each pair
    dimensions: int = 0  # of a vector; 0: all
    background: bool = False
    client: str = ""  # clients take turns on the device


class Cancel(Struct, frozen=True, tag=True):
    """Stop a request or one choice of it. The worker sends no more frames of it; earlier ones can still arrive."""

    id: int
    choice: int | None = None  # None: all choices


class FreeCache(Struct, frozen=True, tag=True):
    """Drop the rows of finished requests, and give the memory of the KV cache back. Ignored while a request runs."""


class Shutdown(Struct, frozen=True, tag=True):
    """End the worker process."""


class Loading(Struct, frozen=True, tag=True):
    """The worker has begun a stage of the load."""

    stage: str


class PassTimes(Struct, frozen=True):
    """Seconds of two device calls of a warm model: a window of a prompt, and one step."""

    wide_s: float
    step_s: float
    wide_tokens: int = 16  # prompt tokens in the widest window

    @property
    def id_cost(self) -> float:
        """The cost of each id of a call after the first, in single steps; 0: unknown."""
        return max(0.0, self.wide_s / self.step_s - 1) / max(1, self.wide_tokens - 1) if self.step_s else 0.0


class Ready(Struct, frozen=True, tag=True, kw_only=True):
    """The model is loaded and warm; the worker takes requests."""

    vocab_size: int
    context_length: int
    prompt_width: int = 128  # most prompt tokens of one device call
    device: Device
    placement: dict[str, int]
    greedy_only: bool = False  # the logits have no known scale: no probabilities, no penalties, no temperature
    load_s: float
    warm_up_s: float
    peak_bytes: int
    soc: int | None = None  # Qualcomm's number of the NPU's chip; None: unknown, or no NPU
    mode_refusal: str = ""  # why the NPU's driver refuses burst mode; "": it accepts it, or there is no NPU
    passes: PassTimes | None = None  # of the warm model; None: not measured
    draft: str = ""  # the model that drafts, by the name of its folder; "": none


class DraftLost(Struct, frozen=True, tag=True):
    """The draft model has failed. The worker goes on without it."""

    reason: str


class Began(Struct, frozen=True, tag=True):
    """The request has a slot, and its first device call starts now."""

    id: int
    cached_tokens: int


class Prefilled(Struct, frozen=True, tag=True):
    """One prompt chunk is computed.

    `prompt_logprobs` continues over the chunks of a prompt. It starts at the second token; the first token has none.
    """

    id: int
    device_s: float  # of the call; if several requests share it, this one's part by the tokens that it lacked
    prompt_logprobs: list[Scored] = field(default_factory=list)
    shared_s: float = 0.0  # in device calls of all requests since this one came to the token loop


class Scored(Struct, frozen=True, array_like=True):
    """A token, its log-probability, and the most likely tokens at its position."""

    id: int
    logprob: float
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)


class Tokens(Struct, frozen=True, tag=True, kw_only=True):
    """The tokens of one choice from one device call."""

    id: int
    ids: list[int]
    device_s: float  # duration of the call, or 0 if a Prefilled frame has it
    choice: int = 0
    scored: list[Scored] = field(default_factory=list)
    source: DraftSource = ""  # of the draft; "model" with `drafted` 0: the draft model was only made to catch up
    drafted: int = 0  # tokens of the draft
    matched: int = 0  # of those, the right ones


class Vectors(Struct, frozen=True, tag=True, kw_only=True):
    """What one device call has computed for a request. The request has ended when all of its texts have a row."""

    id: int
    indices: list[int]  # of the texts
    rows: bytes  # float32, little-endian: `dimensions` numbers for each of `indices`; scores have 1
    dimensions: int
    device_s: float  # the request's share of the call, by its tokens
    shared_s: float = 0.0  # in device calls of all requests since this one came


class Ended(Struct, frozen=True, tag=True):
    """One choice has ended. The request has ended when all `n` choices have."""

    id: int
    reason: FinishReason
    choice: int = 0
    counted_stop: int = 0  # 1 if a stop token was generated: it counts as a completion token, but is in no `Tokens`


class Failed(Struct, frozen=True, tag=True):
    """A request has failed, or the worker itself (id None). `kind` is the name of a GatewayError class."""

    id: int | None
    kind: str
    message: str
    param: str | None = None


class FrameBatch(Struct, frozen=True, tag=True):
    """The Tokens frames of several sequences from one device call, in one message: the gateway wakes up once."""

    frames: list[Tokens]


ToWorker = Submit | Embed | Cancel | FreeCache | Shutdown
FromWorker = Loading | Ready | DraftLost | Began | Prefilled | Tokens | Vectors | Ended | Failed
Message = FromWorker | FrameBatch  # what the pipe carries

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(Message)

encode = _encoder.encode
decode_to_worker = _to_worker.decode
decode_from_worker = _from_worker.decode

"""What a measurement found. The file of `--json` has exactly these fields. Times in seconds, sizes in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from gateway.errors import ConfigError
from gateway.lanes.breaker import Budget
from gateway.worker.frames import PassTimes


class Run(Struct, frozen=True, kw_only=True):
    """One streamed request, as the client saw it."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, from the prefix cache
    tokens: int  # generated
    first_s: float  # from sending the request to the first piece of text
    total_s: float  # ... to the last one

    @property
    def computed_tokens(self) -> int:
        return max(1, self.prompt_tokens - self.cached_tokens)

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after the first one; None: all text arrived at once."""
        later_s = self.total_s - self.first_s
        return (self.tokens - 1) / later_s if self.tokens > 1 and later_s > 0 else None

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.computed_tokens / max(self.first_s, 1e-6)


class Answers(Struct, kw_only=True):
    """The same question several times: the first run computes the whole prompt, the later ones find it in the cache."""

    new_tokens: int
    runs: list[Run] = field(default_factory=list)


class Prefill(Struct, kw_only=True):
    """Prompts of about this length that no cache has, and the last of them again."""

    length: int
    runs: list[Run] = field(default_factory=list)
    again: Run | None = None


class Grammar(Struct, kw_only=True):
    """Answers of equal length without and with constrained decoding."""

    plain: list[Run] = field(default_factory=list)
    constrained: list[Run] = field(default_factory=list)


class Memory(Struct, kw_only=True):
    gateway_bytes: int = 0  # resident, of the gateway's own process, at most
    worker_bytes: int = 0  # of all its child processes, at most
    peak_bytes: int = 0  # of all of them together, at most


class Report(Struct, kw_only=True):
    """The whole measurement, also one that was stopped."""

    model: str
    taken_at: str  # local time with zone, ISO 8601
    machine: dict[str, str | int | float]
    device: str = ""
    runtime: str = ""
    context_length: int = 0
    gateway: str = ""  # URL of a gateway that ran already; "": this command started one
    gateway_version: str = ""
    start_to_ready_s: float | None = None
    published_tokens_per_s: float | None = None  # of this model on this machine's NPU
    passes: PassTimes | None = None  # that the gateway measured when it loaded the model
    budget: Budget | None = None  # of the breaker; None: it is off
    answers: list[Answers] = field(default_factory=list)
    prefill: list[Prefill] = field(default_factory=list)
    grammar: Grammar | None = None
    memory: Memory | None = None
    stopped: str = ""  # why the measurement is not complete: one sentence


def encode(report: Report) -> str:
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"


def read(path: Path) -> Report:
    """A file of `--json`. Raises ConfigError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: is not a result of `npu-gateway bench --json`: {error}") from None


def overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """True if the ranges of two figures have a common value: their difference is within the spread."""
    return min(b) <= max(a) and min(a) <= max(b)


def speeds(runs: Sequence[Run]) -> list[float]:
    """Tokens per second of the runs that can show them."""
    return [run.tokens_per_s for run in runs if run.tokens_per_s]

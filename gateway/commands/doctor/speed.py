"""One generation on the device: time to first token and time per token, against the limit of the circuit breaker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.commands.doctor.finding import Finding, Level
from gateway.commands.doctor.gateway_state import ModelState, request
from gateway.commands.running.find import Found
from gateway.config.tables import Config, LocalModel, ModelConfig
from gateway.errors import GatewayError
from gateway.qnn.driver_errors import explain

TOKENS = 16
_PROMPT = "Write one sentence about the sea."
_PROMPT_TOKENS = 40  # about, with the chat template: for the limit of a gateway that does not say how many it had
_NO_KEY = "not measured: requests need a key, and this configuration has none; try `npu-gateway chat --api-key KEY`"
_LIMITED = (404, 429)  # the key may not use the model, or has reached a limit: no fault of the model
_SLOW_TOKENS_PER_S = 10.0  # about as fast as a person reads
_FASTER = "`npu-gateway catalog` lists models for the NPU; on a CPU, a smaller model is faster"


class Speed(Struct, frozen=True, kw_only=True):
    """What one answer took.

    Args:
        device: "cpu", "npu", "emulated".
        threads: on the CPU; 0: not known.
        limit_s: the breaker's limit for this answer; None: no breaker, or not known.
    """

    device: str
    ttft_s: float
    total_s: float
    tokens: int
    threads: int = 0
    limit_s: float | None = None

    @property
    def token_s(self) -> float:
        return (self.total_s - self.ttft_s) / max(1, self.tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        return 1 / self.token_s if self.tokens > 1 and self.token_s > 0 else 0.0

    def __str__(self) -> str:
        where = {"cpu": "CPU", "npu": "NPU", "emulated": "emulated NPU"}.get(self.device, self.device)
        threads = f", {self.threads} threads" if self.device == "cpu" and self.threads else ""
        shown = f"{self.tokens_per_s:.3g}" if self.tokens_per_s < 1000 else f"{self.tokens_per_s:.0f}"
        rate = f", {shown} tokens/s" if self.tokens_per_s else ""
        return f"{where}{threads}{rate}, first token after {1000 * self.ttft_s:.0f} ms"


def speed_findings(name: str, speed: Speed, published: float | None = None) -> Iterator[Finding]:
    """Args:
    published: tokens/s of this model on this chip, by its publisher.
    """
    limit = "" if speed.limit_s is None else f", limit {speed.limit_s:.3g} s"
    detail = f"{speed}; {speed.tokens} tokens in {speed.total_s:.3g} s{limit}"
    what, because = f"speed of {name}", f"{name} answers: {speed}"
    is_above = speed.limit_s is not None and speed.total_s > speed.limit_s
    rate = speed.tokens_per_s
    if is_above:
        yield Finding(
            "note",
            what,
            f"{detail}: slow, and the breaker opens if this repeats",
            "device",
            str(speed),
            _FASTER,
            "slow",
        )
    elif rate and rate < _SLOW_TOKENS_PER_S:
        yield Finding("note", what, detail, "device", str(speed), _FASTER, "slow")
    elif rate and published and rate < published / 2:
        text = f"{speed}, and {published:.3g} tokens/s are published"
        step = "close other programs that use the NPU, connect the charger, and restart the gateway"
        yield Finding("note", what, detail, "device", text, step, "slow")
    else:
        yield Finding("ok", what, detail, "", because)


def _tokens(device: str) -> int:
    """Of one answer. The emulator needs seconds for each."""
    return 2 if device == "emulated" else TOKENS


def ask(found: Found, model: str, limit_s: float, tokens: int = TOKENS) -> tuple[float, float, int]:
    """(seconds to the first token, seconds for all, tokens) of one answer of a running gateway. Raises GatewayError."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, last = time.monotonic(), None, 0.0
    try:
        with request(f"{found.api_url}/chat/completions", found.key, limit_s, body) as answer:
            if answer.status != 200:
                raise _refusal(answer.status, answer.read(1 << 16))
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise GatewayError(str(chunk["error"].get("message")))
                if any(choice["delta"].get("content") for choice in chunk.get("choices", ())):
                    last = time.monotonic() - started
                    first = last if first is None else first
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    except (OSError, ValueError) as error:
        raise GatewayError(f"the gateway did not answer: {error}") from None
    if first is None:
        raise GatewayError("the answer has no text")
    return first, last, tokens


def _refusal(status: int, body: bytes) -> GatewayError:
    error = GatewayError(_message(body))
    error.status = status
    return error


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:100].decode("utf-8", "replace")


def of_gateway(found: Found, model: ModelState, config: Config, limit_s: float) -> Iterator[Finding]:
    """One answer of the running gateway. Its time includes the time in the queue."""
    try:
        first_s, total_s, tokens = ask(found, model.model, limit_s, _tokens(model.engine.device))
    except GatewayError as error:
        if error.status == 401 and not found.key:
            yield Finding("note", f"speed of {model.model}", _NO_KEY)
            return
        level: Level = "note" if error.status in _LIMITED else "bad"
        yield Finding(level, f"speed of {model.model}", error.message, "", f"{model.model}: {error.message}")
        return
    budget, device = model.breaker.budget, model.engine.device
    limit = None
    if budget:
        milliseconds = (
            budget.latency_ms + budget.prompt_token_ms * _PROMPT_TOKENS + budget.token_ms * max(0, tokens - 1)
        )
        limit = milliseconds / 1000
    yield from speed_findings(
        model.model,
        Speed(
            device=device,
            ttft_s=first_s,
            total_s=total_s,
            tokens=tokens,
            threads=_threads(config, model.model),
            limit_s=limit,
        ),
        model.engine.published_tokens_per_s,
    )


def of_engine(name: str, config: Config, limit_s: float) -> Iterator[Finding]:
    """One answer of a worker that is started for it."""
    what = f"speed of {name}"
    try:
        model = _with_its_folder(config.models[name], config)
        if model is None:
            yield Finding("note", what, "its bundle for the NPU is not built yet; `npu-gateway serve` builds it")
            return
        speed, published = asyncio.run(_generate(name, model, config, limit_s))
    except TimeoutError:
        because = f"{name} did not load and answer within {limit_s:.0f} s"
        yield Finding("bad", what, because, "load", because, "`npu-gateway serve` shows how far it gets")
    except GatewayError as error:
        known = explain(error.message)
        because = f"{name}: {known.meaning if known else error.message}"
        yield Finding("bad", what, error.message, "load", because, known.step if known else "")
    else:
        yield from speed_findings(name, speed, published)


async def _generate(name: str, model: ModelConfig, config: Config, limit_s: float) -> tuple[Speed, float | None]:
    """Load the model and answer once. Raises GatewayError, TimeoutError."""
    from gateway.engines.factory import make_engine
    from gateway.generation import Finished, Generation, Text
    from gateway.lanes.lane import Lane
    from gateway.lanes.memory.needs import budget_bytes
    from gateway.sampling import Sampling

    engine = make_engine(name, model, config.models_dir, budget_bytes(config.memory))
    lane = Lane(name, model, engine, model.breaker or config.breaker)
    try:
        async with asyncio.timeout(limit_s):
            if fault := await lane.load():
                raise GatewayError(fault)
            status = lane.engine.status
            generation = Generation(
                id="doctor",
                model=name,
                prompt=Text(_PROMPT),
                sampling=Sampling(temperature=0.0),
                max_tokens=_tokens(status.device),
                ignore_eos=True,
            )
            async with aclosing(lane.submit(generation)) as job:
                events = [event async for event in job]
    finally:
        await lane.aclose()
    finished = events[-1]
    assert isinstance(finished, Finished)
    tokens, timings = finished.usage.completion_tokens, finished.timings
    limit = job.budget.seconds(job.meter.computed_tokens, max(0, tokens - 1)) if job.budget else None
    speed = Speed(
        device=status.device,
        ttft_s=timings.ttft_s or 0.0,
        total_s=timings.total_s,
        tokens=tokens,
        threads=_threads(config, name),
        limit_s=limit,
    )
    return speed, status.published_tokens_per_s


def _with_its_folder(model: ModelConfig, config: Config) -> ModelConfig | None:
    """The model with the folder that `serve` would take. None: `serve` would build it first."""
    from gateway.bundles.stamp import plan_start
    from gateway.qnn.detect import npu_for, variant_here

    if not isinstance(model, LocalModel):
        return model
    plan = plan_start(model, config.models_dir, lambda: npu_for(model.provider) is not None)
    if not plan.folder.is_dir():
        return None
    return replace(model, path=str(variant_here(plan.folder, model.provider)))


def _threads(config: Config, name: str) -> int:
    from gateway.worker.decoders.threads import default_threads

    return getattr(config.models.get(name), "threads", 0) or default_threads()


def chosen(config: Config, ready: Sequence[str]) -> str | None:
    """The model to measure: the default one if it is among these, else the first."""
    return config.default_model if config.default_model in ready else next(iter(ready), None)

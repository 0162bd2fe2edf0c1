"""What a running gateway says of its models: loaded or not, where they run, the breaker, the queue."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from gateway import __version__
from gateway.commands.doctor.finding import Finding, Level
from gateway.commands.doctor.models import OTHER, burst
from gateway.commands.running.find import Found
from gateway.config.hosts import is_loopback
from gateway.config.limits import limits_table
from gateway.qnn.driver_errors import explain

_ANSWER_S = 5.0
_LONG_PROMPT = 1000  # tokens that no cache has
_SHORTER = "begin a new conversation, or keep the start of the prompt the same, so that the prefix cache has it"
_WAIT = "wait until the requests have ended, send fewer at once, or raise `max_sequences`"


class Passes(Struct):
    wide_s: float
    step_s: float


class EngineState(Struct):
    state: str
    detail: str = ""
    device: str = ""
    passes: Passes | None = None
    published_tokens_per_s: float | None = None
    mode_refusal: str = ""
    capabilities: tuple[str, ...] = ("chat",)


class BudgetState(Struct):
    latency_ms: float
    prompt_token_ms: float
    token_ms: float
    is_measured: bool = False


class BreakerState(Struct):
    state: str
    reason: str = ""
    retry_after_s: float = 0.0
    budget: BudgetState | None = None


class ModelState(Struct):
    """The fields of /readyz that matter here."""

    model: str
    engine: EngineState
    breaker: BreakerState
    running: int = 0
    waiting: int = 0
    cpu_nodes: int = 0  # those that run on the CPU in place of the NPU
    speed: str = ""

    def __str__(self) -> str:
        """In a few words: "ready on npu, 19.7 tokens/s, 2 waiting"."""
        if self.engine.state != "ready":
            return self.engine.state
        breaker = "" if self.breaker.state == "closed" else f"breaker {self.breaker.state.replace('_', ' ')}"
        waiting = f"{self.waiting} waiting" if self.waiting else ""
        return ", ".join(filter(None, (self._place, breaker, self.speed, waiting)))

    @property
    def _place(self) -> str:
        return "on another server" if self.engine.device == "remote" else f"ready on {self.engine.device}"


class Answer(Struct):
    """The fields of one answer in /gateway/live that matter here."""

    model: str
    status: int = 200
    ending: str = ""
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: float | None = None
    ttft_ms: float | None = None
    slow_cause: str = ""
    has_default_limit: bool = False


class KeyUse(Struct):
    """What one API key uses of its limits. "": the gateway has no keys."""

    key: str
    requests: float = 0.0
    requests_per_minute: int | None = None
    tokens: float = 0.0
    tokens_per_minute: int | None = None
    running: int = 0
    concurrent_requests: int | None = None


class Live(Struct):
    answers: list[Answer] = field(default_factory=list)
    keys: list[KeyUse] = field(default_factory=list)


class Readiness(Struct):
    models: list[ModelState] = field(default_factory=list)


def read_state(found: Found) -> Readiness | None:
    """None: no gateway answers at this address. Takes five seconds at most."""
    try:
        body = fetch(f"{found.url}/readyz", found.key, _ANSWER_S)
        return msgspec.json.decode(body, type=Readiness)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


def read_live(found: Found) -> Live:
    """The last answers of the gateway, and its keys. Empty if it does not show them, or not for this key."""
    try:
        return msgspec.json.decode(fetch(f"{found.url}/gateway/live", found.key, _ANSWER_S), type=Live)
    except (OSError, ValueError, msgspec.MsgspecError):
        return Live()


def last_answers(found: Found) -> Iterator[Finding]:
    live = read_live(found)
    yield from answer_findings(live.answers)
    yield from limit_findings(live.keys)


def limit_findings(keys: Sequence[KeyUse]) -> Iterator[Finding]:
    """The keys whose next request is refused, or nearly so."""
    for use in keys:
        limits = {
            "requests_per_minute": (use.requests, use.requests_per_minute),
            "tokens_per_minute": (use.tokens, use.tokens_per_minute),
            "concurrent_requests": (use.running, use.concurrent_requests),
        }
        for name, (used, limit) in limits.items():
            if limit is not None and used > limit - 1:
                owner = f"the API key {use.key}" if use.key else "the gateway"
                step = f"wait, or raise {name} in {limits_table(use.key)}"
                yield Finding("note", "limits", f"{owner} is at its limit of {limit} ({name}): more gets 429; {step}")


def answer_findings(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Of the last answers: the last slow one of each cause, the last error, and how many were cut."""
    last = {answer.slow_cause: answer for answer in answers if answer.slow_cause}
    if prompt := last.get("prompt"):
        computed, seconds = prompt.prompt_tokens - prompt.cached_tokens, (prompt.ttft_ms or 0.0) / 1000
        because = (
            f"{prompt.model} needed {seconds:.1f} s for {computed} new tokens of a prompt of {prompt.prompt_tokens}"
        )
        if computed >= _LONG_PROMPT:
            yield Finding("note", "long prompt", because, "context", because, _SHORTER, "slow")
    if queued := last.get("queue"):
        because = f"a request of {queued.model} waited {(queued.queue_ms or 0.0) / 1000:.1f} s for others"
        yield Finding("note", "queue", because, "busy", because, _WAIT, "slow")
    if failed := next((answer for answer in reversed(answers) if answer.status >= 500), None):
        yield Finding("note", "last error", f"{failed.model or 'no model'}: {failed.status} {failed.error}")
    cut = sum(answer.ending == "length" and answer.has_default_limit for answer in answers)
    if cut:
        detail = f"{cut} of the last {len(answers)} were cut at the default limit: set max_tokens in the client"
        yield Finding("note", "answers", detail)


def fetch(url: str, key: str, limit_s: float, body: dict[str, Any] | None = None) -> bytes:
    """GET, or POST of JSON. An answer with an error status is an answer. Raises OSError, ValueError."""
    with request(url, key, limit_s, body) as answer:
        return bytes(answer.read(1 << 22))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another program may have the port, and urllib would send the key to the address that it names."""

    def redirect_request(self, *_: object) -> None:
        return None


def request(url: str, key: str, limit_s: float, body: dict[str, Any] | None = None) -> Any:
    """The open answer, to read from. A proxy of the environment is not for this machine."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    sent = urllib.request.Request(url, data, headers)
    proxies: dict[str, str] | None = {} if is_loopback(sent.host.rpartition(":")[0]) else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies), _NoRedirect())
    try:
        return opener.open(sent, timeout=limit_s)
    except urllib.error.HTTPError as error:
        return error


def state_findings(
    found: Found, readiness: Readiness | None, *, is_named: bool = False, config_file: str = ""
) -> Iterator[Finding]:
    """Args:
    readiness: None: it does not answer.
    is_named: by `--url`, so it should run.
    config_file: the configuration of these checks.
    """
    if readiness is None:
        if found.run:
            step = "read its log, then stop it with `npu-gateway stop` and start it again"
            because = f"the gateway at {found.url} (pid {found.run.pid}) runs and does not answer"
            yield Finding("bad", "gateway", because, "busy", because, step)
        else:
            because, step = f"no gateway answers at {found.url}", "`npu-gateway serve` starts one"
            level: Level = "bad" if is_named else "note"
            yield Finding(level, "gateway", f"{because}; {step}", because=f"{because}; {step}", step="correct the URL")
        return
    version = f"npu-gateway {found.run.version}, pid {found.run.pid}" if found.run else "a gateway"
    yield Finding("ok", "gateway", f"{version} answers at {found.url}")
    if found.run and found.run.version != __version__:
        yield Finding(
            "note", "gateway", f"it is npu-gateway {found.run.version}, and {__version__} is installed: restart it"
        )
    if found.run and config_file and found.run.config_file not in ("", config_file):
        yield Finding("note", "gateway", f"it uses {found.run.config_file}, and these checks {config_file}")
    for model in readiness.models:
        yield from model_findings(model)


def model_findings(model: ModelState) -> Iterator[Finding]:
    """Of one loaded model, the reason why it refuses first."""
    what, engine = f"gateway: {model.model}", model.engine
    if engine.state in ("loading", "unloaded"):
        yield Finding("note", what, f"{engine.state} {engine.detail}".strip())
        return
    if engine.state != "ready":
        known = explain(engine.detail)
        state = "failed" if engine.state == "failed" else f"is {engine.state}"
        because = f"{model.model} {state}: {engine.detail or 'no reason was given'}"
        step = known.step if known else "the lines below, and the log of the gateway, have the reason"
        yield Finding("bad", what, because, "load", because, step)
        return
    breaker, budget = model.breaker, model.breaker.budget
    if low := low_budget(model):
        yield Finding("note", what, low, "budget", low, _MEASURED)
    if breaker.state != "closed":
        because = f"the breaker of {model.model} is {breaker.state.replace('_', ' ')}: {breaker.reason}"
        step = f"new requests are tried again in {max(breaker.retry_after_s, 0):.0f} s; `npu-gateway bench` measures"
        yield Finding("bad", what, because, "breaker", because, step)
    if engine.device == "npu":
        yield from burst(model.model, engine.mode_refusal)
    if engine.device in ("npu", "emulated") and model.cpu_nodes:
        because = f"{model.cpu_nodes} nodes of {model.model} run on the CPU"
        yield Finding("note", what, because, "partly on the CPU", because, OTHER)
    if model.waiting:
        because = f"{model.model} has {model.running} running and {model.waiting} waiting requests"
        yield Finding("note", what, because, "busy", because, _WAIT, "slow")
    if breaker.state == "closed":
        speed = f", {model.speed}" if model.speed else ""
        limit = f", limit {budget.latency_ms:.0f} ms + {budget.token_ms:.0f} ms a token" if budget else ""
        yield Finding("ok", what, f"ready on {engine.device}{speed}{limit}")


_MEASURED = "remove latency_ms, prompt_token_ms and token_ms from [breaker], so that the gateway measures them"


def low_budget(model: ModelState) -> str:
    """That the configured limit is below what the device needed at the start; "" if not, or if nothing was measured."""
    budget, passes = model.breaker.budget, model.engine.passes
    if budget is None or passes is None or budget.is_measured:
        return ""
    step_ms, wide_ms = 1000 * passes.step_s, 1000 * passes.wide_s
    limit = f"the limit in [breaker] is {budget.latency_ms:.0f} ms"
    if budget.token_ms < step_ms and budget.latency_ms < wide_ms + 64 * step_ms:
        return f"{limit} + {budget.token_ms:.0f} ms a token, and {model.model} needs {step_ms:.0f} ms a token"
    if budget.latency_ms < wide_ms:
        return f"{limit}, and one pass of {model.model} takes {wide_ms:.0f} ms"
    return ""

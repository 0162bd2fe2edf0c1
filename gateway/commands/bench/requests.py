"""Sends the requests of a measurement and times them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.commands.bench.report import Run
from gateway.commands.client import gateway_error
from gateway.errors import BreakerOpen, DeadlineExceeded, EngineFailed, InvalidRequest
from gateway.lanes.breaker import Budget
from gateway.worker.frames import PassTimes

if TYPE_CHECKING:
    from openai import APIError, OpenAI
    from openai.types import CompletionUsage


class Target:
    """One model of a gateway, and a client of it."""

    def __init__(self, client: OpenAI, url: str, model: str) -> None:
        self.client = client
        self.model = model
        self._url = url

    def card(self) -> dict[str, Any]:
        """The entry of the model list. Raises APIConnectionError, GatewayError."""
        from openai import APIStatusError

        try:
            return self.client.models.retrieve(self.model).model_dump()
        except APIStatusError as error:
            raise gateway_error(error) from error

    def limits(self) -> tuple[Budget | None, PassTimes | None]:
        """The breaker's budget (None: no breaker) and the passes of the model's start, from /readyz."""
        from openai import APIError, APIStatusError

        try:
            status: Any = self.client.get(f"{self._url}/readyz", cast_to=object)
        except APIStatusError as error:
            status = error.body  # 503: no model accepts requests now; the body is the same
        except APIError:
            return None, None
        root = self.card().get("root") or self.model
        lanes = status.get("models", []) if isinstance(status, dict) else []
        lane: dict[str, Any] = next((lane for lane in lanes if lane["model"] == root), {"breaker": {}, "engine": {}})
        budget, passes = lane["breaker"].get("budget"), lane["engine"].get("passes")
        return (
            msgspec.convert(budget, Budget) if budget else None,
            msgspec.convert(passes, PassTimes) if passes else None,
        )

    def run(self, text: str, tokens: int, *, limit_s: float, **fields: Any) -> Run:
        """Stream one chat request that generates exactly `tokens` tokens, within `limit_s`.

        Raises:
            BreakerOpen, DeadlineExceeded, InvalidRequest: as the gateway reports them.
            GatewayError: any other failure.
        """
        from openai import APIError

        arrivals: list[float] = []
        usage: CompletionUsage | None = None
        sent = time.monotonic()
        try:
            for chunk in self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": text}],
                max_tokens=tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True, **fields},
                extra_headers={"x-request-timeout-ms": str(max(1, round(limit_s * 1000)))},
            ):
                if any(_has_text(choice.delta) for choice in chunk.choices):
                    arrivals.append(time.monotonic() - sent)
                usage = chunk.usage or usage
        except APIError as error:
            raise _refusal(error) from error
        if not arrivals or usage is None:
            raise EngineFailed("The model answered without text.")
        details = usage.prompt_tokens_details
        return Run(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            tokens=usage.completion_tokens,
            first_s=arrivals[0],
            total_s=arrivals[-1],
        )


def _has_text(delta: Any) -> bool:
    return bool(delta.content or getattr(delta, "reasoning_content", None))


def _refusal(error: APIError) -> Exception:
    """The error with its class, as far as a measurement needs it."""
    from openai import APIStatusError

    plain = gateway_error(error)
    if error.code == "latency_breaker_open":
        headers = error.response.headers if isinstance(error, APIStatusError) else {}
        return BreakerOpen(plain.message, retry_after_s=float(headers.get("retry-after") or 10))
    if error.code == "deadline_exceeded":
        return DeadlineExceeded(plain.message)
    if isinstance(error, APIStatusError) and error.status_code == 400:
        return InvalidRequest(plain.message)
    return plain

"""Streamed chats, many at once, and how each of them ended as its client saw it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from msgspec import Struct

LIMIT_S = 120.0  # for one request; one that takes longer has no ending


class Outcome(Struct, kw_only=True):
    """One request. Exactly one of `is_complete`, `error` and `lost` is set, or two endings were seen."""

    number: int
    route: str = ""  # the header
    text: str = ""
    first_s: float | None = None  # to the first content
    is_complete: bool = False  # `[DONE]`
    error: str = ""  # of a status, or of the last frame
    lost: str = ""  # no ending: the connection broke, or ended, or nothing came
    after_end: int = 0  # events after the first ending

    @property
    def endings(self) -> int:
        return self.is_complete + bool(self.error) + self.after_end

    @property
    def target(self) -> str:
        return self.route.partition(";")[0]


class Traffic:
    """Args:
    url: of the gateway.
    model: that the requests name, or several in turn.
    on_content: gets the outcome so far at each event with content, before the next event is read.
    """

    def __init__(
        self, url: str, model: str | Sequence[str], on_content: Callable[[Outcome], None] = lambda _: None
    ) -> None:
        self._models = [model] if isinstance(model, str) else model
        self._url, self._on_content = url, on_content
        self.outcomes: list[Outcome] = []

    async def run(self, requests: int, at_once: int) -> list[Outcome]:
        """The outcomes in the order of the requests."""
        numbers = iter(range(requests))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=self._url, verify=False, trust_env=False, timeout=LIMIT_S, limits=limits
        ) as client:

            async def work() -> None:
                for number in numbers:
                    self.outcomes.append(await self._ask(client, number))

            await asyncio.gather(*(work() for _ in range(at_once)))
        return sorted(self.outcomes, key=lambda outcome: outcome.number)

    async def _ask(self, client: httpx.AsyncClient, number: int) -> Outcome:
        outcome, began = Outcome(number=number), time.monotonic()
        message = {"role": "user", "content": f"Request {number}"}
        body = {"model": self._models[number % len(self._models)], "messages": [message], "stream": True}
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                outcome.route = answer.headers.get("x-gateway-route", "")
                if answer.status_code != 200:
                    outcome.error = f"{answer.status_code} {(await answer.aread()).decode()}"
                    return outcome
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        self._take(outcome, line[6:], time.monotonic() - began)
        except httpx.HTTPError as error:
            outcome.lost = repr(error)
        if not outcome.endings:
            outcome.lost = outcome.lost or "the connection ended"
        return outcome

    def _take(self, outcome: Outcome, data: str, seconds: float) -> None:
        if outcome.endings:
            outcome.after_end += 1
        elif data == "[DONE]":
            outcome.is_complete = True
        else:
            self._event(outcome, json.loads(data), seconds)

    def _event(self, outcome: Outcome, event: dict[str, Any], seconds: float) -> None:
        if "error" in event:
            outcome.error = str(event["error"]["message"])
            return
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                outcome.first_s = seconds if outcome.first_s is None else outcome.first_s
                outcome.text += text
                self._on_content(outcome)


def without_ending(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that have no ending, or more than one."""
    return [outcome for outcome in outcomes if outcome.lost or outcome.endings != 1]


def failed_early(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that failed before their first content."""
    return [outcome for outcome in outcomes if not outcome.is_complete and not outcome.text]

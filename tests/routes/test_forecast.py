"""What a client hears of the first token before it comes, over a real socket; and how it asks to wait for others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config import ScriptedModel
from tests.support.server import Running, config_of, scripted, serving

CHAT = "/v1/chat/completions"
PREDICTED = "x-gateway-predicted-ttft-ms"
ONE_PLACE = ScriptedModel(
    max_sequences=1,
    aliases=("one",),
    script={"replies": ["a"], "repeat": True, "token_s": 0.01, "context_length": 100_000},
)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    models = {
        "small": scripted("small", ttft_s=0.01),
        "big": ScriptedModel(fallback="small", script={"replies": ["big"], "ttft_s": 0.4}),
        "alone": scripted("alone", ttft_s=0.4),
        "place": ONE_PLACE,
    }
    with serving(config_of(models)) as server, server.http() as client:
        yield client


def body(model: str, content: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def test_the_header_comes_with_whole_replies_and_with_streams(http: httpx.Client) -> None:
    http.post(CHAT, json=body("alone"))
    for stream in (False, True):
        predicted_ms = float(http.post(CHAT, json=body("alone", stream=stream)).headers[PREDICTED])
        assert 400 <= predicted_ms < 2000
    answer = http.post("/v1/completions", json={"model": "alone", "prompt": ["one", "two"]})
    assert 400 <= float(answer.headers[PREDICTED]) < 2000


def test_who_wants_the_first_token_sooner_is_refused_at_once(http: httpx.Client) -> None:
    http.post(CHAT, json=body("alone"))
    began = time.monotonic()
    refusals = [http.post(CHAT, json=body("alone"), headers={"x-max-ttft-ms": "100"}) for _ in range(5)]
    assert time.monotonic() - began < 5 * 0.4  # none of them waited for the device
    assert {refusal.status_code for refusal in refusals} == {503}
    assert refusals[0].json()["error"]["code"] == "first_token_too_late"
    assert "the limit for the first token is 0.1 s" in refusals[0].json()["error"]["message"]
    assert refusals[0].headers["x-should-retry"] == "false"


def test_or_has_the_fallbacks_answer_at_once(http: httpx.Client) -> None:
    http.post(CHAT, json=body("big"))
    answer = http.post(CHAT, json=body("big"), headers={"x-max-ttft-ms": "100"}).json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("small", "small")


@pytest.mark.parametrize(
    ("model", "fields", "headers"),
    [
        ("place", {}, {"x-gateway-priority": "background"}),
        ("place", {"service_tier": "flex"}, {}),
        ("place:background", {}, {}),
        ("one:background", {}, {}),
    ],
)
def test_background_work_waits_for_the_chat_however_it_is_marked(
    http: httpx.Client, model: str, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    ended: list[str] = []

    def ask(name: str, request: dict[str, Any], marks: dict[str, str]) -> None:
        assert http.post(CHAT, json=request, headers=marks).status_code == 200
        ended.append(name)

    occupied = http.stream("POST", CHAT, json=body("place", stream=True, max_tokens=50_000))
    with ThreadPoolExecutor(2) as pool, occupied as stream:  # the only place, until both of the others wait for it
        lines = stream.iter_lines()  # kept: a generator thrown away closes the connection
        wait_for_text(lines)
        pool.submit(ask, "background", body(model, max_tokens=100, **fields), headers)  # a second
        wait_for_line_of(1, http)
        pool.submit(ask, "chat", body("place", max_tokens=1), {})
        wait_for_line_of(2, http)
    assert ended == ["chat", "background"]


def wait_for_text(lines: Iterator[str]) -> None:
    """A stream's headers come while it may still wait in line itself; its first text says that it has the place."""
    while '"content":"a"' not in next(lines):
        pass


def wait_for_line_of(waiting: int, http: httpx.Client) -> None:
    until = time.monotonic() + 30
    while next(m["waiting"] for m in http.get("/readyz").json()["models"] if m["model"] == "place") < waiting:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("value", ["low", "", "BACKGROUND"])
def test_a_priority_there_is_not_is_refused(http: httpx.Client, value: str) -> None:
    answer = http.post(CHAT, json=body("place"), headers={"x-gateway-priority": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-gateway-priority")


def test_a_real_models_first_token_comes_about_when_predicted(local: Running, smollm2: Path) -> None:
    """Within a factor of 3 for at least half of the prompts: the machine may be busy with something else meanwhile."""
    with local.http() as client:

        def first_token(words: int, start: int) -> tuple[float | None, float]:
            text = " ".join(f"word{start + i}" for i in range(words))
            began = time.monotonic()
            with client.stream("POST", CHAT, json=body("smollm2", text, stream=True, max_tokens=2)) as answer:
                for line in answer.iter_lines():
                    if '"content":"' in line and '"content":""' not in line:
                        break
                seconds = time.monotonic() - began
                predicted = answer.headers.get(PREDICTED)
            return (None if predicted is None else float(predicted) / 1000), seconds

        for start, words in enumerate((5, 60, 120)):
            first_token(words, 1000 * start)
        ratios = []
        for start, words in enumerate((8, 30, 100, 150, 200), 10):
            predicted_s, seconds = first_token(words, 1000 * start)
            assert predicted_s is not None
            ratios.append(predicted_s / seconds)
        assert 1 / 3 < sorted(ratios)[2] < 3, ratios

"""LaneForecast: predicted times to first token against the times of the scripted engine, in virtual time."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import pytest

from gateway.config.tables import ScriptedModel
from gateway.errors import (
    FirstTokenTooLate,
    QueueFull,
)
from gateway.generation import Generation, Text
from gateway.lanes.lane import Lane
from tests.support.lanes import answer, answering, config, request, running
from tests.support.server import script_of
from tests.support.virtual_time import in_virtual_time, now


def chip(max_sequences: int = 1) -> ScriptedModel:
    """The published times of a chip: 131 ms for each 128 tokens of a prompt, 51 ms for a token."""
    script = script_of(replies=["a b c"], repeat=True)
    return ScriptedModel(simulate="x-elite", max_sequences=max_sequences, queue=100, script=script)


def prompt_of(tokens: int, **fields: Any) -> Generation:
    return Generation(id="r", model="test", prompt=Text("a " * (tokens - 1) + "a"), **fields)


async def predicted_and_measured(lane: Lane, generation: Generation) -> tuple[float | None, float]:
    """The predicted and the measured time to first token, in seconds."""
    began = now()
    async with aclosing(lane.submit(generation)) as job:
        async for _ in job:
            pass  # read to the end; the meter is compared below
    assert job.meter.first_token_at is not None
    return job.predicted_ttft_s, job.meter.first_token_at - began


@in_virtual_time
async def test_predicted_ttft_equals_measured_ttft() -> None:
    async with running(chip()) as lane:
        assert (await predicted_and_measured(lane, prompt_of(40)))[0] is None  # nothing was measured yet
        await answer(lane, prompt_of(300))
        for tokens in (1, 128, 129, 1500, 4000):
            predicted_s, measured_s = await predicted_and_measured(lane, prompt_of(tokens))
            assert predicted_s == pytest.approx(measured_s, rel=0.001)


@in_virtual_time
async def test_predicted_ttft_includes_admission_queue() -> None:
    async with running(chip()) as lane:
        for tokens in (40, 300):
            await answer(lane, prompt_of(tokens))
        arrivals = [(700, 60, 0.0), (10, 5, 0.5), (1300, 64, 0.6), (128, 1, 3.0), (129, 40, 3.1)]

        async def arrive(tokens: int, max_tokens: int, after_s: float) -> tuple[float | None, float]:
            await asyncio.sleep(after_s)
            return await predicted_and_measured(lane, prompt_of(tokens, max_tokens=max_tokens))

        outcomes = await asyncio.gather(*(arrive(*arrival) for arrival in arrivals))
        for predicted_s, measured_s in outcomes:
            assert predicted_s == pytest.approx(measured_s, rel=0.02)
        assert outcomes[-1][1] > 6


@in_virtual_time
async def test_predicted_ttft_is_close_with_concurrent_requests() -> None:
    dice = random.Random(0)

    async def arrive(lane: Lane) -> float:
        await asyncio.sleep(dice.random() * 600)
        generation = prompt_of(dice.randint(1, 2000), max_tokens=dice.randint(1, 100))
        predicted_s, measured_s = await predicted_and_measured(lane, generation)
        return (predicted_s or 0.0) / measured_s

    async with running(chip(max_sequences=4)) as lane:
        for tokens in (40, 300):
            await answer(lane, prompt_of(tokens))
        ratios = sorted(await asyncio.gather(*(arrive(lane) for _ in range(150))))
        assert 0.8 < ratios[75] < 1.25
        assert 0.5 < ratios[15] < ratios[135] < 2.0


@in_virtual_time
async def test_request_with_ttft_limit_below_wait_is_refused_at_once() -> None:
    async with running(config(max_sequences=1, replies=["a"], ttft_s=3.0)) as lane:
        await answer(lane)
        first = answering(lane)
        await asyncio.sleep(0.5)
        began = now()
        message = r"test is busy and would begin its answer in about 5\.5 s; the limit for the first token is 4 s\."
        with pytest.raises(QueueFull, match=message) as caught:
            await answer(lane, request(ttft_timeout_s=4.0))
        assert caught.value.retry_after_s == pytest.approx(1.5)
        assert now() == began
        await asyncio.sleep(caught.value.retry_after_s)
        await asyncio.gather(first, answer(lane, request(ttft_timeout_s=4.0001)))


@in_virtual_time
async def test_too_long_prompt_is_refused_without_retry() -> None:
    async with running(chip()) as lane:
        for tokens in (40, 300):
            await answer(lane, prompt_of(tokens))
        began = now()
        message = (
            r"test needs about 1\.0 s for the 1000 new tokens of this prompt; the limit for the first token is 0\.9 s"
        )
        with pytest.raises(FirstTokenTooLate, match=message) as caught:
            await answer(lane, prompt_of(1000, ttft_timeout_s=0.9))
        assert now() == began
        assert (caught.value.retry_after_s, caught.value.should_retry) == (None, False)
        await answer(lane, prompt_of(1000, ttft_timeout_s=1.1))


@in_virtual_time
async def test_refusals_end_after_device_is_fast_again() -> None:
    async with running(config(replies=["a"], ttft_s=[5.0] * 5 + [0.1] * 20)) as lane:
        for _ in range(5):
            await answer(lane)
        refusals = 0
        while True:
            try:
                await answer(lane, request(ttft_timeout_s=1.0))
                break
            except FirstTokenTooLate:
                refusals += 1
                await asyncio.sleep(1.0)
        assert 20 < refusals < 40
        for _ in range(10):
            await answer(lane, request(ttft_timeout_s=1.0))

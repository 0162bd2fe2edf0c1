"""The local model is busy: the model on another server answers, and says so. In virtual time, and over sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.tables import ScriptedModel, UpstreamModel
from gateway.errors import FirstTokenTooLate
from tests.support.hostile import chunk, hostile, stream
from tests.support.routing import answer_of, model, request, routing
from tests.support.server import config_of, scripted, serving
from tests.support.virtual_time import in_virtual_time, now

CHAT: dict[str, Any] = {"model": "local", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}


def local(**fields: Any) -> dict[str, ScriptedModel]:
    """A model that answers in 0.5 s, one request at a time, and one that is elsewhere."""
    first = model("local", fallback="far", ttft_timeout_s=0.7, max_sequences=1, ttft_s=0.5)
    return {"main": first, "far": model("far", **fields)}


@in_virtual_time
async def test_requests_whose_predicted_wait_is_over_the_limit_go_to_the_other_server_at_once() -> None:
    async with routing(local()) as router:
        assert await answer_of(router, request()) == ("main", "local")  # measured
        began = now()
        answers = await asyncio.gather(*(answer_of(router, request()) for _ in range(5)))
        assert sorted(answers) == [("far", "far")] * 4 + [("main", "local")]
        assert now() - began == pytest.approx(0.5)  # none of them waited for the local model in vain


@pytest.mark.parametrize("fault", ["UpstreamFailed", "QueueFull"])
@in_virtual_time
async def test_local_model_answers_late_if_the_other_server_fails(fault: str) -> None:
    async with routing(local(faults=[{"error": fault}])) as router:
        assert await answer_of(router, request()) == ("main", "local")
        answers = await asyncio.gather(*(answer_of(router, request()) for _ in range(3)))
        assert answers == [("main", "local")] * 3
        answer = await router.open(request())
        assert answer.fallback_cause == ""
        await answer.aclose()


@in_virtual_time
async def test_model_that_is_always_too_late_answers_if_the_other_server_fails() -> None:
    models = local(load_error="no")
    async with routing(models | {"main": replace(models["main"], ttft_timeout_s=0.3)}) as router:
        for _ in range(3):
            assert await answer_of(router, request()) == ("main", "local")


@in_virtual_time
async def test_limit_of_the_client_is_kept_if_the_other_server_fails() -> None:
    async with routing(local(load_error="no")) as router:
        assert await answer_of(router, request()) == ("main", "local")
        with pytest.raises(FirstTokenTooLate):
            await router.open(request(ttft_timeout_s=0.2))


def test_answer_of_the_other_server_names_it_and_the_cause() -> None:
    with hostile() as server:
        server.answer = stream(chunk(content="far"), chunk("stop"))
        models = {
            "local": replace(scripted("local", ttft_s=0.2), fallback="far", ttft_timeout_s=0.1),
            "far": UpstreamModel(url=f"http://127.0.0.1:{server.port}/v1"),
        }
        with serving(config_of(models)) as gateway, gateway.http(verify=False) as http:
            target = f"127.0.0.1:{server.port};reason=only;attempts=1"
            for cause in ("deadline_exceeded", "first_token_too_late"):
                answer = http.post("/v1/chat/completions", json=CHAT)
                assert answer.headers["x-gateway-route"] == f"{target};fallback={cause}"
                assert answer.json()["choices"][0]["message"]["content"] == "far"
            server.answer = b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"
            answer = http.post("/v1/chat/completions", json=CHAT)
            assert answer.json()["choices"][0]["message"]["content"] == "local"
            assert answer.headers["x-gateway-route"] == "local" and "x-gateway-fallback" not in answer.headers

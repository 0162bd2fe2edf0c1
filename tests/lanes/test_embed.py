"""Embeddings and scores through the lanes: the same queue, breaker, deadline and record as for a chat."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.config.tables import BreakerConfig, LocalModel, ScriptedModel
from gateway.embedding import EmbeddingRequest
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BreakerOpen, ContextLengthExceeded, InvalidRequest
from gateway.generation import Chat, Message
from gateway.lanes.embed import makes_same_vectors
from gateway.lanes.lane import Lane
from gateway.monitoring.observers import AnswerRecord
from tests.support.routing import model, request, routing
from tests.support.virtual_time import in_virtual_time


def models() -> dict[str, ScriptedModel]:
    return {"chat": model(), "vectors": model(kind="encoder"), "scores": model(kind="cross-encoder")}


def embedding(name: str = "vectors", *texts: str | tuple[int, ...], **fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest(id="req-1", model=name, inputs=texts, **fields)


@in_virtual_time
async def test_vectors_have_length_1_and_the_order_of_the_texts() -> None:
    async with routing(models()) as router:
        both = (await router.embed(embedding("vectors", "a b", "c"))).embedded
        last = (await router.embed(embedding("vectors", "c"))).embedded
        assert both.tokens == (2, 1)
        assert both.dimensions == 8
        assert bytes(both.row(1)) == last.vectors != bytes(both.row(0))
        assert math.hypot(*both.row(0)) == pytest.approx(1, abs=1e-6)


@in_virtual_time
async def test_pairs_get_scores() -> None:
    async with routing(models()) as router:
        pairs = (("red fox", "a red fox"), ("red fox", "a red car"))
        answer = await router.embed(embedding("scores", pairs=pairs))
        assert answer.embedded.scores == (1.0, 0.5)
        assert answer.prompt_tokens == sum(answer.embedded.tokens) == 10


@in_virtual_time
async def test_record_has_tokens_and_device_time() -> None:
    records: list[AnswerRecord] = []
    async with routing({"vectors": model(kind="encoder", ttft_s=0.25)}) as router:
        router.observers.add(records.append)
        answer = await router.embed(embedding("vectors", "one two", endpoint="/v1/embeddings", owner="laptop"))
        assert answer.device_s == pytest.approx(0.25)
    (record,) = records
    assert (record.ending, record.status, record.prompt_tokens, record.completion_tokens) == ("stop", 200, 2, 0)
    assert (record.endpoint, record.key, record.device_ms) == ("/v1/embeddings", "laptop", pytest.approx(250))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("chat", {}, "'chat' does not make embeddings; use vectors"),
        ("scores", {}, "'scores' does not make embeddings; use vectors"),
        ("vectors", {"pairs": (("a", "b"),)}, "'vectors' does not make scores for documents; use scores"),
        ("chat", {"pairs": (("a", "b"),)}, "'chat' does not make scores for documents; use scores or vectors"),
    ],
)
@in_virtual_time
async def test_model_of_another_kind_names_the_right_models(name: str, fields: dict[str, Any], message: str) -> None:
    async with routing(models()) as router:
        with pytest.raises(InvalidRequest, match=message):
            await router.embed(embedding(name, *([] if fields else ["a"]), **fields))


@in_virtual_time
async def test_request_without_a_name_takes_the_only_model_that_can_answer_it() -> None:
    async with routing(models()) as router:
        assert router.name_for(None, "embeddings") == "vectors"
        assert router.name_for("", "rerank", "embeddings") == "scores"
        assert router.name_for("unknown", "embeddings") == "unknown"
    two = models() | {"others": model(kind="encoder")}
    async with routing(two) as router:
        assert router.name_for(None, "embeddings") == ""
        router.config = replace(router.config, default_model="others")
        assert router.name_for(None, "embeddings") == "others"
        assert router.name_for(None, "rerank", "embeddings") == "scores"


@in_virtual_time
async def test_chat_at_an_encoder_names_the_chat_models() -> None:
    async with routing(models()) as router:
        chat = Chat(messages=(Message(role="user", content="hello"),))
        with pytest.raises(InvalidRequest, match="'vectors' does not make text; use chat"):
            await router.open(replace(request("vectors"), prompt=chat))


@in_virtual_time
async def test_long_text_is_refused_or_cut() -> None:
    async with routing({"vectors": model(kind="encoder", context_length=2)}) as router:
        with pytest.raises(ContextLengthExceeded, match=r"'input.1' has 3 tokens, and this model reads at most 2"):
            await router.embed(embedding("vectors", "a", "a b c"))
        assert (await router.embed(embedding("vectors", "a b c", truncate=True))).embedded.tokens == (2,)


@pytest.mark.parametrize("kind", ["encoder", "cross-encoder"])
@in_virtual_time
async def test_slow_requests_open_the_breaker_and_probes_of_that_kind_close_it(kind: str) -> None:
    breaker = BreakerConfig(latency_ms=1000.0, min_calls=1, open_s=5, probes=1)
    table = replace(model(kind=kind, ttft_s=[1.2, 0.1]), breaker=breaker)
    texts: dict[str, Any] = {"inputs": ("a",)} if kind == "encoder" else {"pairs": (("a", "b"),)}
    async with routing({"model": table}) as router:
        await router.embed(EmbeddingRequest(id="1", model="model", **texts))
        with pytest.raises(BreakerOpen):
            await router.embed(EmbeddingRequest(id="2", model="model", **texts))
        await asyncio.sleep(6)
        assert router.status()[0].breaker.state == "closed"


@in_virtual_time
async def test_cancelled_task_frees_the_slot() -> None:
    async with routing({"vectors": model(kind="encoder", ttft_s=[60.0, 0.1], max_sequences=1)}) as router:
        first = asyncio.create_task(router.embed(embedding("vectors", "a")))
        await asyncio.sleep(1)
        first.cancel()
        assert (await router.embed(embedding("vectors", "b"))).embedded.tokens == (1,)


@pytest.mark.parametrize(
    ("other", "same"), [("hf:org/a", True), ("hf:org/b", False), ("", False)], ids=["same", "other", "none"]
)
def test_only_the_same_source_makes_the_same_vectors(other: str, same: bool) -> None:
    first, second, third = (
        Lane(name, LocalModel(path=name, source=source), ScriptedEngine(name, model()), BreakerConfig())
        for name, source in (("float", "hf:org/a"), ("int8", other), ("none", ""))
    )
    assert makes_same_vectors(first, second) is same
    assert makes_same_vectors(third, third) and not makes_same_vectors(third, second)

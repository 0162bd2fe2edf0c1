"""GenieEngine over the real library on the emulated NPU."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from gateway.config.tables import GenieModel, LocalModel
from gateway.engines.factory import make_engine
from gateway.engines.local.genie import GenieEngine
from gateway.engines.local.process import spec_of
from gateway.errors import BundleError, ContextLengthExceeded, EngineFailed, UnsupportedParameter
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Grammar,
    Message,
    Meter,
    Prompt,
    Started,
    Text,
    TextDelta,
    TokenIds,
)
from gateway.sampling import Sampling
from tests.support.child_call import call_in_child
from tests.support.engines import event_stream, events_of, kept_loaded
from tests.support.local_engine import until, until_ready
from tests.support.npu.genie_bundle import write_genie_bundle
from tests.support.npu.genie_layouts import write_layout
from tests.support.npu.htp_compile import context_binaries, open_htp_session
from tests.support.npu.tiny_htp_decoder import TinyDecoder

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREEDY = Sampling(temperature=0.0)
CHAT = Chat(messages=(Message(role="user", content="What is the capital of France?"),))


def make(config: Path, name: str = "m", **fields: Any) -> GenieEngine:
    model = GenieModel(path=config.name, **fields)
    engine = make_engine(name, model, config.parent)
    assert isinstance(engine, GenieEngine)
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(genie_config: Path) -> AsyncIterator[GenieEngine]:
    before = set(multiprocessing.active_children())  # workers of other modules
    engine = make(genie_config)
    await engine.start()
    yield engine
    await engine.aclose()
    assert set(multiprocessing.active_children()) - before == set()


def generation(prompt: Prompt = CHAT, **fields: Any) -> Generation:
    return Generation(**{"id": "r", "model": "m", "prompt": prompt, "sampling": GREEDY, "max_tokens": 12} | fields)


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def own_answer(folder: Path, ids: list[int], count: int) -> list[int]:
    prompt_run, step_run = open_htp_session(folder / "prompt_ctx.onnx"), open_htp_session(folder / "token_ctx.onnx")
    return TinyDecoder().greedy(prompt_run, step_run, ids, count)


async def test_status_of_ready_engine(engine: GenieEngine) -> None:
    status = engine.status
    assert (status.state, status.device, status.context_length) == ("ready", "emulated", 112)
    assert status.placement == {"QNN": 2} and status.load_s > 0 and status.peak_bytes > 0
    assert status.capabilities == ("chat", "tools")
    assert status.sampling == {"temperature": 0.8, "top_k": 1, "top_p": 0.95}


async def test_chat_answer_equals_plain_greedy_loop(engine: GenieEngine, context_folder: Path) -> None:
    meter, began = Meter(), time.perf_counter()
    async with aclosing(event_stream(engine, generation(), meter)) as events:
        got = [event async for event in events]
    ids = await engine.text_tools.encode(CHAT, "")
    assert ids[0] == 1 and len(ids) > 40
    expected = await asyncio.to_thread(call_in_child, own_answer, context_folder, ids, 12)
    assert text_of(got) == await engine.text_tools.decode(expected, "")
    started, finished = got[0], got[-1]
    assert isinstance(started, Started) and started.prompt_tokens == len(ids)
    assert got[-2] == ChoiceFinished("length")
    assert isinstance(finished, Finished)
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (len(ids), 12)
    assert meter.first_token_at is not None and 0 < meter.device_s <= time.perf_counter() - began


async def test_next_turn_uses_cached_conversation(engine: GenieEngine) -> None:
    short = Chat(messages=(Message(role="user", content="Say this"),))
    first = await events_of(engine, generation(short, max_tokens=4))
    turns = (*short.messages, Message(role="assistant", content=text_of(first)), Message(role="user", content="And?"))
    again = await events_of(engine, generation(Chat(messages=turns), max_tokens=4))
    assert isinstance(again[-1], Finished)
    assert again[-1].usage.cached_tokens >= len(await engine.text_tools.encode(short, "")) - 1


async def test_stop_string_ends_answer(engine: GenieEngine) -> None:
    whole = text_of(await events_of(engine, generation(max_tokens=20)))
    events = await events_of(engine, generation(max_tokens=20, stop=(whole[3:5],)))
    assert text_of(events) == whole[: whole.index(whole[3:5])]
    assert isinstance(events[-2], ChoiceFinished) and events[-2].stop == whole[3:5]


async def test_end_token_ends_answer(engine: GenieEngine) -> None:
    events = await events_of(engine, generation(Text("The quick brown fox jumps!or not"), max_tokens=20))
    assert events[-2] == ChoiceFinished("stop")


@pytest.mark.parametrize(
    "model", [GenieModel(path="tiny"), LocalModel(path="tiny", provider="qnn")], ids=["genie", "local"]
)
async def test_bundle_limits_answers_by_its_stop_sequences_and_length(
    engine: GenieEngine, published_binaries: list[Path], tmp_path: Path, model: GenieModel | LocalModel
) -> None:
    whole = text_of(await events_of(engine, generation(Text("Say this"), max_tokens=20)))

    def change(dialog: dict[str, Any]) -> None:
        dialog |= {"stop-sequence": ["<|endoftext|>", whole[3:5]], "max-num-tokens": 15}

    write_layout(tmp_path / "tiny", "aidevhome", published_binaries, change)
    limited = make_engine("limited", model, tmp_path)
    async with kept_loaded(limited):
        assert ("logprobs" in limited.status.capabilities) is isinstance(model, LocalModel)
        assert limited.status.sampling == {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
        stopped = await events_of(limited, generation(Text("Say this"), max_tokens=20))
        assert text_of(stopped) == whole[: whole.index(whole[3:5])]
        assert stopped[-2] == ChoiceFinished("stop")  # as an end token: the client did not ask for it
        both = await events_of(limited, generation(Text("Say this"), max_tokens=20, stop=(whole[2:4],)))
        assert both[-2] == ChoiceFinished("stop", stop=whole[2:4])
        long = await events_of(limited, generation(Text("A long one"), max_tokens=30))
        assert long[-2] == ChoiceFinished("length")
        assert isinstance(long[-1], Finished) and long[-1].usage.completion_tokens == 15


async def test_prompt_file_writes_chats(engine: GenieEngine, context_folder: Path, tmp_path: Path) -> None:
    chat = Chat(messages=(Message(role="system", content="Be brief."), Message(role="user", content="Why")))
    config = write_layout(tmp_path / "home", "aidevhome", context_binaries(context_folder))
    texts = {"prompt_system": "[string]", "prompt_user": "<|im_start|> string.", "prompt_start": "A:"}
    config.with_name("prompt.json").write_text(json.dumps(texts), encoding="utf-8")
    home = make(tmp_path / "home")
    async with kept_loaded(home):
        written = Text("[Be brief.]<|im_start|> Why.A:")
        assert await home.text_tools.encode(chat, "") == await engine.text_tools.encode(written, "")
        assert text_of(await events_of(home, generation(chat))) == text_of(await events_of(engine, generation(written)))


async def test_concurrent_requests_get_same_answers_as_alone(engine: GenieEngine) -> None:
    prompts = [Text(f"Prompt number {number} is here") for number in range(4)]
    alone = [text_of(await events_of(engine, generation(prompt))) for prompt in prompts]
    together = await asyncio.gather(*(events_of(engine, generation(prompt)) for prompt in prompts))
    assert [text_of(events) for events in together] == alone


async def test_closed_stream_frees_device(engine: GenieEngine) -> None:
    async with aclosing(event_stream(engine, generation(Text("A long story about it"), max_tokens=80))) as events:
        await anext(aiter(events))
    async with asyncio.timeout(60):
        assert text_of(await events_of(engine, generation(max_tokens=2)))


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": 0}),
        ("logprobs", {"prompt_logprobs": True}),
        ("logit_bias", {"sampling": Sampling(logit_bias={5: 1.0})}),
        ("min_p", {"sampling": Sampling(min_p=0.1)}),
        ("presence_penalty", {"sampling": Sampling(presence_penalty=0.5)}),
        ("frequency_penalty", {"sampling": Sampling(frequency_penalty=-0.5)}),
        ("repetition_penalty", {"sampling": Sampling(repetition_penalty=1.1)}),
        ("dry_multiplier", {"sampling": Sampling(dry_multiplier=0.8)}),
        ("min_tokens", {"min_tokens": 3}),
        ("ignore_eos", {"ignore_eos": True}),
        ("prediction", {"prediction": "Paris"}),
        ("response_format", {"grammar": Grammar(kind="json_object")}),
    ],
)
async def test_unsupported_parameter_is_refused_by_name(
    engine: GenieEngine, param: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedParameter, match=f"Genie, which does not support '{param}'") as raised:
        await events_of(engine, generation(**fields))
    assert raised.value.param == param


async def test_worker_polls_only_if_the_table_says_so() -> None:
    assert not spec_of(GenieModel(path="m"), Path("m")).poll
    assert spec_of(GenieModel(path="m", poll=True), Path("m")).poll


async def test_too_long_prompt_is_refused(engine: GenieEngine) -> None:
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 112 tokens"):
        await events_of(engine, generation(TokenIds((7,) * 112)))
    assert text_of(await events_of(engine, generation(TokenIds(tuple(range(10, 110))), max_tokens=500)))


@pytest.mark.parametrize("content", [None, b"", b"version https://git-lfs.github.com/spec/v1\n", b"x" * 100_000])
async def test_start_with_unusable_binary_is_refused(genie_config: Path, tmp_path: Path, content: bytes | None) -> None:
    parts = [genie_config.parent / name for name in ("prompt_ctx_qnn.bin", "token_ctx_qnn.bin")]
    config = write_genie_bundle(tmp_path / "broken", parts)
    (config.parent / parts[1].name).unlink()
    if content is not None:
        (config.parent / parts[1].name).write_bytes(content)
    engine = make(config)
    with pytest.raises(BundleError) as raised:
        await engine.start()
    assert str(tmp_path) not in raised.value.message
    await engine.aclose()


async def test_start_with_invalid_configuration_is_refused(
    genie_config: Path, tmp_path: Path, context_folder: Path
) -> None:
    config = write_genie_bundle(tmp_path / "odd", context_binaries(context_folder))
    odd = json.loads(config.read_text(encoding="utf-8"))
    odd["dialog"]["context"]["size"] = 4096
    config.write_text(json.dumps(odd), encoding="utf-8")
    engine = make(config)
    with pytest.raises(BundleError, match="context->size=4096"):
        await engine.start()
    assert engine.status.state == "failed"
    await engine.aclose()


async def test_killed_worker_is_replaced(genie_config: Path) -> None:
    engine = make(genie_config, "mortal")
    async with kept_loaded(engine):
        before = text_of(await events_of(engine, generation()))
        (worker,) = (child for child in multiprocessing.active_children() if child.name == "mortal worker")
        process = psutil.Process(worker.pid)
        process.suspend()  # so that it cannot finish the request before it is killed
        task = asyncio.create_task(events_of(engine, generation()))
        await until(lambda: bool(engine._running))
        process.kill()
        with pytest.raises(EngineFailed, match="worker died"):
            await task
        await until_ready(engine)
        assert text_of(await events_of(engine, generation())) == before
        assert engine.status.restarts == 1

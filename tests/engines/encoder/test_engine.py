"""EncoderEngine with a real worker and a real prompt process: vectors, batches, cancels, and workers that fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.config.tables import LocalModel
from gateway.embedding import Embedded, Inputs
from gateway.engines.encoder.engine import EncoderEngine
from gateway.engines.encoder.request import EmbeddingRun
from gateway.errors import ContextLengthExceeded, DeviceFailed, EngineFailed, GatewayError, InvalidRequest
from gateway.generation import ChoiceFinished, Finished, Generation, Meter, Started
from gateway.worker.frames import FromWorker, Vectors
from tests.support.encoders import workers
from tests.support.encoders.models import TEXTS
from tests.support.engines import events_of, kept_loaded
from tests.support.local_engine import advance_until, until
from tests.support.manual_clock import ManualClock

pytestmark = pytest.mark.asyncio(loop_scope="module")

WATCHDOG_S = 0.2  # of the manual clock
#: The texts whose token ids are TEXTS.
WORDS = [" ".join(f"w{i}" for i in ids[1:-1]) for ids in TEXTS]


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for name in ("bert-mean", "bert-cross"):
        workers.build(folder, name)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(clock: ManualClock, bundles: Path) -> AsyncIterator[EncoderEngine]:
    model = LocalModel(path="bert-mean", threads=1, watchdog_s=WATCHDOG_S)
    engine = EncoderEngine("m", model, bundles, entry=workers.faulty, clock=clock)
    async with kept_loaded(engine):
        yield engine


def request(*texts: str | tuple[int, ...], **fields: Any) -> Generation:
    return Generation(id="r", model="m", prompt=Inputs(texts=texts, **fields), max_tokens=1)


async def embedded(engine: EncoderEngine, generation: Generation, meter: Meter | None = None) -> Embedded:
    events = await events_of(engine, generation, meter)
    started, found, ended, finished = events
    assert isinstance(started, Started) and isinstance(ended, ChoiceFinished) and isinstance(finished, Finished)
    assert isinstance(found, Embedded)
    assert finished.usage.prompt_tokens == sum(found.tokens) == started.prompt_tokens
    return found


def rows(found: Embedded) -> NDArray[np.float32]:
    return np.frombuffer(found.vectors, "<f4").reshape(len(found.tokens), found.dimensions)


REFERENCE = np.array(workers.VECTORS["bert-mean"]["rows"], np.float32)


async def test_texts_and_token_ids_give_the_reference(engine: EncoderEngine) -> None:
    meter = Meter()
    found = await embedded(engine, request(*WORDS, tuple(TEXTS[1])), meter)
    assert found.tokens == tuple(map(len, [*TEXTS, TEXTS[1]]))
    assert np.abs(rows(found) - REFERENCE[[0, 1, 2, 1]]).max() < 1e-4
    assert meter.device_s > 0 and meter.first_token_at is not None and meter.completion_tokens == 0
    assert engine.status.capabilities == ("embeddings",) and engine.status.passes is not None
    assert engine.text_tools is not None
    assert await engine.text_tools.tokenize("w7", "", begin=True, specials=False) == [3, 7, 4]


async def test_requests_at_once_share_batches_and_get_their_own_rows(engine: EncoderEngine) -> None:
    orders = [[0, 1, 2], [2, 2], [1], [1, 0, 2, 0]]
    found = await asyncio.gather(*(embedded(engine, request(*(WORDS[i] for i in order))) for order in orders))
    for order, each in zip(orders, found, strict=True):
        assert np.abs(rows(each) - REFERENCE[order]).max() < 1e-4


async def test_answer_that_cannot_be_read_fails_only_its_request(
    engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(run: EmbeddingRun, frame: FromWorker) -> None:
        raise ValueError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingRun, "take", take)
        with pytest.raises(GatewayError, match="could not be read"):
            await embedded(engine, request(WORDS[0]))
    assert (await embedded(engine, request(WORDS[0]))).tokens == (len(TEXTS[0]),)


async def test_text_of_spaces_fails_no_batch(engine: EncoderEngine) -> None:
    """Programs that split documents send them."""
    found = await embedded(engine, request(WORDS[0], " \n"))
    assert found.tokens == (len(TEXTS[0]), 2)  # the begin and end tokens
    assert np.abs(rows(found)[0] - REFERENCE[0]).max() < 1e-4


async def test_dimensions_are_cut_and_have_length_1_again(engine: EncoderEngine) -> None:
    found = await embedded(engine, request(WORDS[0], dimensions=12))
    expected = REFERENCE[0, :12] / np.linalg.norm(REFERENCE[0, :12])
    assert np.abs(rows(found)[0] - expected).max() < 1e-4
    with pytest.raises(InvalidRequest, match="have 48 dimensions") as caught:
        await embedded(engine, request(WORDS[0], dimensions=49))
    assert caught.value.param == "dimensions"


async def test_long_text_is_refused_with_its_index_or_cut(engine: EncoderEngine) -> None:
    long = " ".join(["w9"] * 100)
    with pytest.raises(ContextLengthExceeded, match=r"'input\.1' is too long: .* at most 64 tokens"):
        await embedded(engine, request("w5", long))
    with pytest.raises(ContextLengthExceeded, match=r"'input\.0' has 65 tokens"):
        await embedded(engine, request((3, *(5,) * 63, 4)))
    cut = await embedded(engine, request(long, " ".join(["w9"] * 62), truncate=True))
    own = await embedded(engine, request((3, *(9,) * 100, 4), truncate=True))
    assert cut.tokens == (64, 64) and own.vectors == bytes(cut.row(0))
    assert np.abs(rows(cut)[0] - rows(cut)[1]).max() < 1e-5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Inputs(texts=((),)), r"'input\.0' is empty"),
        (Inputs(texts=((3, 96, 4),)), "96"),
        (
            Inputs(texts=("w5", (791, 6864, 315, 13))),
            r"'input\.1' are not those of this model.*check_embedding_ctx_length",
        ),
        (Inputs(texts=((3, 5),)), r"begin with \[3\] and end with \[4\]"),
        (Inputs(texts=((3,),)), r"begin with \[3\] and end with \[4\]"),
        (Inputs(pairs=(("a", "b"),)), "makes only embeddings"),
    ],
)
async def test_wrong_inputs_are_refused(engine: EncoderEngine, inputs: Inputs, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await embedded(engine, Generation(id="r", model="m", prompt=inputs))


async def test_token_that_only_the_tokenizer_has_never_reaches_the_device(
    engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine._info is not None
    monkeypatch.setattr(engine, "_info", replace(engine._info, vocab=50))
    with pytest.raises(InvalidRequest, match=r"'input\.1' has the token 60, and the model knows only 50"):
        await embedded(engine, request("w49", "w60"))
    assert len((await embedded(engine, request("w49"))).vectors) == 4 * 48


async def test_cancelled_request_stops_between_batches(engine: EncoderEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request of the same client would come after all of its batches."""
    meter, rows_of, receive = Meter(), Counter[int](), engine._receive

    def count(frame: FromWorker) -> None:
        if isinstance(frame, Vectors):
            rows_of[frame.id] += len(frame.indices)
        receive(frame)

    monkeypatch.setattr(engine._supervisor, "_on_frame", count)
    # The pipe holds a small part of the rows, so the worker cannot send all of them while this process waits for a CPU.
    many = [tuple(TEXTS[1])] * 20_000
    task = asyncio.create_task(embedded(engine, request(*many), meter))
    await until(lambda: meter.device_s > 0)
    (cancelled,) = engine._running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine._running == {}
    await embedded(engine, request("w5"))
    assert 0 < rows_of[cancelled] < len(many)
    assert engine.status.restarts == 0


async def test_failed_call_ends_the_requests_of_the_batch_only(engine: EncoderEngine) -> None:
    with pytest.raises(DeviceFailed, match="The device failed"):
        await embedded(engine, request((3, workers.RAISE, 4)))
    assert len((await embedded(engine, request("w5"))).vectors) == 4 * 48


async def hung_request(engine: EncoderEngine) -> asyncio.Task[Embedded]:
    """A request whose device call runs and never ends."""
    task = asyncio.create_task(embedded(engine, request((3, workers.HANG, 4))))
    monitor = engine._supervisor._monitor
    assert monitor is not None
    await until(lambda: monitor.look()[0] == "in_call")
    return task


async def test_killed_worker_and_hung_worker_are_replaced(engine: EncoderEngine, clock: ManualClock) -> None:
    hung = await hung_request(engine)
    await advance_until(clock, WATCHDOG_S, hung.done)
    with pytest.raises(DeviceFailed, match="did not come back"):
        await hung
    await until(lambda: engine.status.state == "ready")

    hung = await hung_request(engine)
    assert engine.status.pid is not None
    psutil.Process(engine.status.pid).kill()
    with pytest.raises(EngineFailed, match="worker died"):
        await hung
    await until(lambda: engine.status.state == "ready")
    assert np.abs(rows(await embedded(engine, request(WORDS[0])))[0] - REFERENCE[0]).max() < 1e-4
    assert engine.status.restarts == 2


async def test_cross_encoder_scores_pairs(bundles: Path) -> None:
    engine = EncoderEngine("m", LocalModel(path="bert-cross", threads=1), bundles)
    pair = " ".join(f"w{i}" for i in TEXTS[0][1:3]), " ".join(f"w{i}" for i in (60, 61, 62))
    async with kept_loaded(engine):
        found = await embedded(engine, Generation(id="r", model="m", prompt=Inputs(pairs=(pair, pair[::-1]))))
        assert engine.status.capabilities == ("rerank",)
    assert found.tokens == (8, 8) and found.vectors == b""
    assert all(0 < score < 1 for score in found.scores) and found.scores[0] != found.scores[1]

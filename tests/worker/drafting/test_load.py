"""The draft model in a real worker process, and which models can draft for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.activity import NO_MEMORY, Activity
from gateway.errors import BundleError, EngineFailed
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.drafting.load import load_draft_model
from gateway.worker.frames import DraftLost, Ended, Failed, Loading, Ready, Submit, Tokens, WorkerSpec
from gateway.worker.main import _load_draft_model
from tests.bundles.preflight.test_draft import shift_all, with_tokenizer
from tests.support.token_loop_fixtures import GREEDY, random_ids
from tests.support.workers import SpawnedWorker

PROMPT = random_ids(20, 1)


def test_worker_answers_as_without_a_draft_model(tiny: Path, tiny_decoder: CpuDecoder) -> None:
    cache, expected = tiny_decoder.new_cache(), []
    row = tiny_decoder.prefill(cache, PROMPT)
    while len(expected) < 40:
        expected.append(int(row.argmax()))
        row = tiny_decoder.step([cache], expected[-1:])[0]
    worker = SpawnedWorker(WorkerSpec(bundle=str(tiny), threads=1, draft=str(tiny)))
    try:
        *loading, ready = worker.receive_until(Ready, Failed)
        assert any(isinstance(frame, Loading) and "draft model" in frame.stage for frame in loading)
        assert ready.draft == tiny.name
        worker.send(Submit(id=1, ids=PROMPT, sampling=GREEDY, max_tokens=40))
        frames = [frame for frame in worker.receive_until(Ended, Failed) if isinstance(frame, Tokens)]
        assert [token for frame in frames for token in frame.ids] == expected
    finally:
        worker.close()


def test_other_vocabulary_is_refused_with_the_next_step(tiny: Path, tmp_path: Path, tiny_decoder: CpuDecoder) -> None:
    small = with_tokenizer(tiny, tmp_path, shift_all)
    spec = WorkerSpec(bundle=str(tiny), draft=str(small))
    with pytest.raises(BundleError, match=r"small cannot draft for .*: only \d of its 384 tokens .* Set `draft` to a"):
        load_draft_model(spec, tiny_decoder, tiny / "tokenizer.json", Activity(), _never)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineFailed("No memory."), "No memory."),
        (MemoryError(), NO_MEMORY),
        (OSError(12, "Cannot allocate memory"), "The draft model failed: OSError. The gateway's log has the reason."),
        (ValueError("shapes"), "The draft model failed: ValueError. The gateway's log has the reason."),
    ],
    ids=["engine", "memory", "map", "shapes"],
)
def test_draft_model_that_does_not_start_is_left_out(
    tiny: Path, tiny_decoder: CpuDecoder, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("gateway.worker.main.CpuDecoder", fail)
    frames: list[Any] = []
    spec = WorkerSpec(bundle=str(tiny), draft=str(tiny))
    assert _load_draft_model(spec, tiny_decoder, tiny / "tokenizer.json", frames.append, Activity()) is None
    assert frames[-1] == DraftLost(reason)


def _never(spec: WorkerSpec) -> Any:
    raise AssertionError("the vocabularies are compared first")

from __future__ import annotations

import pytest

from gateway.worker.decoders import threads
from gateway.worker.decoders.threads import MAX_THREADS, default_encoder_threads, default_threads


def test_default_threads_are_within_limit() -> None:
    assert 1 <= default_threads() <= MAX_THREADS


@pytest.mark.parametrize(("cores", "expected"), [(0, 1), (1, 1), (2, 1), (12, 6), (64, MAX_THREADS)])
def test_encoder_leaves_half_of_the_cores_to_others(monkeypatch: pytest.MonkeyPatch, cores: int, expected: int) -> None:
    monkeypatch.setattr(threads, "_physical_cores", lambda: cores)
    assert default_encoder_threads() == expected

from __future__ import annotations

from gateway.worker.decoders.threads import MAX_THREADS, default_threads


def test_default_threads_are_within_limit() -> None:
    assert 1 <= default_threads() <= MAX_THREADS

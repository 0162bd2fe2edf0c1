"""A real decoder over a tiny model, and a token loop with a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.activity import Activity
from gateway.bundles.bundle import load_bundle
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.text.tokens import TextTokenizer
from gateway.worker.decoders.base import Decoder, DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.frames import Began, Ended, Failed, FromWorker, Prefilled, Submit, Tokens
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.sequence import Constraint
from gateway.worker.token_loop import TokenLoop
from tests.support.tiny import VOCABULARY

GREEDY = Sampling(temperature=0)
SLICE_S = 50.0  # of the simulated clock: 50 steps, as on a real device


@pytest.fixture(scope="session")
def loaded_tiny(tiny: Path) -> Iterator[CpuDecoder]:
    decoder = CpuDecoder(load_bundle(tiny), slots=4)
    yield decoder
    decoder.close()


@pytest.fixture
def tiny_decoder(loaded_tiny: CpuDecoder) -> CpuDecoder:
    """One decoder for all tests, as if no cache had been requested. Their memory has rows of other tests."""
    for cache in loaded_tiny._caches:
        cache.length = 0
    loaded_tiny._new_caches = iter(loaded_tiny._caches)
    for method in ("prefill", "step", "verify"):
        vars(loaded_tiny).pop(method, None)  # what a test has replaced
    return loaded_tiny


@pytest.fixture(scope="session")
def tokenizer_path(tiny: Path) -> Path:
    return load_bundle(tiny).tokenizer_path


@pytest.fixture(scope="session")
def tokens(tokenizer_path: Path) -> TextTokenizer:
    return TextTokenizer.load(tokenizer_path)


@pytest.fixture(scope="session")
def grammars(tokenizer_path: Path) -> Iterator[GrammarCompiler]:
    """The grammar compiler of the tiny model."""
    compiler = GrammarCompiler(tokenizer_path, VOCABULARY, (2, 0))
    yield compiler
    compiler.close()


@dataclass
class MeteredDecoder:
    """Records the calls of a decoder. A call takes 1 s, and 1 s more for each prompt token, on the simulated clock.

    Args:
        before_call: called with the kind of each call. A test can raise an error from it.
    """

    inner: Decoder
    prompt_width: int = 16
    context_length: int = 512
    is_batch_invariant: bool = True
    shared_prompt_rows: int = 0
    now: float = 0.0
    calls: list[tuple[str, int]] = field(default_factory=list)
    before_call: Callable[[str], None] = lambda kind: None

    @property
    def spec(self) -> DecoderSpec:
        return DecoderSpec(
            vocab_size=VOCABULARY,
            context_length=self.context_length,
            prompt_width=self.prompt_width,
            device="cpu",
            is_batch_invariant=self.is_batch_invariant,
            shared_prompt_rows=self.shared_prompt_rows,
        )

    def new_cache(self) -> KVCache:
        return self.inner.new_cache()

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._metered("prefill", len(ids), lambda: self.inner.prefill(cache, ids))

    def prefill_together(self, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]) -> Logits:
        """Takes as long as the prefill of one of them."""
        assert isinstance(self.inner, CpuDecoder) and len({len(each) for each in ids}) == 1
        inner = self.inner
        return self._metered(f"prefill of {len(ids)}", len(ids[0]), lambda: inner.prefill_together(caches, ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        return self._metered("step", len(ids), lambda: self.inner.step(caches, ids))

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._metered("verify", len(ids), lambda: self.inner.verify(cache, ids))

    def free_caches(self) -> None:
        self.inner.free_caches()

    def close(self) -> None:
        """Other tests use the same decoder."""

    def _metered(self, kind: str, size: int, call: Callable[[], Logits]) -> Logits:
        assert size <= self.prompt_width
        self.before_call(kind)
        self.calls.append((kind, size))
        self.now += 1 + (size if kind.startswith("prefill") else 0)
        return call()


class Bench:
    """A token loop and the frames that it has sent, with their times on the simulated clock."""

    def __init__(self, decoder: MeteredDecoder, slots: int = 4, **options: Any) -> None:
        self.decoder = decoder
        self.frames: list[FromWorker] = []
        self.times: list[float] = []
        caches = [decoder.new_cache() for _ in range(slots)]
        activity = Activity(clock=lambda: decoder.now)
        options = {"make_constraint": no_grammar, "slice_s": SLICE_S, "activity": activity, **options}
        self.loop = TokenLoop(decoder, caches, self._record, **options)
        self._next_id = 0

    def _record(self, frame: FromWorker) -> None:
        self.frames.append(frame)
        self.times.append(self.decoder.now)

    def submit(self, ids: Sequence[int], **options: Any) -> int:
        self._next_id += 1
        options = {"sampling": GREEDY, "max_tokens": 8} | options
        self.loop.submit(Submit(id=self._next_id, ids=list(ids), **options))
        return self._next_id

    def finish(self, limit: int = 10_000) -> None:
        while not self.loop.is_idle:
            self.loop.turn()
            limit -= 1
            assert limit, "the loop does not end"

    def answer(self, ids: Sequence[int], **options: Any) -> list[int]:
        request = self.submit(ids, **options)
        self.finish()
        return self.tokens(request)

    def of(self, request: int, *kinds: type) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kinds) and frame.id == request]

    def tokens(self, request: int, choice: int = 0) -> list[int]:
        return [token for frame in self.of(request, Tokens) if frame.choice == choice for token in frame.ids]

    def endings(self, request: int) -> list[Any]:
        return self.of(request, Ended, Failed)

    def cached(self, request: int) -> int:
        (began,) = self.of(request, Began)
        return int(began.cached_tokens)

    def when(self, request: int, kind: type = Tokens) -> list[float]:
        return [t for t, f in zip(self.times, self.frames, strict=True) if isinstance(f, kind) and f.id == request]


@pytest.fixture
def bench(tiny_decoder: CpuDecoder) -> Bench:
    return Bench(MeteredDecoder(tiny_decoder))


@pytest.fixture
def make_bench(tiny_decoder: CpuDecoder) -> Callable[..., Bench]:
    """Make a bench with other options. The decoder's four caches permit one bench in a test."""

    def make(slots: int = 4, **options: Any) -> Bench:
        own = {
            name: options.pop(name)
            for name in ("prompt_width", "context_length", "is_batch_invariant", "shared_prompt_rows")
            if name in options
        }
        return Bench(MeteredDecoder(tiny_decoder, **own), slots, **options)

    return make


def no_grammar(grammar: Grammar) -> Callable[[], Constraint]:
    raise AssertionError("this test has no grammar")


def random_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


__all__ = ["GREEDY", "Bench", "MeteredDecoder", "Prefilled", "random_ids"]

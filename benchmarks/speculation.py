"""Gain and loss of drafts at a billion weights: prompt lookup and a draft model, on real texts.

    python benchmarks/speculation.py [--quick] [--write docs/benchmarks.md]

The model has the shape of Llama 3.2 1B and random weights, so it would write nonsense. Its device calls are real, but
each time its choice is replaced by the next token of a real answer. The draft model is SmolLM2-135M, a real one. Each
text runs once in each way, in turn. CPU time is that of this process, so other programs change it little.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import numpy as np
from random_gguf import random_bundle
from real_texts import pairs
from report import parser, publish, table
from weights import USUAL, bundle_of

from gateway.activity import Activity
from gateway.bundles.bundle import load_bundle
from gateway.config.tables import LocalModel
from gateway.engines.local.prompts import setup_of
from gateway.generation import Chat, Message
from gateway.prompts.encoder import PromptEncoder
from gateway.prompts.messages import Encode
from gateway.sampling import Sampling
from gateway.worker.decoders.base import Decoder, DecoderSpec, KVCache, Logits
from gateway.worker.drafting.costs import CallCosts
from gateway.worker.drafting.model import DraftModel
from gateway.worker.frames import Failed, FromWorker, PassTimes, Submit, Tokens, WorkerSpec
from gateway.worker.main import open_decoder, time_passes, warm_up
from gateway.worker.token_loop import TokenLoop

WAYS = ("plain", "lookup", "lookup and draft model")
ACCEPTANCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CONTEXT = 2048


class Replay:
    """A `Decoder` that makes real calls, and whose most likely token is always the next one of `text`.

    It computes a prompt once, and copies it when it is wanted again.
    """

    def __init__(self, inner: Decoder) -> None:
        self._inner = inner
        self._prompt, self._prompt_ids = inner.new_cache(), list[int]()
        self.text: list[int] = []
        self.calls = 0

    @property
    def spec(self) -> DecoderSpec:
        return self._inner.spec

    def new_cache(self) -> KVCache:
        return self._inner.new_cache()

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        known = [*self._prompt_ids[: cache.length], *ids]
        if known != self._prompt_ids[: len(known)]:
            self._prompt.truncate(cache.length)
            self._inner.prefill(self._prompt, ids)
            self._prompt_ids = known
        cache.copy_from(self._prompt, len(known))
        row: Logits = self._with_choices(cache, np.zeros((1, self.spec.vocab_size), np.float32))[0]
        return row

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        self.calls += 1
        return self._with_choices(caches[0], self._inner.step(caches, ids))

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        self.calls += 1
        return self._with_choices(cache, self._inner.verify(cache, ids))

    def free_caches(self) -> None: ...

    def close(self) -> None: ...

    def _with_choices(self, cache: KVCache, rows: Logits) -> Logits:
        following = self.text[cache.length - len(rows) + 1 : cache.length + 1]
        rows[np.arange(len(following)), following] = 1e4
        return rows


class Passes(NamedTuple):
    """Of a warm model, in elapsed time, by which the token loop decides, and in CPU time."""

    elapsed: PassTimes
    cpu: PassTimes


@dataclass
class Run:
    """One answer: its tokens, and the times of the first and the last ones."""

    ids: list[int] = field(default_factory=list)
    began: tuple[float, float] = (0.0, 0.0)  # CPU and elapsed seconds at the first token
    cpu_s: float = 0.0
    elapsed_s: float = 0.0
    calls: int = 0
    drafted: int = 0
    right: int = 0


class Bench:
    def __init__(self, model: LocalModel | str, draft: LocalModel) -> None:
        folder = str(bundle_of(model) if isinstance(model, LocalModel) else random_bundle("1b", model))
        self.prompts = PromptEncoder(setup_of(load_bundle(bundle_of(USUAL)), ""))
        decoder, self.passes = _open(folder, len(WAYS))
        self._replay = Replay(decoder)
        small, self.small_passes = _open(str(bundle_of(draft)), len(WAYS))
        self._run, self._last_id = Run(), 0
        self._loops = {way: self._loop(way, small) for way in WAYS}

    def run(self, way: str, request: str, answer: str, tokens: int) -> Run:
        chat = Chat(messages=(Message(role="user", content=request),))
        ids = self.prompts.encode(Encode(prompt=chat, context_length=CONTEXT)).ids
        text = self.prompts.tokens.encode_continuation(answer)[:tokens]
        self._replay.text, self._run = [*ids, *text], Run()
        self._last_id += 1  # another owner: no rows are used again
        self._loops[way].submit(
            Submit(id=self._last_id, ids=ids, sampling=Sampling(temperature=0), max_tokens=len(text))
        )
        self._replay.calls = 0
        while not self._loops[way].is_idle:
            self._loops[way].turn()
        assert self._run.ids == text, "a draft has changed the answer"
        self._run.calls = self._replay.calls
        return self._run

    def _loop(self, way: str, small: Decoder) -> TokenLoop:
        activity = Activity()
        has_model = way == WAYS[2]
        caches = [small.new_cache()] if has_model else []
        model = DraftModel(small, caches, self._replay.spec.vocab_size, self.small_passes.elapsed, activity)
        return TokenLoop(
            self._replay,
            [self._replay.new_cache()],
            self._take,
            make_constraint=_no_grammar,
            prefix_cache=False,
            lookup=way != "plain",
            activity=activity,
            passes=self.passes.elapsed,
            draft_model=model if has_model else None,
        )

    def _take(self, frame: FromWorker) -> None:
        run, now = self._run, (time.process_time(), time.perf_counter())
        match frame:
            case Tokens(ids=ids):
                if not run.ids:
                    run.began = now
                run.ids += ids
                run.cpu_s, run.elapsed_s = now[0] - run.began[0], now[1] - run.began[1]
                run.drafted += frame.drafted
                run.right += frame.matched
            case Failed(message=message):
                raise SystemExit(message)


def _open(folder: str, slots: int) -> tuple[Decoder, Passes]:
    decoder = open_decoder(
        WorkerSpec(bundle=folder, provider="cpu", threads=1, max_sequences=slots + 2, context_length=CONTEXT)
    )
    cache = decoder.new_cache()
    elapsed = warm_up(decoder, [cache], time.perf_counter)
    return decoder, Passes(elapsed, time_passes(decoder, cache, time.process_time))


def _no_grammar(*_: object) -> NoReturn:
    raise AssertionError("no request here has a grammar")


def break_even(passes: PassTimes, small: PassTimes) -> list[list[str]]:
    """Rows: acceptance of each token, the best length of a draft, tokens per second relative to plain steps."""
    costs = CallCosts({}, passes.id_cost)
    costs.record_step(1, 1.0)
    step = small.step_s / passes.step_s
    rows = []
    for chance in ACCEPTANCES:
        expected = [sum(chance**i for i in range(size + 1)) for size in range(17)]
        gains = [each / (size * step + costs.verify_cost(size + 1)) for size, each in enumerate(expected)]
        best = max(range(17), key=lambda size: gains[size])
        rows.append([f"{chance:.0%}", str(best) if best else "none", f"{gains[best]:.2f}x"])
    return rows


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    tokens = 16 if arguments.quick else 100
    bench = Bench(USUAL if arguments.quick else "q4_0", USUAL)
    texts = dict([*pairs().items()][:2]) if arguments.quick else pairs()
    rows, bars = [], {}
    for kind, (request, answer) in texts.items():
        base, *others = (bench.run(way, request, answer, tokens) for way in WAYS)
        gains = {}
        for way, run in zip(WAYS[1:], others, strict=True):
            gains[way] = base.cpu_s / run.cpu_s
            elapsed, right = base.elapsed_s / run.elapsed_s, f"{run.right} of {run.drafted}"
            rows.append([kind, way, f"{gains[way]:.2f}x", f"{elapsed:.2f}x", str(run.calls), right])
        rows[1 - len(WAYS)][0] = f"{kind} ({len(base.ids)} tokens)"
        bars[f"{kind}, gain"] = gains
    passes, small = bench.passes.cpu, bench.small_passes.cpu
    how = (
        f"Real texts replayed, one thread; the answers are the same in every way. A step takes "
        f"{1000 * passes.step_s:.1f} ms of CPU time, each further token of a call {passes.id_cost:.2f} steps, a step "
        f"of the draft model {1000 * small.step_s:.1f} ms. Its time for the prompt is in its rows."
    )
    head = ["text", "way", "gain, CPU time", "gain, elapsed time", "calls", "right tokens of drafts"]
    even = table(["right tokens", "best length", "gain"], break_even(passes, small))
    publish(
        "speculation", f"{how}\n\n{table(head, rows)}\n\nExpected from these costs:\n\n{even}", bars, arguments.write
    )


if __name__ == "__main__":
    main()

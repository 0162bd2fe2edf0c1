"""Effect of scheduling, batched steps, drafts and the prefix cache on an NPU. This is a simulation, not a measurement.

    python benchmarks/npu_model.py [--quick] [--write docs/benchmarks.md]

The gateway's own token loop decides what each device call does. A call takes the published time of Llama 3.2 3B: one
pass for 128 prompt tokens, one step for one token. Only these calls move the simulated clock. Assumptions: a pass that
verifies a draft takes as long as a prompt pass. No time is published for a step of four sequences in one call. It is
between the time of a step and that of a pass, which has 32 times as many rows. Two values are simulated: a guess, and
the upper limit. The time of a narrow pass for drafts is a guess too. The draft model's steps and passes take a share of
the main model's: 0.35 has the weight bytes of Llama 3.2 1B, 0.1 those of a model of 300 million weights.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from report import parser, publish, table

from gateway.activity import Activity
from gateway.engines.scripted.script import CHIPS, Chip
from gateway.sampling import Sampling
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.drafting.model import DraftModel
from gateway.worker.frames import FromWorker, PassTimes, Submit, Tokens
from gateway.worker.schedule import SLICE_S
from gateway.worker.token_loop import TokenLoop

VOCABULARY = 997
CONTEXT = 4096
BATCH = 4  # sequences in a call, as bundles are built
NARROW, NARROW_STEPS = 8, 1.5  # rows of a narrow pass, as bundles are built, and its time


class RowCount:
    """A KVCache that has only a length."""

    def __init__(self, length: int = 0) -> None:
        self.length = length

    @property
    def nbytes(self) -> int:
        return 57_344 * self.length  # Llama 3.2 3B at 8 bits

    def snapshot(self) -> RowCount:
        return RowCount(self.length)

    def truncate(self, length: int) -> None:
        self.length = length

    def copy_from(self, other: KVCache, length: int) -> None:
        self.length = length


def next_token(token: int, position: int) -> int:
    return (token * 31 + position * 17 + 5) % VOCABULARY


class SimulatedDecoder:
    """A `Decoder` with a chip's published times. The next token depends on the last token and its position only."""

    def __init__(self, chip: Chip, batch_s: float, *, has_narrow: bool = False) -> None:
        """`batch_s`: seconds of a batched step for up to BATCH sequences; infinite if there is no batched step."""
        self.chip, self.batch_s, self.now = chip, batch_s, 0.0
        narrow = {NARROW: NARROW_STEPS} if has_narrow else {}
        self.spec = DecoderSpec(
            vocab_size=VOCABULARY,
            context_length=CONTEXT,
            prompt_width=chip.chunk_width,
            device="simulated",
            pass_costs={1: 1.0} | narrow | {chip.chunk_width: chip.chunk_s / chip.step_s},
        )

    def new_cache(self) -> RowCount:
        return RowCount()

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        last: Logits = self.verify(cache, ids)[-1]
        return last

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        width = next(width for width in self.spec.pass_costs if width >= len(ids))
        self.now += self.spec.pass_costs[width] * self.chip.step_s
        return np.stack([_advance(cache, token) for token in ids])

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        for first in range(0, len(ids), BATCH):
            self.now += min(self.batch_s, self.chip.step_s * len(ids[first : first + BATCH]))
        return np.stack([_advance(cache, token) for cache, token in zip(caches, ids, strict=True)])

    def free_caches(self) -> None: ...

    def close(self) -> None: ...


class SimulatedDraft(SimulatedDecoder):
    """The decoder of a draft model on the same chip and clock. A token of it is right with the chance `right`."""

    def __init__(self, main: SimulatedDecoder, share: float, right: float) -> None:
        chip = Chip(chunk_s=share * main.chip.chunk_s, step_s=share * main.chip.step_s)
        super().__init__(chip, math.inf)
        self._main, self._right, self._random = main, right, np.random.default_rng(1)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._spent(lambda: super(SimulatedDraft, self).prefill(cache, ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        return self._spent(lambda: super(SimulatedDraft, self).step(caches, ids))

    def _spent(self, call: Callable[[], Logits]) -> Logits:
        before, logits = self.now, call()
        self._main.now += self.now - before
        return logits if self._random.random() < self._right else np.roll(logits, 1, axis=-1)


def _advance(cache: KVCache, token: int) -> Logits:
    assert isinstance(cache, RowCount)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[next_token(token, cache.length)] = 8.0  # a probability of 0.75
    cache.length += 1
    return logits


@dataclass
class Request:
    """One request, and the simulated times in seconds at which its tokens arrived."""

    prompt: list[int]
    tokens: int
    at: float = 0.0
    background: bool = False
    prediction: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)

    @property
    def first_token_s(self) -> float:
        return self.arrivals[0] - self.at

    @property
    def tokens_per_s(self) -> float:
        return (len(self.arrivals) - 1) / (self.arrivals[-1] - self.arrivals[0])


def play(
    chip: Chip,
    requests: Sequence[Request],
    *,
    slots: int = 8,
    batch_s: float = math.inf,
    prefix_cache: bool = True,
    has_narrow: bool = False,
    draft: tuple[float, float] | None = None,
) -> None:
    """Run the requests in the token loop until all have ended. `draft`: the share and the chance of SimulatedDraft."""
    decoder = SimulatedDecoder(chip, batch_s, has_narrow=has_narrow)
    activity, model = Activity(clock=lambda: decoder.now), None
    if draft:
        small = SimulatedDraft(decoder, *draft)
        passes = PassTimes(small.chip.chunk_s, small.chip.step_s, small.chip.chunk_width)
        model = DraftModel(small, [small.new_cache() for _ in range(slots)], VOCABULARY, passes, activity)

    def emit(frame: FromWorker) -> None:
        if isinstance(frame, Tokens):
            requests[frame.id].arrivals += [decoder.now] * len(frame.ids)

    loop = TokenLoop(
        decoder,
        [decoder.new_cache() for _ in range(slots)],
        emit,
        make_constraint=_no_grammar,
        prefix_cache=prefix_cache,
        slice_s=SLICE_S if slots > 1 else math.inf,  # with one slot, requests run one after another
        activity=activity,
        draft_model=model,
    )
    waiting = sorted(range(len(requests)), key=lambda id: requests[id].at)
    while waiting or not loop.is_idle:
        if loop.is_idle:
            decoder.now = max(decoder.now, requests[waiting[0]].at)
        while waiting and requests[waiting[0]].at <= decoder.now:
            loop.submit(_frame(waiting[0], requests[waiting.pop(0)]))
        loop.turn()


def _no_grammar(*_: object) -> NoReturn:
    raise AssertionError("no request here has a grammar")


def _frame(id: int, request: Request) -> Submit:
    return Submit(
        id=id,
        ids=request.prompt,
        sampling=Sampling(temperature=0),
        max_tokens=request.tokens,
        background=request.background,
        prediction=request.prediction,
    )


def text(length: int, seed: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()
    return ids


def answer_to(prompt: Sequence[int], length: int) -> list[int]:
    """The tokens that the simulated model will generate."""
    answer, token = [], prompt[-1]
    for position in range(len(prompt) - 1, len(prompt) - 1 + length):
        token = next_token(token, position)
        answer.append(token)
    return answer


Case = tuple[str, str, float, float]  # what, unit, without, with


def cases(chip: Chip, tokens: int) -> list[Case]:
    return [
        single(chip, tokens),
        second_turn(chip),
        behind_a_long_prompt(chip),
        *(
            streams(chip, count, tokens, *price)
            for price in (("1.5 steps", 1.5 * chip.step_s), ("a whole pass", chip.chunk_s))
            for count in (2, 4, 8)
        ),
        edit(chip, tokens),
        *(
            drafting(chip, tokens, has_narrow, share, right)
            for has_narrow in (False, True)
            for share in (0.35, 0.1)
            for right in (0.6, 0.8)
        ),
        background(chip, tokens),
    ]


def single(chip: Chip, tokens: int) -> Case:
    alone = Request(text(500, 1), tokens)
    play(chip, [alone])
    return "one request, 500 prompt tokens (baseline)", "tokens/s", alone.tokens_per_s, alone.tokens_per_s


def second_turn(chip: Chip) -> Case:
    def first_token_s(prefix_cache: bool) -> float:
        first = Request(text(1000, 2), 64)
        second = Request([*first.prompt, *answer_to(first.prompt, 64), *text(30, 3)], 2, at=100.0)
        play(chip, [first, second], prefix_cache=prefix_cache)
        return second.first_token_s

    return "first token of a second turn (1064 + 30 tokens): prefix cache", "s", *_both(first_token_s)


def behind_a_long_prompt(chip: Chip) -> Case:
    def first_token_s(interleaved: bool) -> float:
        chat = Request(text(100, 4), 16, at=0.1)
        play(chip, [Request(text(3900, 5), 100), chat], slots=8 if interleaved else 1)
        return chat.first_token_s

    return "first token of a chat after a prompt of 3900 tokens: chunked prefill", "s", *_both(first_token_s)


def streams(chip: Chip, count: int, tokens: int, price: str, batch_s: float) -> Case:
    def together(shared: bool) -> float:
        requests = [Request(text(100, 10 + i), tokens) for i in range(count)]
        play(chip, requests, batch_s=batch_s if shared else math.inf)
        begun = max(request.arrivals[0] for request in requests)
        later = [arrival for request in requests for arrival in request.arrivals if arrival > begun]
        return len(later) / (max(later) - begun)

    return f"{count} streams together: batched steps of four, one costs {price}", "tokens/s", *_both(together)


def edit(chip: Chip, tokens: int) -> Case:
    def speed(predicted: bool) -> float:
        prompt = text(400, 6)
        expected = answer_to(prompt, 4 * tokens)
        changed = [
            (token + 1) % VOCABULARY if position % 50 == 25 else token for position, token in enumerate(expected)
        ]
        request = Request(prompt, 4 * tokens, prediction=changed if predicted else [])
        play(chip, [request])
        return request.tokens_per_s

    return "an edit that changes every 50th token: prediction", "tokens/s", *_both(speed)


def drafting(chip: Chip, tokens: int, has_narrow: bool, share: float, right: float) -> Case:
    def speed(drafts: bool) -> float:
        request = Request(text(400, 8), 4 * tokens)
        play(chip, [request], has_narrow=has_narrow, draft=(share, right) if drafts else None)
        return request.tokens_per_s

    graphs = "narrow passes of 1.5 steps" if has_narrow else "full passes only"
    what = f"{graphs}: draft model at {share:g} of the time, {right:.0%} of its tokens right"
    return what, "tokens/s", *_both(speed)


def background(chip: Chip, tokens: int) -> Case:
    def gap_s(yields: bool) -> float:
        batch = [Request(text(1500, 20 + i), tokens, background=yields) for i in range(3)]
        chat = Request(text(100, 7), tokens, at=0.1)
        play(chip, [*batch, chat])
        return statistics.mean(np.diff(chat.arrivals).tolist())

    return "time per token of a chat next to 3 long jobs: background priority", "s", *_both(gap_s)


def _both(measure: Callable[[bool], float]) -> tuple[float, float]:
    return measure(False), measure(True)


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    tokens = 16 if arguments.quick else 128
    found = {name: cases(chip, tokens) for name, chip in CHIPS.items()}
    rows, bars = [], {}
    for name, results in found.items():
        for what, unit, without, with_it in results:
            better = with_it / without if unit == "tokens/s" else without / with_it
            rows.append([name, what, f"{without:.3g} {unit}", f"{with_it:.3g} {unit}", f"{better:.2f}x"])
            if without != with_it:
                bars[f"{name}: {what.split(':')[-1].strip()}, {unit}"] = {"without": without, "with": with_it}
    note = (
        "**Simulated** by `python benchmarks/npu_model.py` from the published times, without a device. The cost of a "
        "batched step of four sequences is not published: a guess and the upper limit are simulated."
    )
    head = ["chip", "what", "without", "with", "better by"]
    publish("npu_model", f"{note}\n\n{table(head, rows)}", bars, arguments.write)


if __name__ == "__main__":
    main()

"""Drafts from a small model with the same vocabulary (`draft` in a model's table).

1. The small model has a cache for each sequence. It lags behind: after an accepted draft by one or two tokens, after a
   prompt by all of it. More than a few tokens are computed in chunks, one between two calls of the main model.
2. The length of a draft follows from the costs of all calls and from two chances: that of the request so far, and that
   of each token, by the probability that the small model gives it.
3. `Credit` limits what wrong drafts can lose, also if no chance is as expected.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gateway.activity import Activity
from gateway.worker.decoders.base import Decoder, KVCache, Logits
from gateway.worker.drafting.costs import LOSS, MARGIN, CallCosts, Credit, update
from gateway.worker.frames import PassTimes
from gateway.worker.slots import Slot, SlotPool

_MOST = 16  # tokens of a draft
_LAG = 4  # tokens that belong to the cost of a draft; more are an investment
#: The chance of a right token before anything is known, high, so that it is tried; and the guesses that it counts for.
_CHANCE, _CHANCE_WEIGHT = 0.85, 10.0
_FORGET = 0.985  # the weight of a guess halves after 45 further guesses
_SURPRISE = 4.0  # a call counts for at most this many times what is expected: other programs can delay it
_PAUSE = 0.995  # the same for a step without a guess: a small model that was of no use is tried again
_BUCKETS, _DECAY = 8, 0.99
_FIRST_CREDIT, _MOST_CREDIT = 32.0, 256.0  # of all sequences, in single steps of the main model
_TRACK_CREDIT, _MOST_TRACK_CREDIT = 4.0, 16.0  # of one sequence, without its prompt


@dataclass(eq=False)
class _Track:
    """The small model's view of one sequence."""

    slot: Slot
    usual: float  # the chance in earlier sequences
    credit: Credit = field(default_factory=lambda: Credit(_TRACK_CREDIT, _MOST_TRACK_CREDIT))
    made: float = 0.0  # guesses whose predecessors were right; older ones count less
    right: float = 0.0  # the right ones of them
    spent_s: float = 0.0  # on the draft that is being verified
    #: The tokens of the last draft, also those that were not verified, with the buckets of their probabilities.
    guesses: list[tuple[int, int]] = field(default_factory=list)
    guessed_at: int = 0  # position of the first one

    @property
    def chance(self) -> float:
        """That a drafted token is right, if all before it are."""
        return (self.right + self.usual * _CHANCE_WEIGHT) / (self.made + _CHANCE_WEIGHT)

    def count(self, is_right: bool) -> None:
        self.right, self.made = self.right * _FORGET + is_right, self.made * _FORGET + 1

    def pause(self) -> None:
        self.right, self.made = self.right * _PAUSE, self.made * _PAUSE

    @property
    def cache(self) -> KVCache:
        return self.slot.cache


class DraftModel:
    """Drafts for the sequences of one token loop. All errors of its decoder leave it as DeviceFailed.

    Args:
        decoder: of the small model.
        caches: of that decoder, one for each sequence that can run.
        vocab_size: of the main model.
        passes: times of the warm small model.
        activity: times the calls.
    """

    def __init__(
        self, decoder: Decoder, caches: Sequence[KVCache], vocab_size: int, passes: PassTimes, activity: Activity
    ) -> None:
        self._decoder, self._pool = decoder, SlotPool(caches)
        self._vocab_size = min(vocab_size, decoder.spec.vocab_size)
        self._activity = activity
        #: Seconds of a step, and of a token in a chunk.
        self._times = {"step": passes.step_s, "row": passes.wide_s / passes.wide_tokens}
        self._tracks: dict[Hashable, _Track] = {}
        self._usual_chance = _CHANCE
        self._right = [(bucket + 0.5) / _BUCKETS for bucket in range(_BUCKETS)]
        self._guesses = [1.0] * _BUCKETS
        self._credit = Credit(_FIRST_CREDIT, _MOST_CREDIT)

    # -- for the token loop -------------------------------------------------------------------------------------------

    def draft(
        self, sequence: Hashable, ids: Sequence[int], owner: str, left: int, costs: CallCosts, rate: float
    ) -> list[int]:
        """Up to `left` tokens that can come next; empty if `rate` tokens per second are possible without a draft.

        It makes calls of the small model. `settle` must follow a draft.

        Args:
            sequence: whose tokens `ids` are. `ids` is the same list in each call, and grows.
            owner: see SlotPool.take.
            costs: of the main model.
        """
        limit = min(left, self._decoder.spec.context_length - len(ids), _MOST)
        if limit <= 0 or not rate:
            return []
        track = self._track(sequence, ids, owner)
        self._learn(track, ids)
        missing = ids[track.cache.length :]
        planned = self._planned_rate(track.chance, limit, costs)
        lag_cost = max(0, len(missing) - _LAG) * self._times["row"] * rate  # in single steps
        gain = left * (1 - rate / planned)
        is_worth = planned > rate * MARGIN and gain >= lag_cost
        if not is_worth or track.credit.steps <= 0 or self._credit.steps < lag_cost or not self._knows(missing):
            track.pause()
            self._settle(track, LOSS, 0.0)
            return []
        track.spent_s = 0.0
        if len(missing) > self._decoder.spec.prompt_width:
            self._call(track, missing[: self._decoder.spec.prompt_width])
            self._credit.settle(0.0, track.spent_s * rate)
            return []
        return self._generate(track, missing, limit, costs, max(rate, planned))

    def settle(self, sequence: Hashable, ids: Sequence[int], accepted: int, seconds: float, rate: float) -> None:
        """A draft was verified.

        Args:
            ids: the tokens of the sequence now. After a draft, all of them but the last can be in the cache.
            accepted: the number of right tokens of the draft.
            seconds: the main model's call, as expected.
            rate: tokens per second without drafts.
        """
        track = self._tracks[sequence]
        track.cache.truncate(min(track.cache.length, len(ids) - 1))
        self._settle(track, accepted + 1, (seconds + track.spent_s) * rate)

    def keep(self, is_running: Callable[[Any], bool]) -> None:
        """Free the caches of the sequences that run no longer."""
        for sequence in [each for each in self._tracks if not is_running(each)]:
            track = self._tracks.pop(sequence)
            self._usual_chance += (track.chance - self._usual_chance) / 4
            self._pool.release(track.slot)  # only rows of its `ids` can be used again

    def free_cache(self) -> None:
        """Drop all rows, and give their memory back. No sequence runs."""
        self._tracks.clear()
        self._pool.clear()
        self._decoder.free_caches()

    def close(self) -> None:
        self._decoder.close()

    # -- one draft ----------------------------------------------------------------------------------------------------

    def _track(self, sequence: Hashable, ids: Sequence[int], owner: str) -> _Track:
        if sequence not in self._tracks:
            slot = self._pool.take(ids, owner)
            self._usual_chance += (_CHANCE - self._usual_chance) / 16  # so that it is tried again at times
            self._tracks[sequence] = _Track(slot, self._usual_chance)
        return self._tracks[sequence]

    def _learn(self, track: _Track, ids: Sequence[int]) -> None:
        """Compare the last guesses with what came. Those that were not verified count too: else a small model that is
        too modest would never get the chance to be right."""
        for position, (token, bucket) in enumerate(track.guesses, track.guessed_at):
            if position >= len(ids):
                break
            is_right = ids[position] == token
            self._right[bucket] = self._right[bucket] * _DECAY + is_right
            self._guesses[bucket] = self._guesses[bucket] * _DECAY + 1
            track.count(is_right)
            if not is_right:
                break
        track.guesses = []

    def _settle(self, track: _Track, tokens: float, cost: float) -> None:
        for credit in (track.credit, self._credit):
            credit.settle(tokens, cost)

    def _knows(self, ids: Sequence[int]) -> bool:
        """False if the small model has not all of these tokens. Models of a family often differ in unused ones."""
        return max(ids, default=0) < self._decoder.spec.vocab_size

    def _planned_rate(self, chance: float, limit: int, costs: CallCosts) -> float:
        """Tokens per second of drafts whose tokens are right with this chance, for the best length."""
        best, expected, likely = 0.0, 1.0, 1.0
        for size in range(1, limit + 1):
            likely *= chance
            expected += likely
            best = max(best, expected / (size * self._times["step"] + costs.verify_cost(size + 1)))
        return best

    def _generate(self, track: _Track, missing: Sequence[int], limit: int, costs: CallCosts, rate: float) -> list[int]:
        """Draft as long as the next tokens are expected to gain time, then keep the best part. May be empty."""
        draft: list[int] = []
        known = track.guessed_at = track.cache.length + len(missing)
        likely, expected = 1.0, [1.0]
        while True:
            logits = self._call(track, missing if not draft else draft[-1:])
            token, bucket = _best(logits[: self._vocab_size])
            likely *= self._right[bucket] / self._guesses[bucket]
            draft.append(token)
            track.guesses.append((token, bucket))
            expected.append(expected[-1] + likely)
            if len(draft) == limit or not self._is_worth_more(expected, likely, track.chance, limit, costs, rate):
                break
        size = max(range(len(expected)), key=lambda size: expected[size] - rate * costs.verify_cost(size + 1))
        if not size:
            track.cache.truncate(known)
            self._settle(track, 0.0, track.spent_s * rate)
        return draft[:size]

    def _is_worth_more(
        self, expected: Sequence[float], likely: float, chance: float, limit: int, costs: CallCosts, rate: float
    ) -> bool:
        """True if some number of further tokens is expected to gain more than it costs, at `rate` tokens per second."""
        drafted = len(expected) - 1
        now = max(each - rate * costs.verify_cost(size + 1) for size, each in enumerate(expected))
        more = expected[-1]
        for size in range(drafted + 1, limit + 1):
            likely *= chance
            more += likely
            if more - rate * ((size - drafted) * self._times["step"] + costs.verify_cost(size + 1)) > now:
                return True
        return False

    def _call(self, track: _Track, ids: Sequence[int]) -> Logits:
        """Append tokens to the small model's cache. Returns the logits after the last one."""
        with self._activity.device_call() as call:
            if len(ids) == 1:
                logits: Logits = self._decoder.step([track.cache], ids)[0]
            else:
                logits = self._decoder.prefill(track.cache, ids)
        expected = max(self._times["step"], self._times["row"] * len(ids))
        if len(ids) == 1:
            update(self._times, "step", call.seconds)
        elif len(ids) > _LAG:
            update(self._times, "row", call.seconds / len(ids))
        track.spent_s += min(call.seconds, _SURPRISE * expected)
        return logits


def _best(logits: Logits) -> tuple[int, int]:
    """The most likely token, and the bucket of its probability."""
    token = int(logits.argmax())
    probability = 1 / float(np.exp(logits - logits[token]).sum())
    return token, min(int(probability * _BUCKETS), _BUCKETS - 1)

"""The requests of a measurement, in their order, within a limit of time.

The report is filled while the requests run, so a measurement that is stopped keeps what it has.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec import Struct

from gateway.commands.bench.report import Answers, Grammar, Prefill, Report, Run
from gateway.errors import BreakerOpen, DeadlineExceeded, InvalidRequest

SIZES = (8, 16, 32, 64, 128)  # new tokens, as the measurement on which the gateway is based
LENGTHS = (64, 256, 1024, 4096, 16384)  # prompt tokens
_ANY_TEXT = "start: /(?s:.*)/"
_GRAMMAR_TOKENS = 32
_BREAKER_TRIES = 3
_WORDS = ("sea", "ship", "wind", "harbour", "sailor", "rope", "mast", "wave", "island", "lantern", "captain", "tide")
_QUESTION = "Which of these words comes last?"
_WORD_TOKENS = 1.3  # until it is measured


class Plan(Struct, frozen=True, kw_only=True):
    sizes: Sequence[int] = SIZES
    lengths: Sequence[int] = LENGTHS[:3]
    runs: int = 2
    limit_s: float = 300.0

    @property
    def requests(self) -> int:
        return len(self.sizes) * self.runs + len(self.lengths) * (self.runs + 1) + 2 * self.runs + 1


class Asks(Protocol):
    """What a measurement needs of `requests.Target`."""

    def run(self, text: str, tokens: int, *, limit_s: float, **fields: Any) -> Run: ...


class Measurement:
    """Fills `report`.

    Args:
        show: called with a line for the user before each request.
        clock, sleep: in seconds.
    """

    def __init__(
        self,
        target: Asks,
        report: Report,
        plan: Plan,
        show: Callable[[str], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._target = target
        self._report = report
        self._plan = plan
        self._show = show
        self._clock = clock
        self._sleep = sleep
        self._ends_at = clock() + plan.limit_s
        self._done = 0
        self._random = random.Random(time.time_ns())
        self._known = (0, 0)  # words and tokens of a prompt that was sent
        self._word_tokens = _WORD_TOKENS

    def run(self) -> None:
        """Send every request. Raises GatewayError for a failure that is no limit of time and no open breaker."""
        try:
            self._answers()
            self._prefill()
            self._grammar()
        except DeadlineExceeded:
            self._report.stopped = (
                f"The limit of {self._plan.limit_s:g} s was reached; `--seconds` sets another, "
                "`--max-tokens` and `--prompt-tokens` measure less."
            )
        except BreakerOpen as error:
            self._report.stopped = f"The circuit breaker refuses requests: {error.message}"

    def _answers(self) -> None:
        for size in self._plan.sizes:
            answers = Answers(new_tokens=size)
            self._report.answers.append(answers)
            question = f"{' '.join(self._random.choices(_WORDS, k=5))}: write about the sea."  # in no cache
            for number in range(self._plan.runs):
                answers.runs.append(self._send(f"{size} new tokens, run {number + 1}", question, size))
            self._known = (len(question.split()), answers.runs[0].prompt_tokens)

    def _prefill(self) -> None:
        context = self._report.context_length
        for length in self._plan.lengths:
            if context and length >= context:
                return
            prefill = Prefill(length=length)
            words = max(1, self._known[0] + round((length - self._known[1]) / self._word_tokens))
            try:
                for _ in range(self._plan.runs):
                    prompt = self._prompt(words)
                    prefill.runs.append(self._send(f"prompt of {length} tokens", prompt, 1))
                    if len(prefill.runs) == 1:
                        self._report.prefill.append(prefill)
                prefill.again = self._send(f"prompt of {length} tokens, from the cache", prompt, 1)
            except InvalidRequest:  # longer than the context, which a server need not report
                return
            self._learn(len(prompt.split()), prefill.runs[0].prompt_tokens)

    def _learn(self, words: int, tokens: int) -> None:
        """The tokens of a word, from two prompts: the chat template adds the same to both."""
        if words > self._known[0]:
            self._word_tokens = max(0.5, (tokens - self._known[1]) / (words - self._known[0]))
            self._known = (words, tokens)

    def _grammar(self) -> None:
        """The first request with a grammar compiles it and does not count. A model may not support grammars."""
        tokens = min(_GRAMMAR_TOKENS, max(self._plan.sizes))
        question = "Write about the sea."
        grammar = Grammar()
        try:
            self._send("a grammar is compiled", question, tokens, guided_grammar=_ANY_TEXT)
        except InvalidRequest:
            return
        self._report.grammar = grammar
        for _ in range(self._plan.runs):
            grammar.plain.append(self._send("without a grammar", question, tokens))
            grammar.constrained.append(self._send("with a grammar", question, tokens, guided_grammar=_ANY_TEXT))

    def _send(self, label: str, text: str, tokens: int, **fields: Any) -> Run:
        """One request. While the breaker is open, wait as long as it says, a few times. Raises GatewayError."""
        self._done += 1
        for attempt in range(1, _BREAKER_TRIES + 1):
            remaining_s = self._ends_at - self._clock()
            if remaining_s <= 0:
                raise DeadlineExceeded("The measurement took too long.")
            self._show(f"{self._done} of {self._plan.requests}: {label}, at most {remaining_s:.0f} s left")
            try:
                return self._target.run(text, tokens, limit_s=remaining_s, **fields)
            except BreakerOpen as error:
                wait_s = error.retry_after_s or 1.0
                if attempt == _BREAKER_TRIES or wait_s > remaining_s:
                    raise
                self._show(f"the circuit breaker is open: the next try is in {wait_s:.0f} s")
                self._sleep(wait_s)
        raise AssertionError

    def _prompt(self, words: int) -> str:
        """Words in random order: no cache has them."""
        return " ".join([_QUESTION, *self._random.choices(_WORDS, k=max(1, words - len(_QUESTION.split())))])

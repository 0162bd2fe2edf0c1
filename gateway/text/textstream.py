"""Streaming search for stop sequences and for a dialect's markers, in text that arrives in pieces.

Text is delivered as soon as no pattern can begin in it. The match that begins first wins; of two that begin at the same
character, the shorter one. The result does not depend on how the text is cut into pieces. There is one
Knuth-Morris-Pratt automaton per pattern, so the cost is linear in the length of the text times the number of patterns.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


class TextStream:
    """Searches for `patterns` (non-empty strings) in the text that `push` receives.

    After a match the rest of the text is held back. The next `push` (of "" if there is no new text) continues behind
    the match, with the patterns that `set_patterns` set in between.

        stream = TextStream(["END"])
        stream.push("the E")    # ("the ", None): "E" is held back
        stream.push("ND more")  # ("", "END")
        stream.push("")         # (" more", None)
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._held = ""  # not yet delivered, as text or as a match
        self.set_patterns(patterns)

    def set_patterns(self, patterns: Iterable[str]) -> None:
        """Search for these patterns from now on, also in the text that is held back."""
        self._patterns = tuple(dict.fromkeys(patterns))
        self._firsts = frozenset(pattern[0] for pattern in self._patterns)
        self._restart()

    def push(self, text: str) -> tuple[str, str | None]:
        """Take `text`. Return the text that can be delivered, and the pattern that follows it if one matched."""
        if not self._held and self._firsts.isdisjoint(text):
            return text, None
        self._held += text
        if self._scan():
            return self._cut()
        safe = len(self._held) - max(self._matched, default=0)
        if self._found is not None:
            safe = min(safe, self._found[0])
        return self._deliver(safe), None

    def finish(self) -> tuple[str, str | None]:
        """End the text. Return what was held back, up to the next match. Call again while it returns a match."""
        self._scan()
        if self._found is not None:
            return self._cut()
        rest, self._held = self._held, ""
        self._restart()
        return rest, None

    def _restart(self) -> None:
        self._scanned = 0  # characters of `_held` that the automata have read
        self._matched = [0] * len(self._patterns)  # per pattern: length of its prefix that ends at `_scanned`
        self._found: tuple[int, str] | None = None  # best match so far: its start in `_held`, its pattern

    def _scan(self) -> bool:
        """Read until a match is certain: no pattern that begins before it can still match."""
        while self._scanned < len(self._held):
            if self._certain():
                return True
            self._advance(self._held[self._scanned])
        return self._certain()

    def _certain(self) -> bool:
        return self._found is not None and self._scanned - max(self._matched) >= self._found[0]

    def _advance(self, character: str) -> None:
        self._scanned += 1
        for i, pattern in enumerate(self._patterns):
            fallback, matched = _fallbacks(pattern), self._matched[i]
            while matched and pattern[matched] != character:
                matched = fallback[matched - 1]
            matched += pattern[matched] == character
            if matched == len(pattern):
                start = self._scanned - matched
                if self._found is None or start < self._found[0]:
                    self._found = (start, pattern)
                matched = fallback[matched - 1]
            self._matched[i] = matched

    def _cut(self) -> tuple[str, str]:
        assert self._found is not None
        start, pattern = self._found
        text, self._held = self._held[:start], self._held[start + len(pattern) :]
        self._restart()
        return text, pattern

    def _deliver(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._scanned -= count
        if self._found is not None:
            self._found = (self._found[0] - count, self._found[1])
        return text


@lru_cache(maxsize=256)
def _fallbacks(pattern: str) -> tuple[int, ...]:
    """Failure function of Knuth-Morris-Pratt: per prefix, the length of its longest proper prefix that is a suffix."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        length += pattern[i] == pattern[length]
        table[i] = length
    return tuple(table)

"""Text that arrives in pieces, searched for strings that must not leak: stop sequences and a dialect's markers.

Text is delivered as soon as no pattern can begin in it. The match that begins earliest wins, the shorter one where two
begin together, whatever the pieces: the same text always gives the same cut. One Knuth-Morris-Pratt automaton a
pattern: the cost is linear in the text times the number of patterns, however often a pattern nearly matches.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


class TextStream:
    """Searches for `patterns` (non-empty strings) in what `push` is given.

    After a match the text behind it waits; the next `push` (of "", if there is nothing new) goes on behind the match,
    with the patterns that `look_for` set meanwhile.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._held = ""  # delivered neither as text nor as a match
        self.look_for(patterns)

    def look_for(self, patterns: Iterable[str]) -> None:
        """Search for these from here on, in what is held as well."""
        self._patterns = tuple(dict.fromkeys(patterns))
        self._firsts = frozenset(pattern[0] for pattern in self._patterns)
        self._restart()

    def push(self, text: str) -> tuple[str, str | None]:
        """Take `text`: what can be delivered now, and the pattern that follows it when one matched."""
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
        """The text is over: what was held back, up to the next match. Call again while it returns a match."""
        self._scan()
        if self._found is not None:
            return self._cut()
        rest, self._held = self._held, ""
        self._restart()
        return rest, None

    def _restart(self) -> None:
        self._scanned = 0  # characters of `_held` the automata have seen
        self._matched = [0] * len(self._patterns)  # how much of each pattern ends at `_scanned`
        self._found: tuple[int, str] | None = None  # the best match so far: where it begins in `_held`, and which

    def _scan(self) -> bool:
        """Read on until a match is certain: nothing that began before it can still match."""
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
    """For each prefix of `pattern`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        length += pattern[i] == pattern[length]
        table[i] = length
    return tuple(table)

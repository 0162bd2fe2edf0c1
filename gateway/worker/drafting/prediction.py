"""Drafts from the text that the client expects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_FIRST_WIDTH = 8
_MIN_WIDTH = 4  # a call that verifies 2 to 5 tokens costs about as much as two single steps


class PredictionIndex:
    """The tokens of a prediction and where they occur. All choices of a request share one.

    Args:
        text: the tokens of the prediction.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self.text = list(text)
        self._pairs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # -> positions after the pair
        self._singles: defaultdict[int, list[int]] = defaultdict(list)
        for position, token in enumerate(text):
            self._singles[token].append(position + 1)
            if position:
                self._pairs[text[position - 1], token].append(position + 1)

    def positions_after(self, previous: int | None, token: int) -> Sequence[int]:
        """The positions after this pair of tokens; else the position after `token` if the text has it only once."""
        found = self._pairs.get((previous, token), []) if previous is not None else []
        singles = self._singles.get(token, [])
        return found or (singles if len(singles) == 1 else [])


class PredictionDrafter:
    """Drafts from the client's predicted text (`prediction`), also past edits.

    While the answer agrees with the text, the next tokens of the text are the draft. After a difference, the drafter
    finds the position again by the last two tokens, or by one token that the text has only once. Of several positions
    it takes the nearest one ahead. The width doubles when all of a draft was right; else it shrinks to the right part.
    """

    def __init__(self, index: PredictionIndex) -> None:
        self._index, self._text = index, index.text
        self._next = 0  # position in the text of the next draft; the text's end if the position is unknown
        self._followed = 0  # position up to which the answer has followed the text
        self._width = _FIRST_WIDTH
        self._previous: int | None = None

    def draft(self, limit: int) -> Sequence[int]:
        """Up to `limit` tokens that can come next; empty if the position in the text is unknown."""
        return self._text[self._next : self._next + min(self._width, limit)]

    def follow(self, token: int) -> None:
        """Append a token to the answer."""
        if self._text[self._next : self._next + 1] == [token]:
            self._next += 1
            self._followed = self._next
        else:
            self._next = self._position_after(token)
        self._previous = token

    def record(self, drafted: int, accepted: int) -> None:
        """Adapt the width to the number of right tokens in the last draft."""
        self._width = self._width * 2 if accepted == drafted else max(_MIN_WIDTH, accepted)

    def _position_after(self, token: int) -> int:
        found = self._index.positions_after(self._previous, token)
        ahead = [position for position in found if position >= self._followed]
        return min(ahead) if ahead else max(found, default=len(self._text))

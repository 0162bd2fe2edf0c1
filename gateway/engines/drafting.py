"""Guessing the next tokens from a text that the answer is expected to follow; the model then checks many at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_FIRST_WIDTH = 8
_LEAST_WIDTH = 4  # verifying 2 to 5 tokens costs about the same, two single steps (see decoder.py)


class PredictionDrafter:
    """Follows an answer through its predicted text (`prediction`), also past edits.

    While the answer agrees with the text, the text's next tokens are the draft. Where it departs, the drafter waits
    until the last two tokens, or one that the text has only once, are found again; the nearest place ahead counts.
    Drafts double while they are wholly right and shrink to what was right when they are not.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._text = list(text)
        self._next = 0  # the place in the text that comes next; its end when the answer is elsewhere
        self._followed = 0  # the place up to which the answer is known to have followed
        self._width = _FIRST_WIDTH
        self._previous: int | None = None
        self._pairs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # -> places right after the pair
        self._singles: defaultdict[int, list[int]] = defaultdict(list)
        for place, token in enumerate(text):
            self._singles[token].append(place + 1)
            if place:
                self._pairs[text[place - 1], token].append(place + 1)

    def draft(self, most: int) -> Sequence[int]:
        """At most `most` tokens that may come next; empty when there is nothing to go by."""
        return self._text[self._next : self._next + min(self._width, most)]

    def follow(self, token: int) -> None:
        """The answer goes on with this token."""
        if self._text[self._next : self._next + 1] == [token]:
            self._next += 1
            self._followed = self._next
        else:
            self._next = self._place_after(token)
        self._previous = token

    def learn(self, drafted: int, accepted: int) -> None:
        """So many tokens of the last draft were right."""
        self._width = self._width * 2 if accepted == drafted else max(_LEAST_WIDTH, accepted)

    def _place_after(self, token: int) -> int:
        places = self._pairs.get((self._previous, token), []) if self._previous is not None else []
        if not places and len(self._singles.get(token, [])) == 1:
            places = self._singles[token]
        ahead = [place for place in places if place >= self._followed]
        return min(ahead) if ahead else max(places, default=len(self._text))

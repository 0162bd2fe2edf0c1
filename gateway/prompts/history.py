"""Context policy: which messages of a conversation are left out if it does not fit into the context.

1. The oldest turns go first. A turn begins with a message of the user. Then the oldest calls of the newest turn go,
   each with its results: an agent works for one message of the user in many calls.
2. System text stays, and the messages of the user in the newest turn, and what follows the last call.
3. Turns go in steps of about a quarter of the context. So the next requests of a conversation leave out the same
   messages, and the prefix cache can use the rest. The steps are counted from the first message, so they need no state.
   Smaller steps are used only if no large one fits.

`histories` lists what is possible, longest first. Each has fewer messages than the one before, so a binary search finds
the longest one that fits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

from gateway.generation import Message

#: A prompt with more characters for each token of the context is too long; it is not rendered. Text has 3 to 6.
MAX_CHARACTERS_PER_TOKEN = 16


class Histories:
    """The possible histories of a conversation, by number: 0 has all messages, the last one has the fewest.

    histories = Histories(chat.messages, step=4096)
    number = histories.longest(lambda number: fits(histories.messages(number)))

    Args:
        step: characters that are left out together if possible.
    """

    def __init__(self, messages: Sequence[Message], step: int) -> None:
        self._messages = messages
        self._newest = _newest_user_messages(messages)
        self._sizes = list(accumulate((_characters(message) for message in messages), initial=0))
        self._starts = list(self._in_steps([0, *_starts(messages, self._newest)], step))

    def __len__(self) -> int:
        return len(self._starts)

    def messages(self, number: int) -> tuple[Message, ...]:
        return tuple(
            message for index, message in enumerate(self._messages) if self._stays(index, self._starts[number])
        )

    def dropped(self, number: int) -> int:
        """The number of messages that are left out."""
        start = self._starts[number]
        return sum(not self._stays(index, start) for index in range(start))

    def longest(self, fits: Callable[[int], bool], context_length: int) -> int:
        """The number of the longest history that fits; the shortest one if none fits.

        Args:
            fits: called at most 2 + log2(len(self)) times.
            context_length: tokens. Histories with too many characters for it are not tried.
        """
        longest = context_length * MAX_CHARACTERS_PER_TOKEN
        first = bisect_left(self._starts, True, key=lambda start: self._sizes[-1] - self._sizes[start] <= longest)
        if first == 0 and fits(0):
            return 0
        found = bisect_left(range(len(self)), True, lo=max(first, 1), key=fits)
        return min(found, len(self) - 1)

    def _stays(self, index: int, start: int) -> bool:
        return index >= start or index in self._newest or self._messages[index].role == "system"

    def _in_steps(self, starts: Sequence[int], step: int) -> Iterator[int]:
        """The first start in each step, and all after the last of those."""
        whole = [
            start
            for before, start in zip([None, *starts], starts, strict=False)
            if before is None or self._sizes[start] // step > self._sizes[before] // step
        ]
        yield from whole
        yield from (start for start in starts if start > whole[-1])


def _newest_user_messages(messages: Sequence[Message]) -> range:
    """The indices of the newest message of the user and those directly before it. System text may be between them."""
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    first = last
    for index in range(last, -1, -1):
        if messages[index].role == "user":
            first = index
        elif messages[index].role != "system":
            break
    return range(max(first, 0), last + 1)


def _starts(messages: Sequence[Message], newest: range) -> Iterable[int]:
    """The indices that a history can start from, except the first: of turns, then of calls in the newest turn."""
    if not newest:
        return []
    roles = [message.role for message in messages]
    spoken = [index for index in range(newest.start + 1) if roles[index] != "system"]
    turns = [index for before, index in pairwise(spoken) if roles[index] == "user" and roles[before] != "user"]
    calls = [index for index in range(newest.stop, len(roles)) if roles[index] == "assistant"][1:]
    earliest = _earliest_calls(messages)
    return [start for start in (*turns, *calls) if earliest[start] >= start]


def _earliest_calls(messages: Sequence[Message]) -> list[int]:
    """For each index the first call that has a result at the index or after it. A start after that would separate them.

    An id can be used again in a later turn, so a result belongs to the call before it that is nearest.
    """
    calls: dict[str | None, int] = {}
    first = list(range(len(messages)))
    for index, message in enumerate(messages):
        if message.role == "tool":
            first[index] = calls.get(message.tool_call_id, calls.get(None, index))
        elif message.tool_calls:
            calls |= {None: index} | dict.fromkeys((each.id for each in message.tool_calls), index)
    return list(accumulate(reversed(first), min))[::-1]


def _characters(message: Message) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return len(message.content or "") + len(message.reasoning or "") + calls

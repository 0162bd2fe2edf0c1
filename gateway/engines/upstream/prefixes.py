"""Which target has which prompt prefix in its cache, as far as this gateway knows: a bounded index of hashes.

A target computes a prompt once and keeps it; the next turn of the conversation begins with the same text. The index has
no text, only hashes with Python's secret of this process, so a client cannot make two texts equal on purpose. It is a
hint: a target may have dropped the prefix, and then it computes it again, as any other target would.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from gateway.generation import Chat, Message, Text, TokenIds

# docs/scale.md has the reasons for these values.
BLOCK_CHARACTERS = 512  # about 128 tokens, the rows of one pass of an NPU: a known block saves one pass
BLOCK_TOKENS = 128
MOST_BLOCKS = 256  # of one prompt: what follows has no effect on the choice
INDEX_BLOCKS = 65_536  # about 12 MB


class PrefixIndex:
    """The blocks that were sent to each target. The least recently sent ones are forgotten.

    Args:
        targets: their number.
        size: the most blocks.
    """

    def __init__(self, targets: int, size: int = INDEX_BLOCKS) -> None:
        self._targets, self._size = targets, size
        self._known: OrderedDict[int, int] = (
            OrderedDict()
        )  # block -> one bit for each target; least recently sent first

    def __len__(self) -> int:
        return len(self._known)

    def matches(self, blocks: Sequence[int]) -> list[int]:
        """For each target, the number of blocks at the start of the prompt that were sent to it."""
        depths, with_all = [0] * self._targets, (1 << self._targets) - 1
        for depth, block in enumerate(blocks):
            known = self._known.get(block, 0)
            for target in _bits(with_all & ~known):
                depths[target] = depth
            with_all &= known
            if not with_all:
                return depths
        for target in _bits(with_all):
            depths[target] = len(blocks)
        return depths

    def note(self, target: int, blocks: Sequence[int]) -> None:
        """The target gets a prompt with these blocks."""
        known, bit = self._known, 1 << target
        for block in reversed(blocks):  # so that the end of a prompt is forgotten before its start
            known[block] = known.get(block, 0) | bit
            known.move_to_end(block)
        while len(known) > self._size:
            known.popitem(last=False)


def blocks_of(prompt: Chat | Text | TokenIds, owner: str = "") -> list[int]:
    """A hash for each full block of the prompt; each includes all text before it. At most MOST_BLOCKS.

    The parameters of tools are left out: the names and the descriptions before them differ too.

    Args:
        owner: two owners have no block in common. Else `x-gateway-route` would confirm a guess of another one's prompt.
    """
    if isinstance(prompt, TokenIds):
        ids = prompt.ids
        return _chained(owner, (ids[i : i + BLOCK_TOKENS] for i in _starts(len(ids), BLOCK_TOKENS)))
    text = prompt.text if isinstance(prompt, Text) else _start_of(prompt)
    return _chained(owner, (text[i : i + BLOCK_CHARACTERS] for i in _starts(len(text), BLOCK_CHARACTERS)))


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _starts(length: int, step: int) -> range:
    """Where the full blocks begin."""
    return range(0, min(length // step, MOST_BLOCKS) * step, step)


def _chained(owner: str, pieces: Iterator[str] | Iterator[tuple[int, ...]]) -> list[int]:
    blocks, before = [], hash(owner)
    for piece in pieces:
        before = hash((before, piece))
        blocks.append(before)
    return blocks


def _start_of(chat: Chat) -> str:
    """The text of the chat in the order in which templates render it, as long as blocks are made of it."""
    parts: list[str] = []
    left = MOST_BLOCKS * BLOCK_CHARACTERS
    for part in _parts(chat):
        parts.append(part[:left])
        left -= len(part) + 1
        if left <= 0:
            break
    return "\0".join(parts)


def _parts(chat: Chat) -> Iterator[str]:
    for tool in chat.tools:
        yield tool.name
        yield tool.description
    for message in chat.messages:
        yield from _message(message)


def _message(message: Message) -> Iterator[str]:
    yield message.role
    yield message.content or ""
    for call in message.tool_calls:
        yield call.name
        yield call.arguments

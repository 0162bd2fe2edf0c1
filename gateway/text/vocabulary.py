"""A model's tokens as bytes, and the decoding of token ids to text. Needs no tokenizer library.

Token ids become bytes first, and text when a character is complete. A special token has no text, unless the dialect
lists it as a marker.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

from gateway.errors import InvalidRequest

_SHARED_SPELLINGS = 16_384  # about 3 MB


class VocabularyTable(Struct, frozen=True, kw_only=True):
    """A vocabulary as a message between processes.

    `joined` has the bytes of all tokens in the order of their ids. `ends` has the end of each token in `joined`, as
    unsigned integers of 32 bits. `hidden` has the ids of the tokens that add no text to an output.
    """

    size: int
    joined: bytes
    ends: bytes
    hidden: frozenset[int]
    longest: int  # bytes of the longest token


def table_of(tokens: dict[int, bytes], size: int, hidden: frozenset[int]) -> VocabularyTable:
    """The table of a vocabulary. `tokens`: id -> bytes; an id that is missing has none."""
    ends, end = array("I"), 0
    ordered = [tokens.get(index, b"") for index in range(max(tokens, default=-1) + 1)]
    for token in ordered:
        end += len(token)
        ends.append(end)
    longest = max(map(len, ordered), default=0)
    return VocabularyTable(
        size=size, joined=b"".join(ordered), ends=ends.tobytes(), hidden=hidden, longest=max(1, longest)
    )


class Vocabulary:
    """The tokens of a model by id. Thread-safe."""

    def __init__(self, table: VocabularyTable) -> None:
        self.table = table
        self._joined, self._hidden = table.joined, table.hidden
        self._ends = array("I")
        self._ends.frombytes(table.ends)
        #: The text and the bytes of a token. Those of a frequent token are shared: log-probabilities keep many of them.
        self.spelling = lru_cache(_SHARED_SPELLINGS)(self._spelling)

    @property
    def vocab_size(self) -> int:
        return self.table.size

    def max_characters(self, context_length: int) -> int:
        """No text with more characters fits into the context."""
        return context_length * self.table.longest

    def check_ids(self, ids: Iterable[int], param: str) -> None:
        """Raise InvalidRequest for `param` if an id is outside the vocabulary."""
        size = self.vocab_size
        for index in ids:
            if not 0 <= index < size:
                raise InvalidRequest(f"Token id {index} is outside the vocabulary of {size} tokens.", param=param)

    def token_bytes(self, index: int) -> bytes:
        """The bytes of a token, special tokens included. Empty for an id without a token."""
        if not 0 <= index < len(self._ends):
            return b""
        return self._joined[self._ends[index - 1] if index else 0 : self._ends[index]]

    def _spelling(self, index: int) -> tuple[str, tuple[int, ...]]:
        written = self.token_bytes(index)
        return written.decode("utf-8", "replace"), tuple(written)

    def visible_bytes(self, index: int) -> bytes:
        """The bytes that a token adds to the output text."""
        return b"" if index in self._hidden else self.token_bytes(index)

    def decoder(self) -> TextDecoder:
        return TextDecoder(self)


class TextDecoder:
    """Decodes one choice's token ids to text. A character is returned with its last byte.

    Bytes that are not valid UTF-8 become U+FFFD. An incomplete character at the end is dropped.
    """

    def __init__(self, tokens: Vocabulary) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self._decoder.decode(self._tokens.visible_bytes(index))

    @property
    def is_whole(self) -> bool:
        """True if the ids so far end at the end of a character."""
        return not self._decoder.getstate()[0]

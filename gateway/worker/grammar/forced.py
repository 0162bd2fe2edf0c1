"""The tokens that a grammar forces, found byte by byte with a limit.

llguidance has a function for this, but it has no limit: a grammar of 13 KB can force 40 MB of text, and the function
then takes 42 s of processor time and 5.7 GB, with the interpreter lock held. To compute a mask takes as long, so every
grammar has the directive `no_forcing` (translate.py).
"""

from __future__ import annotations

from typing import Any

from gateway.worker.grammar.library import ByteVocabulary, few_ids, matcher_of, only_token, parser_limits

MAX_BYTES = 512  # of text in one run: more tokens than one device call verifies
_STEP_MAX_ITEMS = 1_000  # a grammar that needs more has many continuations, so it forces nothing


class ForcedText:
    """Follows one answer in a second matcher, over a vocabulary of bytes and special tokens.

    A matcher that exceeds its limits finds no more forced tokens; the answer goes on without them.

    Args:
        matcher: over `byte_tokenizer`, at the same position as the answer.
        tokenizer: of the model; turns the forced text into its tokens.
    """

    def __init__(self, matcher: Any, tokenizer: Any) -> None:
        self._matcher, self._tokenizer = matcher, tokenizer
        self._first_byte = tokenizer.vocab_size
        self._end_ids = frozenset(tokenizer.eos_tokens)

    @classmethod
    def of(cls, grammar: str, byte_tokenizer: Any, tokenizer: Any) -> ForcedText:
        return cls(matcher_of(byte_tokenizer, grammar, parser_limits(_STEP_MAX_ITEMS)), tokenizer)

    def copy(self) -> ForcedText:
        return ForcedText(self._matcher.deep_copy(), self._tokenizer)

    def accept(self, token: int) -> None:
        """Append a token to the answer."""
        if self._named(token):
            self._matcher.consume_token(token)
        else:
            text = self._tokenizer.decode_bytes([token])
            self._matcher.consume_tokens([self._first_byte + byte for byte in text])

    def _named(self, token: int) -> bool:
        """True for a special token, and for another one that the grammar names by its id here."""
        if self._matcher.is_error():
            return False
        mask = self._matcher.compute_bitmask()
        return bool(mask[token // 8] >> token % 8 & 1)

    def tokens(self, matcher: Any) -> list[int]:
        """The tokens that must come next, at most `MAX_BYTES` of text.

        Args:
            matcher: over the model's tokens, at the same position. It shows if the last token could be a longer one.
        """
        ahead: Any = None
        tokens: list[int] = []
        text = bytearray()
        length = 0
        while length < MAX_BYTES and (only := only_token(ahead or self._matcher)) is not None:
            if only in self._end_ids:
                return [*tokens, *self._tokenizer.tokenize_bytes(bytes(text))]
            if only < self._first_byte:
                tokens += [*self._tokenizer.tokenize_bytes(bytes(text)), only]
                text.clear()
            else:
                text.append(only - self._first_byte)
            ahead = ahead or self._matcher.deep_copy()
            ahead.consume_token(only)
            length += 1
        return self._certain(tokens, bytes(text), matcher.deep_copy()) if text else tokens

    def _certain(self, tokens: list[int], text: bytes, ahead: Any) -> list[int]:
        """`tokens` and those of `text`, without the last ones if the text that follows could make them longer."""
        certain, rest = self._tokenizer.tokenize_partial(text)
        tokens = [*tokens, *certain]
        ahead.consume_tokens(tokens)
        for token in self._tokenizer.tokenize_bytes(rest):
            ids = [] if ahead.is_error() else few_ids(ahead.compute_bitmask(), len(rest))
            if not ids or not all(rest.startswith(self._tokenizer.decode_bytes([index])) for index in ids):
                break
            ahead.consume_token(token)
            tokens.append(token)
            rest = rest[len(self._tokenizer.decode_bytes([token])) :]
        return [] if ahead.is_error() else tokens


def byte_tokenizer(tokenizer: Any, special_tokens: dict[int, str], end_ids: list[int]) -> Any:
    """A vocabulary with the ids of `tokenizer`, followed by the 256 bytes."""
    size = tokenizer.vocab_size
    known = {index: name for index, name in special_tokens.items() if index < size}
    return ByteVocabulary(size, known, first_byte=size).tokenizer(end_ids)

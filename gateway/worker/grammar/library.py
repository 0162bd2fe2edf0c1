"""What the sandbox and the worker share about llguidance: its limits, a vocabulary of bytes, and its error messages.

The library is imported with the first grammar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import llguidance

_MAX_MESSAGE = 200

#: (the library's message, our wording)
_REWORDED = (
    (r"^Unimplemented keys: \[(.*)\]$", r"unsupported keywords: \1"),
    (r"^NoExtensionBias$", "no token can follow"),
    (r"^.*(Current row has|Too many items).*$", "it has too many possible continuations at one position"),
    (r"^.*too many expressions.*$", "its regular expressions are too complex"),
)


def parser_limits(step_max_items: int = 5_000) -> llguidance.LLParserLimits:
    """The library's limits for one grammar: parser items and work of the lexer for each token, lexer states (60 MB),
    size of the grammar.

    With them a mask takes at most about 40 ms. The library's default of 200,000 for `step_lexer_fuel` permits 180 ms;
    schemas with all formats need less than 25,000. To build the automata takes at most about 500 ms. The library counts
    operations, not time.
    """
    import llguidance

    return llguidance.LLParserLimits(
        step_max_items=step_max_items,
        step_lexer_fuel=50_000,
        max_lexer_states=40_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def matcher_of(tokenizer: Any, grammar: str, limits: llguidance.LLParserLimits | None = None) -> Any:
    """Compile `grammar`, in the library's JSON. Releases the interpreter lock. Does not raise: see `error_of`."""
    import llguidance

    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits or parser_limits())


def error_of(matcher: Any) -> str:
    """The error of the grammar or of its last token, in one line. "" if there is none."""
    return readable(matcher.get_error()) if matcher.is_error() else ""


def readable(message: str) -> str:
    """The library's message in one line, without the dump of its state."""
    message = message.split("\n<", 1)[0].strip()
    if found := re.search(r"^error: (.*)", message, re.MULTILINE):
        return f"the regular expression is not supported: {found[1][:_MAX_MESSAGE]}"
    line = message.split("\n", 1)[0].split(". Enable", 1)[0].split("; following", 1)[0]
    for pattern, wording in _REWORDED:
        line = re.sub(pattern, wording, line)
    return (line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "…").rstrip(".")


def few_ids(mask: bytes, most: int) -> list[int]:
    """The ids in a mask of one bit for each token. Empty if there are more than `most`."""
    bits = int.from_bytes(mask, "little")
    if bits.bit_count() > most:
        return []
    ids = []
    while bits:
        lowest = bits & -bits
        ids.append(lowest.bit_length() - 1)
        bits ^= lowest
    return ids


def only_token(matcher: Any) -> int | None:
    """The only token that can come next. None if there are several, or an error."""
    ids = [] if matcher.is_error() else few_ids(matcher.compute_bitmask(), 1)
    return ids[0] if ids else None


class ByteVocabulary:
    """The tokenizer interface of llguidance over the model's special tokens and 256 tokens of one byte each.

    All other tokens of the model exist and have no text, so that a grammar can name each token by its id.

    Args:
        size: number of tokens of the model.
        special_tokens: text by id.
        first_byte: id of the byte 0; the byte b has the id `first_byte + b`. None: ids that no special token has.
    """

    bos_token_id = None

    def __init__(self, size: int, special_tokens: Mapping[int, str], first_byte: int | None = None) -> None:
        free = (index for index in range(size + 256 + len(special_tokens)) if index not in special_tokens)
        ids = [next(free) for _ in range(256)] if first_byte is None else list(range(first_byte, first_byte + 256))
        self.tokens = [b""] * max(size, ids[-1] + 1, *(index + 1 for index in special_tokens), 0)
        for byte, index in enumerate(ids):
            self.tokens[index] = bytes([byte])
        for index, name in special_tokens.items():
            self.tokens[index] = name.encode()
        self.special_token_ids = list(special_tokens)
        self.eos_token_id = self.special_token_ids[0] if special_tokens else ids[0]
        self._ids = ids

    def __call__(self, text: bytes | str) -> list[int]:
        return [self._ids[byte] for byte in (text.encode() if isinstance(text, str) else text)]

    def tokenizer(self, end_ids: list[int] | None = None) -> Any:
        import llguidance

        wrapper: Any = llguidance.TokenizerWrapper(self)
        return llguidance.LLTokenizer(wrapper, eos_token=end_ids or None)

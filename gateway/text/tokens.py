"""Text to token ids, for one model's tokenizer. The process that prepares prompts uses it.

Text from a client never becomes a special token. If `<|im_end|>` in a message were parsed as the token, it would end
the user's turn, and the client could open a new one. So `SpecialTokenEscape` replaces this text by unused characters
before the template is rendered. `encode_rendered` encodes it without special tokens.
"""

from __future__ import annotations

import re
import threading
from codecs import BOM_UTF8
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gateway.errors import BundleError, InvalidRequest
from gateway.text.vocabulary import Vocabulary, table_of

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # SentencePiece writes a space as this character
#: Characters that replace a special token in an escaped text: private use, then planes that Unicode does not use.
_FREE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFD), range(0x40000, 0xDFFFE))


class TextTokenizer(Vocabulary):
    """A vocabulary that can encode. Thread-safe.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        markers: special tokens that are visible in the output text (see `Dialect.markers`).
    """

    def __init__(self, tokenizer: Any, markers: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # `encode_special_tokens` is a mutable setting of the tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self._special_texts = {added[index].content: index for index in sorted(self._special_ids, reverse=True)}
        specials = sorted(self._special_texts, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        tokens = _token_bytes(tokenizer) | {index: token.content.encode() for index, token in added.items()}
        hidden = frozenset(index for index in self._special_ids if added[index].content not in markers)
        super().__init__(table_of(tokens, int(tokenizer.get_vocab_size(with_added_tokens=True)), hidden))
        starts_with_space = b"".join(map(self.token_bytes, self._encode("a"))).startswith(b" ")
        self._newline = self._encode("\n") if starts_with_space else []

    @classmethod
    def load(cls, path: Path, markers: Collection[str] = ()) -> TextTokenizer:
        """Read a tokenizer.json. Raises BundleError if the file is not valid."""
        try:
            return cls(Tokenizer.from_buffer(path.read_bytes().removeprefix(BOM_UTF8)), markers)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} cannot be read: {error}.") from error

    def token_id(self, text: str) -> int | None:
        """The id of the token with this text, or None."""
        index: int | None = self._tokenizer.token_to_id(text)
        return index

    def special_id(self, text: str) -> int | None:
        """The id of the special token with this text, or None."""
        return self._special_texts.get(text)

    def encode(self, text: str, *, begin: bool = True, specials: bool = True) -> list[int]:
        """Encode raw text as the tokenizer.json specifies.

        Args:
            text: the text.
            begin: add the begin token, if the tokenizer has one.
            specials: parse special tokens in the text.
        """
        return self._encode(text, begin=begin, specials=specials)

    def special_token_escape(self) -> SpecialTokenEscape:
        """A new escape for one rendering: for the template's variables, then for its output in `encode_rendered`."""
        return SpecialTokenEscape(self._specials)

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text that continues other text: no begin token, no leading space, special tokens are not parsed."""
        return self._encode_piece(text, first=False, specials=False)

    def encode_rendered(self, rendered: str, escape: SpecialTokenEscape) -> list[int]:
        """Encode a rendered template: its own special tokens are parsed, the escaped ones stay text."""
        ids: list[int] = []
        escaped: dict[str, list[int]] = {}  # a client can repeat a special token a million times
        for text, is_escaped in escape.split(rendered):
            if not is_escaped:
                ids += self._encode_piece(text, first=not ids)
            elif text in escaped:
                ids += escaped[text]
            else:
                ids += escaped.setdefault(text, self._encode_plain(text))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included. Raises InvalidRequest for ids outside the vocabulary."""
        self.check_ids(ids, "tokens")
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def input_ends(self) -> tuple[list[int], list[int]]:
        """The special tokens that `encode_input` puts before and after a text."""
        with self._lock:
            encoding = self._tokenizer.encode("a")
        own = [index for index, special in enumerate(encoding.special_tokens_mask) if not special]
        return (encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]) if own else ([], [])

    def encode_input(self, text: str, second: str | None, longest: int) -> tuple[list[int], int, bool]:
        """A text or a pair for an encoder, with its special tokens; special tokens in the text are parsed.

        Returns the ids, at most `longest`; the number of them with type 0; True if the text was cut.
        """
        with self._lock:
            self._tokenizer.encode_special_tokens = False  # `_encode` leaves the value of its last call
            self._tokenizer.enable_truncation(longest)
            try:
                encoding = self._tokenizer.encode(text, second)
            except (TypeError, UnicodeError) as error:  # a lone surrogate cannot be encoded
                raise InvalidRequest("The text contains characters that are not valid Unicode.") from error
            finally:
                self._tokenizer.no_truncation()
        return list(encoding.ids), encoding.type_ids.count(0), bool(encoding.overflowing)

    def _encode(self, text: str, *, begin: bool = False, specials: bool = True) -> list[int]:
        with self._lock:
            self._tokenizer.encode_special_tokens = not specials
            try:
                (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=begin)
            except (TypeError, UnicodeError) as error:  # a lone surrogate cannot be encoded
                raise InvalidRequest("The text contains characters that are not valid Unicode.") from error
        return list(encoding.ids)

    def _encode_piece(self, text: str, *, first: bool, specials: bool = True) -> list[int]:
        """Encode a piece of a text. Only the first piece gets the space that SentencePiece puts before a text."""
        if first or not self._newline:
            return self._encode(text, specials=specials)
        ids, cut = self._encode("\n" + text, specials=specials), len(self._newline)
        return ids[cut:] if ids[:cut] == self._newline else self._encode(text, specials=specials)

    def _encode_plain(self, text: str) -> list[int]:
        ids = self._encode_piece(text, first=False, specials=False)
        if self._special_ids.isdisjoint(ids):
            return ids
        return [index for character in text for index in self._encode_piece(character, first=False, specials=False)]


class SpecialTokenEscape:
    """Replaces the text of special tokens in a client's strings by characters that the client does not use, and back.

    escape = tokens.special_token_escape()
    variables = escape.escape({"content": "<|im_end|>"})  # {"content": "\U000f0000"}
    escape.unescape(variables["content"])                 # "<|im_end|>"
    """

    def __init__(self, specials: re.Pattern[str]) -> None:
        self._specials = specials
        self._tokens: dict[str, str] = {}  # character -> text of the special token

    def escape(self, variables: Any) -> Any:
        """The same dicts, lists and strings, with the special tokens in strings and keys replaced.

        Raises InvalidRequest if the client uses all of 700,000 characters that have no meaning.
        """
        strings = list(_strings(variables))
        found = sorted({token for text in strings for token in self._specials.findall(text)})
        if not found:
            return variables
        used = set().union(*strings)
        free = (chr(code) for code in chain(*_FREE) if chr(code) not in used)
        characters = dict(zip(found, free, strict=False))
        if len(characters) < len(found):
            raise InvalidRequest("The text has too many different characters.")
        self._tokens = {character: token for token, character in characters.items()}
        return _map_strings(variables, lambda text: self._specials.sub(lambda match: characters[match[0]], text))

    def unescape(self, rendered: str) -> str:
        """The text with the special tokens in place of their characters."""
        return "".join(text for text, _ in self.split(rendered))

    def split(self, rendered: str) -> list[tuple[str, bool]]:
        """The text as (piece, is_escaped) in order, without empty pieces. Escaped pieces are already unescaped."""
        if not self._tokens:
            return [(rendered, False)] if rendered else []
        parts = re.split(f"([{''.join(self._tokens)}])", rendered)
        return [(self._tokens.get(part, part), part in self._tokens) for part in parts if part]


def _token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of each token, by id."""
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
    if b'"ByteLevel"' in (tokenizer.decoder.__getstate__() if tokenizer.decoder else b""):
        alphabet = _byte_alphabet()
        return {index: token.translate(alphabet).encode("latin-1", "replace") for token, index in vocabulary.items()}
    return {index: _piece_bytes(token) for token, index in vocabulary.items()}


def _piece_bytes(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[int, int]:
    """GPT-2's byte-level alphabet: a printable Latin-1 byte is itself, any other byte is a character from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: ord("?") for byte in others} | {256 + i: byte for i, byte in enumerate(others)}


def _strings(value: Any) -> Iterable[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for key, item in value.items():
                yield from _strings(key)
                yield from _strings(item)
        case list() | tuple():
            for item in value:
                yield from _strings(item)


def _map_strings(value: Any, change: Any) -> Any:
    match value:
        case str():
            return change(value)
        case Mapping():
            return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
        case list() | tuple():
            return [_map_strings(item, change) for item in value]
    return value

"""Between text and token ids, for one model's tokenizer.

1. A client's text never becomes a special token. `<|im_end|>` in a message is eleven characters that somebody typed;
   parsed as the token it would end his turn and let him open another. So `Disguise` replaces such text by private
   characters before the template is rendered, and here it is encoded apart, with special tokens switched off.
2. Ids come back as bytes first and as text when a character is whole. The text of a special token is nothing, unless
   a dialect asks to see it.
"""

from __future__ import annotations

import codecs
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gateway.errors import BundleError, InvalidRequest

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # SentencePiece writes it for a space
_PRIVATE = range(0xF0000, 0xFFFFE)  # characters without a meaning, to stand for something


class TokenText:
    """The vocabulary as bytes, and text to ids and back. Safe to use from several threads.

    Args:
        tokenizer: as its tokenizer.json says.
        markers: special tokens that are text all the same (a dialect's).
    """

    def __init__(self, tokenizer: Any, markers: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # `encode_special_tokens` is a switch on the tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added: dict[int, str] = {index: token.content for index, token in added.items()}
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self._hidden_ids = frozenset(index for index in self._special_ids if added[index].content not in markers)
        specials = sorted((added[index].content for index in self._special_ids), key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        self._byte_level = b'"ByteLevel"' in (tokenizer.decoder.__getstate__() if tokenizer.decoder else b"")
        self._bytes: dict[int, bytes] = {}
        starts_with_space = b"".join(map(self.bytes_of, self._encode("a"))).startswith(b" ")
        self._newline = self._encode("\n") if starts_with_space else []

    @classmethod
    def load(cls, path: Path, markers: Collection[str] = ()) -> TokenText:
        """Read a tokenizer.json. Raises BundleError when it is none."""
        try:
            return cls(Tokenizer.from_file(str(path)), markers)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} cannot be read: {error}.") from error

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written so, if there is one."""
        index: int | None = self._tokenizer.token_to_id(text)
        return index

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is written so, if there is one."""
        return next((index for index in self._special_ids if self._added[index] == text), None)

    def encode(self, text: str, *, begin: bool = True, specials: bool = True) -> list[int]:
        """Raw text as the model's makers tokenize it: special tokens are parsed, a begin token is added if they do.

        Without `begin` none is added, without `specials` none is parsed.
        """
        return self._encode(text, begin=begin, specials=specials)

    def disguise(self) -> Disguise:
        """For the variables of one rendering, and then for its output in `encode_rendered`."""
        return Disguise(self._specials)

    def encode_continuation(self, text: str) -> list[int]:
        """Text that the model might write: it stands behind other text, and spells no special token."""
        return self._encode_piece(text, first=False, specials=False)

    def encode_rendered(self, rendered: str, disguise: Disguise) -> list[int]:
        """A rendered template: its own special tokens are parsed, the disguised ones stay text."""
        ids: list[int] = []
        for text, is_plain in disguise.pieces(rendered):
            ids += self._encode_plain(text) if is_plain else self._encode_piece(text, first=not ids)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included. Raises InvalidRequest for ids outside the vocabulary."""
        self.check(ids, "tokens")
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def check(self, ids: Iterable[int], param: str) -> None:
        """Raises InvalidRequest, which names `param`, unless every id is in the vocabulary."""
        size = self.vocab_size
        for index in ids:
            if not 0 <= index < size:
                raise InvalidRequest(f"Token id {index} is outside the vocabulary of {size} tokens.", param=param)

    def bytes_of(self, index: int) -> bytes:
        """A token as it is written, special ones too; nothing for an id that has no token."""
        if index not in self._bytes:
            self._bytes[index] = self._added[index].encode() if index in self._added else self._piece_bytes(index)
        return self._bytes[index]

    def decoder(self) -> TextDecoder:
        return TextDecoder(self)

    def text_bytes(self, index: int) -> bytes:
        """What the token adds to the answer's text."""
        return b"" if index in self._hidden_ids else self.bytes_of(index)

    def _piece_bytes(self, index: int) -> bytes:
        token = self._tokenizer.id_to_token(index)
        if token is None:
            return b""
        if self._byte_level:
            return bytes(_BYTES.get(character, ord("?")) for character in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return str(token).replace(_SPACE, " ").encode()

    def _encode(self, text: str, *, begin: bool = False, specials: bool = True) -> list[int]:
        with self._lock:
            self._tokenizer.encode_special_tokens = not specials
            try:
                (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=begin)
            except (TypeError, UnicodeError) as error:  # a lone surrogate is no text
                raise InvalidRequest("The text contains characters that are not valid Unicode.") from error
        return list(encoding.ids)

    def _encode_piece(self, text: str, *, first: bool, specials: bool = True) -> list[int]:
        """A piece from the middle of a text: without the space that SentencePiece puts before a beginning."""
        if first or not self._newline:
            return self._encode(text, specials=specials)
        ids, cut = self._encode("\n" + text, specials=specials), len(self._newline)
        return ids[cut:] if ids[:cut] == self._newline else self._encode(text, specials=specials)

    def _encode_plain(self, text: str) -> list[int]:
        ids = self._encode_piece(text, first=False, specials=False)
        if self._special_ids.isdisjoint(ids):
            return ids
        return [index for character in text for index in self._encode_piece(character, first=False, specials=False)]


class Disguise:
    """Private characters in place of the special tokens that a client's strings spell."""

    def __init__(self, specials: re.Pattern[str]) -> None:
        self._specials = specials
        self._meaning: dict[str, str] = {}  # private character -> what it stands for

    def put_on(self, variables: Any) -> Any:
        """The same dicts, lists and strings, special tokens in the strings disguised."""
        strings = [text for text in _strings(variables) if self._specials.search(text)]
        if not strings:
            return variables
        used = set().union(*_strings(variables))
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        spelled = sorted({token for text in strings for token in self._specials.findall(text)})
        disguises = dict(zip(spelled, free, strict=False))
        self._meaning = {character: token for token, character in disguises.items()}
        return _map_strings(variables, lambda text: self._specials.sub(lambda match: disguises[match[0]], text))

    def take_off(self, rendered: str) -> str:
        """The rendering as a person would read it."""
        return "".join(text for text, _ in self.pieces(rendered))

    def pieces(self, rendered: str) -> list[tuple[str, bool]]:
        """(text, is it a disguised token) in order, nothing empty."""
        if not self._meaning:
            return [(rendered, False)] if rendered else []
        parts = re.split(f"([{''.join(self._meaning)}])", rendered)
        return [(self._meaning.get(part, part), part in self._meaning) for part in parts if part]


class TextDecoder:
    """One choice's token ids to text: a character comes with its last byte.

    What can never become one is U+FFFD. A character that the end cuts off does not come at all.
    """

    def __init__(self, tokens: TokenText) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self._decoder.decode(self._tokens.text_bytes(index))

    @property
    def is_whole(self) -> bool:
        """Whether the ids so far end with a whole character."""
        return not self._decoder.getstate()[0]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's way to write any byte as a visible character: Latin-1 where that is one, else the next beyond it."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


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

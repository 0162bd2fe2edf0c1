"""Byte-level BPE in plain Python, from a GGUF file's vocabulary and merges: reference ids for tokenizers.

It shares nothing with the tokenizers library. `re` splits words by character classes, bytes are mapped by GPT-2's rule,
and merges are applied one at a time.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf

#: Unicode's White_Space property, which `str.isspace` does not match exactly.
_SPACES = {*map(chr, range(9, 14)), *" \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000", *map(chr, range(0x2000, 0x200B))}


def _classes(text: str) -> str:
    """One letter for each character: L letter, N number, R carriage return or line feed, s other space, O other."""
    return "".join(map(_class, text))


def _class(character: str) -> str:
    if character == " ":
        return " "
    if character in "\r\n":
        return "R"
    if character in _SPACES:
        return "s"
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else "O"


_CONTRACTION = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = re.compile(r" ?L+| ?N+| ?O+|[ sR]+(?![LNO])|[ sR]+")


def _cloned_words(number: str) -> re.Pattern[str]:
    """The rule of Llama 3 and Qwen2, which differ in the number of digits of a word."""
    return re.compile(rf"[ sO]?L+|{number}| ?O+R*|[ sR]*R+|[ sR]+(?![LNO])|[ sR]+")


_RULES = {
    "gpt-2": (_GPT2, re.compile(_CONTRACTION)),
    "smollm": (_GPT2, re.compile(_CONTRACTION)),
    "llama-bpe": (_cloned_words("N{1,3}"), re.compile(_CONTRACTION, re.IGNORECASE)),
    "qwen2": (_cloned_words("N"), re.compile(_CONTRACTION, re.IGNORECASE)),
}


def words(text: str, rule: str) -> list[str]:
    """Split `text` into words by a rule."""
    pieces = re.split("(N)", _classes(text)) if rule == "smollm" else [_classes(text)]
    result, start = [], 0
    for piece in filter(None, pieces):
        result += _cut(text[start : start + len(piece)], piece, *_RULES[rule])
        start += len(piece)
    return result


def _cut(text: str, classes: str, pattern: re.Pattern[str], contraction: re.Pattern[str]) -> list[str]:
    result, at = [], 0
    while at < len(text):
        found = contraction.match(text, at) or pattern.match(classes, at)
        assert found is not None, (text, at)
        result.append(text[at : found.end()])
        at = found.end()
    return result


def byte_letters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


class BpeOracle:
    def __init__(self, path: Path, rule: str) -> None:
        self._reader = gguf.GGUFReader(path)
        self._rule = rule

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._array("tokens"))}

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        pairs = [merge.split(" ", 1) for merge in self._array("merges")]
        return {(left, right): rank for rank, (left, right) in enumerate(pairs)}

    @cached_property
    def missing_bytes(self) -> set[int]:
        """Bytes without a token. They are dropped, and the parts before and after can merge."""
        return {byte for byte, letter in byte_letters().items() if letter not in self.ids}

    def encode(self, text: str) -> list[int]:
        letters = byte_letters()
        spelled = [[letters[byte] for byte in word.encode()] for word in words(text, self._rule)]
        return [self.ids[part] for word in spelled for part in self._merge(word)]

    def _merge(self, letters: list[str]) -> list[str]:
        parts = [letter for letter in letters if letter in self.ids]
        while len(parts) > 1:
            ranked = [(self.ranks.get(pair, len(self.ranks)), pair) for pair in pairwise(parts)]
            rank, (left, right) = min(ranked)
            if rank == len(self.ranks):
                break
            at = next(index for index in range(len(parts)) if parts[index : index + 2] == [left, right])
            parts[at : at + 2] = [left + right]
        return parts

    def _array(self, name: str) -> Any:
        field = self._reader.get_field(f"tokenizer.ggml.{name}")
        assert field is not None
        return field.contents()

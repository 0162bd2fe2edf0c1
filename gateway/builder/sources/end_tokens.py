"""The tokens that end an answer: the union of what the files of a model say, and of the names that families use.

A file that names one of them often forgets another: `config.json` has the end of a text, `tokenizer_config.json` the
end of a turn. A model that never gets its end token repeats itself up to the limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

#: Tokens that end a turn or a text in one of the model families.
_NAMES = frozenset(
    (
        *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "</s>", "<|eot|>"),
        *("<end_of_turn>", "<|end_of_turn|>", "<turn|>", "<|endofturn|>", "[|endofturn|]", "<|END_OF_TURN_TOKEN|>"),
        "<｜end▁of▁sentence｜>",
    )
)


class _Added(Struct):
    id: int
    content: str


class _Model(Struct):
    vocab: msgspec.Raw = msgspec.Raw(b"{}")


class _Tokenizer(Struct):
    """The part of tokenizer.json that is read here."""

    added_tokens: list[_Added] = []
    model: _Model = msgspec.field(default_factory=_Model)


def is_end_token(text: str) -> bool:
    """True if a family uses this token to end a turn or a text."""
    return text in _NAMES


def end_ids(*named: Any, eos_token: Any, tokenizer_json: str) -> tuple[int, ...]:
    """The ids of all end tokens, in the order of the sources, without duplicates.

    Args:
        named: values of `eos_token_id`: an id, a list of ids, or None.
        eos_token: the value in tokenizer_config.json: a text, an object with `content`, or None.
        tokenizer_json: the text of tokenizer.json; "": there is none.
    """
    ids = [index for value in named for index in _ids(value)]
    return tuple(dict.fromkeys([*ids, *_of_tokenizer(eos_token, tokenizer_json)]))


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [index for index in values if isinstance(index, int)]


def _of_tokenizer(eos_token: Any, tokenizer_json: str) -> Iterable[int]:
    try:
        tokenizer = msgspec.json.decode(tokenizer_json or "{}", type=_Tokenizer)
    except (msgspec.MsgspecError, RecursionError):  # the build reports it when it needs the tokenizer
        return
    name = eos_token.get("content") if isinstance(eos_token, dict) else eos_token
    ids = {token.content: token.id for token in tokenizer.added_tokens}
    if isinstance(name, str) and name and name not in ids:
        ids |= _in_vocabulary(name, bytes(tokenizer.model.vocab))
    yield from (ids[name] for name in (name,) if name in ids)
    yield from (index for text, index in ids.items() if is_end_token(text))


def _in_vocabulary(name: str, vocab: bytes) -> dict[str, int]:
    try:
        found = msgspec.json.decode(vocab, type=dict[str, int]).get(name)
    except (msgspec.MsgspecError, RecursionError):  # a Unigram vocabulary is a list
        return {}
    return {} if found is None else {name: found}

"""tokenizer.json from GGUF metadata against the ids of llama.cpp and of SentencePiece (support/record_llama_cpp.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer

from gateway.builder.sources.gguf_tokenizer import tokenizer_config, tokenizer_json
from gateway.builder.sources.gguf_words import RULES
from gateway.text.tokens import TextTokenizer

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return content


def tokenizer(**metadata: Any) -> Tokenizer:
    found = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return Tokenizer.from_str(tokenizer_json(lambda key, default=None: found.get(key, default), "x.gguf"))


def check(made: Tokenizer, texts: list[str], ids: list[list[list[int]]]) -> None:
    """Compare both ways of encoding: with begin token and special tokens, and as plain text."""
    for text, (with_specials, plain) in zip(texts, ids, strict=True):
        made.encode_special_tokens = False
        assert made.encode(text).ids == with_specials, text
        made.encode_special_tokens = True
        assert made.encode(text, add_special_tokens=False).ids == plain, text


@pytest.fixture(scope="module")
def vocabulary(smollm2_gguf: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(smollm2_gguf).fields
    return {key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")}


@pytest.mark.parametrize("rule", RULES)
def test_byte_level_ids_equal_those_of_llama_cpp(rule: str, vocabulary: dict[str, Any]) -> None:
    made = tokenizer(model="gpt2", pre=rule, bos_token_id=1, eos_token_id=2, **vocabulary)
    content = recorded("byte_level")
    check(made, content["texts"], content["ids"][rule])


def test_missing_rule_is_the_default_rule(vocabulary: dict[str, Any]) -> None:
    content = recorded("byte_level")
    check(tokenizer(model="gpt2", bos_token_id=1, **vocabulary), content["texts"], content["ids"]["default"])


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_equal_those_of_llama_cpp(prefix: bool) -> None:
    content = recorded("sentencepiece")
    made = tokenizer(
        model="llama", pre="default", bos_token_id=1, eos_token_id=2, add_space_prefix=prefix, **content["vocabulary"]
    )
    check(made, content["texts"], content["ids"][str(prefix)])


def test_sentencepiece_ids_equal_those_of_its_library() -> None:
    """Without special tokens in the text: the library gives them no ids."""
    content = recorded("sentencepiece")
    made = tokenizer(model="llama", add_bos_token=False, bos_token_id=1, **content["vocabulary"])
    made.encode_special_tokens = True
    compared = 0
    for text, expected in zip(content["texts"], content["library"], strict=True):
        if text and "<" not in text:
            assert made.encode(text).ids == expected, text
            compared += 1
    assert compared > 25


@pytest.mark.parametrize("prefix", [True, False])
def test_bytes_of_sentencepiece_tokens_join_to_the_text(prefix: bool) -> None:
    content = recorded("sentencepiece")
    made = TextTokenizer(tokenizer(model="llama", bos_token_id=1, add_space_prefix=prefix, **content["vocabulary"]))
    texts = [text for text in content["texts"] if text and "\u2581" not in text and "<tool>" not in text]
    for text in texts:  # without U+2581, which SentencePiece writes for a space, and without a token that splits a text
        assert joined(made, made.encode_continuation(text)) == text
        assert joined(made, made.encode(text, begin=False, specials=False)) == (" " if prefix else "") + text


def joined(made: TextTokenizer, ids: list[int]) -> str:
    return b"".join(map(made.token_bytes, ids)).decode()


def test_begin_token_is_the_default_of_sentencepiece_and_of_two_rules(vocabulary: dict[str, Any]) -> None:
    def adds(**metadata: Any) -> bool:
        found = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
        return bool(tokenizer_config(lambda key, default=None: found.get(key, default))["add_bos_token"])

    words = recorded("sentencepiece")["vocabulary"]
    assert adds(model="llama", bos_token_id=1, **words) and not adds(model="llama", **words)
    assert not adds(model="llama", bos_token_id=1, add_bos_token=False, **words)
    assert adds(model="gpt2", pre="tekken", bos_token_id=1, **vocabulary)
    assert not adds(model="gpt2", pre="default", bos_token_id=1, **vocabulary)

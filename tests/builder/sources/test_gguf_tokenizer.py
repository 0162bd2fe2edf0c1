"""tokenizer.json from GGUF metadata against an independent BPE (tests/support/bpe_oracle.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.builder.sources.detect import open_source
from gateway.errors import BundleError
from tests.support.bpe_oracle import BpeOracle, words
from tests.support.tiny_gguf import write_tiny_gguf

TRICKY = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \n",
    "Hello",
    " Hello",
    "  two leading spaces",
    "trailing spaces  ",
    "tabs\tand\r\nline ends\r\n\r\n",
    "0123456789",
    "In 1984, x = 3.14159 and 2,024 items cost 12 345,67 EUR",
    "½ ⅓ ² ٣ Ⅷ 七",
    "I'm you're we've he'd she'll it's don't I'M YOU'RE",
    "don\u2019t \u2018quote\u2019 \u201cdouble\u201d",
    "naïve café Ångström ﬁne",
    "e\u0301 versus \u00e9",
    "Привет, как дела?",
    "日本語のテキストと中文文本和한국어",
    "مرحبا بالعالم שלום",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "a\u200bb\u00a0c\u2003d\u3000e\x85f\x1cg",
    "def f(x):\n    return x**2  # it's a 'test'\n\n\nclass A:\n\tpass\n",
    '{"key": [1, 2.5e-3, null], "s": "\\u00e9\\n"}',
    "<div class='a'>&amp;</div> http://example.com/?q=1&r=%20",
    "$100 #tag @user a_b snake_case CamelCase C++ C# ~!@#$%^&*()_+",
    "\x00\x01\x7f\ufeff\ufffd",
    "AAAAAAAAAAAAAAAAAAAA aaaaaaaaaaaaaaaaaaa",
    "!!!...???---",
    "a" * 300,
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pytest.fixture(scope="module")
def oracle(smollm2_gguf: Path) -> BpeOracle:
    return BpeOracle(smollm2_gguf, "smollm")


@pytest.mark.parametrize("text", TRICKY)
def test_ids_equal_oracle(tokenizer: Tokenizer, oracle: BpeOracle, text: str) -> None:
    assert tokenizer.encode(text, add_special_tokens=False).ids == oracle.encode(text)


def test_ids_of_fixed_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nHi 42<|im_end|>", add_special_tokens=False).ids
    assert ids == [1, 4093, 198, 26843, 216, 36, 34, 2]


@pytest.mark.parametrize("text", TRICKY)
def test_decode_returns_encoded_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(st.text(max_size=60))
@example("\x8e\U00077000")  # the vocabulary merges the bytes around a byte that it lacks
@settings(max_examples=300, deadline=None)
def test_random_text_equals_oracle_and_round_trips(tokenizer: Tokenizer, oracle: BpeOracle, text: str) -> None:
    specials = tokenizer.get_added_tokens_decoder().values()
    assume(not any(token.content in text for token in specials))  # special tokens have one id each
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == oracle.encode(text)
    if not oracle.missing_bytes.intersection(text.encode()):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_vocabulary_lacks_known_bytes(oracle: BpeOracle) -> None:
    """Six control characters, bytes of the unassigned planes 4 to 11, and bytes that UTF-8 never uses."""
    assert oracle.missing_bytes == {4, 6, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)}


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_pre_tokenizer_splits_words_by_its_rule(tmp_path: Path, rule: str) -> None:
    """The oracle splits words with its own implementation of the rules."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre=rule)
    tokenizer = Tokenizer.from_str(open_source(path).tokenizer_json())
    for text in TRICKY:
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normal)
        assert [normal[start:end] for _, (start, end) in pieces] == words(normal, rule)


def test_oracle_rules_differ_on_digits_and_contractions() -> None:
    assert words("1234", "gpt-2") == ["1234"]
    assert words("1234", "smollm") == words("1234", "qwen2") == ["1", "2", "3", "4"]
    assert words("1234", "llama-bpe") == ["123", "4"]
    assert words("I'M", "gpt-2") == ["I", "'", "M"]
    assert words("I'M", "qwen2") == ["I", "'M"]


def test_qwen2_normalises_to_nfc(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__pre="qwen2")
    tokenizer = Tokenizer.from_str(open_source(path).tokenizer_json())
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


def test_begin_token_is_added_if_the_file_says_so(tmp_path: Path) -> None:
    plain = open_source(write_tiny_gguf(tmp_path / "plain.gguf"))
    begins = open_source(write_tiny_gguf(tmp_path / "begins.gguf", tokenizer__ggml__add_bos_token=True))
    without, with_it = (Tokenizer.from_str(source.tokenizer_json()).encode("Hi").ids for source in (plain, begins))
    assert with_it == [1, *without]
    assert begins.tokenizer_config()["add_bos_token"] is True
    assert begins.tokenizer_config()["bos_token"] == "<|im_start|>"


def test_named_templates_of_a_gguf_file_are_kept(tmp_path: Path) -> None:
    names = {"tokenizer__chat_templates": ["tool_use", "rag"], "tokenizer__chat_template__tool_use": "T"}
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__chat_template="D", **names)
    assert open_source(path).tokenizer_config()["chat_template"] == [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
    ]


def test_user_defined_token_is_one_visible_token(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tokenizer__ggml__token_type=[3, 3, 3, *[1] * 380, 4])
    tokenizer = Tokenizer.from_str(open_source(path).tokenizer_json())
    token = tokenizer.id_to_token(383)
    assert tokenizer.get_added_tokens_decoder()[383].special is False
    assert 383 in tokenizer.encode(f"x{token}x").ids


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"tokenizer__ggml__pre": "klingon"},
            "has the pre-tokenizer 'klingon'. Only these are supported: default, gpt-2, ",
        ),
        ({"tokenizer__ggml__model": "t5"}, "has a tokenizer of kind 't5'. Only byte-level BPE"),
        ({"tokenizer__ggml__model": None}, "has a tokenizer of kind 'None'. Only byte-level BPE"),
        ({"tokenizer__ggml__merges": ["missing pair"]}, "its vocabulary and merges do not fit together"),
    ],
)
def test_unsupported_tokenizer_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", **changes))
    with pytest.raises(BundleError, match=words):
        source.tokenizer_json()

"""Text to token ids and back, for a byte-level vocabulary and two SentencePiece vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gateway.errors import BundleError, InvalidRequest
from gateway.text.tokens import TextTokenizer
from tests.support.tiny import train_tokenizer

TRICKY = [
    "",
    "Hello  world\n\n  2024",
    "naïve café — “quotes”",
    "日本語のテキスト",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301",
    "\ufeffBOM and \u2028 separators \x00\x07",
    "def f(x):\n\treturn x[1:]  # ok",
]


def sentencepiece(legacy: bool) -> Tokenizer:
    """A byte-fallback BPE like Llama 2's: adds a space before the text (`legacy`: before every piece)."""
    letters = [*"abcdefghijklmnopqrstuvwxyz|<>_\u2581"]
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        "\u2581a",
        "he",
        "\u2581he",
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("\u2581", "a"), ("h", "e"), ("\u2581", "he")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>", "<|im_end|>")])
    return tokenizer


BYTE_LEVEL = TextTokenizer(train_tokenizer())
LEGACY, METASPACE = TextTokenizer(sentencepiece(legacy=True)), TextTokenizer(sentencepiece(legacy=False))
ALL = {"byte-level": BYTE_LEVEL, "legacy": LEGACY, "metaspace": METASPACE}
each = pytest.mark.parametrize("tokens", ALL.values(), ids=ALL.keys())


def streamed(tokens: TextTokenizer, ids: list[int]) -> str:
    decoder = tokens.decoder()
    return "".join(map(decoder.push, ids))


def rendered(tokens: TextTokenizer, before: str, content: str, after: str) -> list[int]:
    escape = tokens.special_token_escape()
    escaped = escape.escape({"messages": [{"content": content}]})
    return tokens.encode_rendered(before + escaped["messages"][0]["content"] + after, escape)


@each
@pytest.mark.parametrize("text", TRICKY)
def test_encode_then_decode_returns_unusual_text(tokens: TextTokenizer, text: str) -> None:
    assert streamed(tokens, tokens.encode(text)).removeprefix("" if tokens is BYTE_LEVEL else " ") == text
    assert tokens.decode(tokens.encode(text)) == text


@given(st.text())
def test_decoder_returns_any_text_in_whole_characters(text: str) -> None:
    decoder, pieces = BYTE_LEVEL.decoder(), []
    for index in BYTE_LEVEL.encode(text, specials=False):  # Hypothesis also draws strings of this file
        pieces.append(decoder.push(index))
        assert "\ufffd" not in pieces[-1] or "\ufffd" in text
    assert decoder.is_whole
    assert "".join(pieces) == text


def test_decoder_returns_a_character_with_its_last_byte() -> None:
    decoder = LEGACY.decoder()
    ids = [LEGACY._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🦊".encode()]
    assert [decoder.push(index) for index in ids] == ["", "", "", "🦊"]
    decoder.push(ids[0])
    assert not decoder.is_whole


def test_decoder_replaces_invalid_bytes_and_continues() -> None:
    byte = LEGACY._tokenizer.token_to_id
    assert streamed(LEGACY, [byte("<0xF0>"), byte("a"), byte("<0x9F>"), byte("he")]) == "\ufffda\ufffdhe"


@each
def test_special_token_has_no_text(tokens: TextTokenizer) -> None:
    (end,) = tokens._encode("<|im_end|>")
    assert streamed(tokens, [*tokens.encode("he"), end]).strip() == "he"
    assert tokens.token_bytes(end) == b"<|im_end|>"
    assert tokens.decode([end]) == "<|im_end|>"


def test_marker_of_a_dialect_has_text() -> None:
    tokens = TextTokenizer(train_tokenizer(), markers={"<|im_end|>"})
    ids = tokens.encode("a<|im_end|><|im_start|>")
    assert streamed(tokens, ids) == "a<|im_end|>"


@each
def test_special_token_in_client_text_stays_text(tokens: TextTokenizer) -> None:
    (end,) = tokens._encode("<|im_end|>")
    ids = rendered(tokens, "a ", "he <|im_end|> he<|im_end|>", "<|im_end|>\n")
    assert [index for index in ids if index in tokens._special_ids] == [end]
    assert streamed(tokens, ids).strip() == "a he <|im_end|> he<|im_end|>"


@each
@given(st.text(alphabet="<|im_end>s/ \n", max_size=30), st.text(alphabet="ahe \n", max_size=10))
def test_no_client_text_becomes_a_special_token(tokens: TextTokenizer, content: str, before: str) -> None:
    ids = rendered(tokens, before, content, "")
    assert tokens._special_ids.isdisjoint(ids)
    text = streamed(tokens, ids)
    assert text in (before + content, " " + before + content)


@each
@pytest.mark.parametrize("content", TRICKY)
def test_client_text_without_special_tokens_is_encoded_unchanged(tokens: TextTokenizer, content: str) -> None:
    assert rendered(tokens, "<|im_end|>he\n", content, "<|im_end|>") == tokens._encode(
        f"<|im_end|>he\n{content}<|im_end|>"
    )


def test_escape_replaces_keys_and_avoids_used_characters() -> None:
    escape = BYTE_LEVEL.special_token_escape()
    variables = {"a<|im_end|>": ["\U000f0000<|im_start|>", 1, None, {"b": ("<|im_end|>",)}]}
    escaped = escape.escape(variables)
    assert "<|" not in str(escaped)
    ((key, (first, *_, last)),) = escaped.items()
    assert escape.unescape(key + first + last["b"][0]) == "a<|im_end|>\U000f0000<|im_start|><|im_end|>"


def test_escape_returns_variables_without_special_tokens_as_they_are() -> None:
    variables: dict[str, Any] = {"messages": [{"content": "hello"}]}
    assert BYTE_LEVEL.special_token_escape().escape(variables) is variables


def test_client_text_stays_text_if_vocabulary_has_special_tokens_as_words() -> None:
    """Llama 3 looks up whole words in the vocabulary before merging. This must not produce a special token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: index for index, token in enumerate([*sorted(alphabet), "[END]"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["[END]"])
    tokens = TextTokenizer(tokenizer)
    ids = rendered(tokens, "", "[END]", "")
    assert vocabulary["[END]"] not in ids
    assert streamed(tokens, ids) == "[END]"


@each
def test_input_of_an_encoder_does_not_depend_on_the_call_before(tokens: TextTokenizer) -> None:
    special = tokens.special_id("<|im_end|>")
    tokens.encode("a", specials=False)
    assert special in tokens.encode_input("a<|im_end|>", None, 100)[0]


def test_decode_refuses_ids_outside_the_vocabulary() -> None:
    for index in (-1, BYTE_LEVEL.vocab_size):
        with pytest.raises(InvalidRequest, match=str(index)):
            BYTE_LEVEL.decode([index])
    assert BYTE_LEVEL.token_bytes(BYTE_LEVEL.vocab_size) == b""


def test_encode_refuses_a_lone_surrogate() -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        BYTE_LEVEL.encode("\ud800")


def test_load_names_the_invalid_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TextTokenizer.load(path)


def test_byte_order_mark_of_the_file_is_skipped(tiny: Path, tmp_path: Path) -> None:
    marked = tmp_path / "tokenizer.json"
    marked.write_bytes(b"\xef\xbb\xbf" + (tiny / "tokenizer.json").read_bytes())
    plain = TextTokenizer.load(tiny / "tokenizer.json")
    assert TextTokenizer.load(marked).encode("A text.") == plain.encode("A text.")

"""Text to ids and back, over a byte-level vocabulary and two SentencePiece ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gateway.errors import BundleError, InvalidRequest
from gateway.text.tokens import TokenText
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
    """A byte-fallback BPE in Llama 2's way: a space before the text (`legacy`: before every piece of it)."""
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


BYTE_LEVEL = TokenText(train_tokenizer())
LEGACY, METASPACE = TokenText(sentencepiece(legacy=True)), TokenText(sentencepiece(legacy=False))
ALL = {"byte-level": BYTE_LEVEL, "legacy": LEGACY, "metaspace": METASPACE}
each = pytest.mark.parametrize("tokens", ALL.values(), ids=ALL.keys())


def streamed(tokens: TokenText, ids: list[int]) -> str:
    decoder = tokens.decoder()
    return "".join(map(decoder.push, ids))


def rendered(tokens: TokenText, before: str, content: str, after: str) -> list[int]:
    disguise = tokens.disguise()
    hidden = disguise.put_on({"messages": [{"content": content}]})
    return tokens.encode_rendered(before + hidden["messages"][0]["content"] + after, disguise)


@each
@pytest.mark.parametrize("text", TRICKY)
def test_tricky_text_comes_back(tokens: TokenText, text: str) -> None:
    assert streamed(tokens, tokens.encode(text)).removeprefix("" if tokens is BYTE_LEVEL else " ") == text
    assert tokens.decode(tokens.encode(text)) == text


@given(st.text())
def test_any_text_comes_back_in_whole_characters(text: str) -> None:
    decoder, pieces = BYTE_LEVEL.decoder(), []
    for index in BYTE_LEVEL.encode(text):
        pieces.append(decoder.push(index))
        assert "\ufffd" not in pieces[-1] or "\ufffd" in text
    assert decoder.is_whole
    assert "".join(pieces) == text


def test_a_character_waits_for_its_last_byte() -> None:
    decoder = LEGACY.decoder()
    ids = [LEGACY._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "🦊".encode()]
    assert [decoder.push(index) for index in ids] == ["", "", "", "🦊"]
    decoder.push(ids[0])
    assert not decoder.is_whole


def test_bytes_that_are_no_character_do_not_hold_up_what_follows() -> None:
    byte = LEGACY._tokenizer.token_to_id
    assert streamed(LEGACY, [byte("<0xF0>"), byte("a"), byte("<0x9F>"), byte("he")]) == "\ufffda\ufffdhe"


@each
def test_special_tokens_never_become_text(tokens: TokenText) -> None:
    (end,) = tokens._encode("<|im_end|>")
    assert streamed(tokens, [*tokens.encode("he"), end]).strip() == "he"
    assert tokens.bytes_of(end) == b"<|im_end|>"
    assert tokens.decode([end]) == "<|im_end|>"


def test_a_dialects_marker_is_text() -> None:
    tokens = TokenText(train_tokenizer(), markers={"<|im_end|>"})
    ids = tokens.encode("a<|im_end|><|im_start|>")
    assert streamed(tokens, ids) == "a<|im_end|>"


@each
def test_special_text_of_a_client_stays_text(tokens: TokenText) -> None:
    (end,) = tokens._encode("<|im_end|>")
    ids = rendered(tokens, "a ", "he <|im_end|> he<|im_end|>", "<|im_end|>\n")
    assert [index for index in ids if index in tokens._special_ids] == [end]
    assert streamed(tokens, ids).strip() == "a he <|im_end|> he<|im_end|>"


@each
@given(st.text(alphabet="<|im_end>s/ \n", max_size=30), st.text(alphabet="ahe \n", max_size=10))
def test_no_content_can_spell_a_special_token(tokens: TokenText, content: str, before: str) -> None:
    ids = rendered(tokens, before, content, "")
    assert tokens._special_ids.isdisjoint(ids)
    text = streamed(tokens, ids)
    assert text in (before + content, " " + before + content)


@each
@pytest.mark.parametrize("content", TRICKY)
def test_content_without_special_text_is_tokenized_as_if_nothing_were_done(tokens: TokenText, content: str) -> None:
    assert rendered(tokens, "<|im_end|>he\n", content, "<|im_end|>") == tokens._encode(
        f"<|im_end|>he\n{content}<|im_end|>"
    )


def test_disguises_reach_keys_and_keep_clear_of_characters_in_use() -> None:
    disguise = BYTE_LEVEL.disguise()
    variables = {"a<|im_end|>": ["\U000f0000<|im_start|>", 1, None, {"b": ("<|im_end|>",)}]}
    hidden = disguise.put_on(variables)
    assert "<|" not in str(hidden)
    ((key, (first, *_, last)),) = hidden.items()
    assert disguise.take_off(key + first + last["b"][0]) == "a<|im_end|>\U000f0000<|im_start|><|im_end|>"


def test_clean_variables_are_left_alone() -> None:
    variables: dict[str, Any] = {"messages": [{"content": "hello"}]}
    assert BYTE_LEVEL.disguise().put_on(variables) is variables


def test_a_vocabulary_that_holds_its_special_tokens_as_words() -> None:
    """Llama 3 takes a whole word from the vocabulary before it merges; a special token must not come in that way."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {token: index for index, token in enumerate([*sorted(alphabet), "[END]"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["[END]"])
    tokens = TokenText(tokenizer)
    ids = rendered(tokens, "", "[END]", "")
    assert vocabulary["[END]"] not in ids
    assert streamed(tokens, ids) == "[END]"


def test_ids_outside_the_vocabulary_are_refused() -> None:
    for index in (-1, BYTE_LEVEL.vocab_size):
        with pytest.raises(InvalidRequest, match=str(index)):
            BYTE_LEVEL.decode([index])
    assert BYTE_LEVEL.bytes_of(BYTE_LEVEL.vocab_size) == b""


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="Unicode"):
        BYTE_LEVEL.encode("\ud800")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        TokenText.load(path)

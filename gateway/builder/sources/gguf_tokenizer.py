"""Converts the tokenizer in a GGUF file's metadata to a Hugging Face tokenizer.json.

The file contains the vocabulary and the merges, but only the name of the pre-tokenizer, which splits text into words
(`tokenizer.ggml.pre`). This module has the pre-tokenizers. An unknown name is an error, because a wrong pre-tokenizer
gives wrong token ids that still decode to text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gateway.builder.sources.end_tokens import is_end_token
from gateway.errors import BundleError

Metadata = Callable[..., Any]  # metadata(key, default=None)

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"


class _PreTokenizerRule(Struct, frozen=True, kw_only=True):
    """How text is split into words. `pattern` None: GPT-2's pattern, which is part of `ByteLevel`."""

    pattern: str | None = None
    single_digits: bool = False
    nfc: bool = False  # normalise to NFC first
    ignore_merges: bool = False  # a word in the vocabulary is one token, even if the merges do not lead to it
    add_bos: bool = False  # the default of `add_bos_token`

    def pre_tokenizer(self) -> Any:
        digits = [pre_tokenizers.Digits(individual_digits=True)] if self.single_digits else []
        split = [pre_tokenizers.Split(Regex(self.pattern), "isolated")] if self.pattern else []
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        return pre_tokenizers.Sequence([*digits, *split, to_bytes])


_GPT2 = _PreTokenizerRule()
_SINGLE_DIGITS = _PreTokenizerRule(single_digits=True)
_RULES = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "llama-bpe": _PreTokenizerRule(pattern=_LLAMA3, ignore_merges=True, add_bos=True),
    "qwen2": _PreTokenizerRule(pattern=_QWEN2, nfc=True),
    "deepseek-r1-qwen": _PreTokenizerRule(pattern=_QWEN2, nfc=True, add_bos=True),
}


def tokenizer_json(metadata: Metadata, file_name: str) -> str:
    """The text of tokenizer.json. Raises BundleError if the kind of tokenizer or its pre-tokenizer is unknown."""
    kind, rule_name = metadata("tokenizer.ggml.model"), metadata("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise BundleError(f"{file_name} has a tokenizer of kind {kind!r}. Only byte-level BPE ('gpt2') is supported.")
    if rule_name not in _RULES:
        raise BundleError(
            f"{file_name} has the pre-tokenizer {rule_name!r}. Only these are supported: {', '.join(_RULES)}."
        )
    rule = _RULES[rule_name]
    tokens: list[str] = metadata("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.ignore_merges))
    except Exception as error:  # the library raises a bare Exception
        raise BundleError(
            f"{file_name} is damaged: its vocabulary and merges do not fit together ({error})."
        ) from error
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(metadata, rule, tokens)
    _add_special_tokens(tokenizer, tokens, metadata("tokenizer.ggml.token_type", ()))
    return str(tokenizer.to_str())


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """The content of tokenizer_config.json: special tokens by name, and the chat template."""
    tokens: list[str] = metadata("tokenizer.ggml.tokens")
    named = {
        "bos_token": metadata("tokenizer.ggml.bos_token_id"),
        "eos_token": metadata("tokenizer.ggml.eos_token_id"),
        "unk_token": metadata("tokenizer.ggml.unknown_token_id"),
        "pad_token": metadata("tokenizer.ggml.padding_token_id"),
    }
    content: dict[str, Any] = {name: tokens[index] for name, index in named.items() if index is not None}
    content |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    content["add_bos_token"] = _adds_bos(metadata, _RULES.get(metadata("tokenizer.ggml.pre", "default"), _GPT2))
    default = metadata("tokenizer.chat_template")
    named = {"default": default} | {
        name: metadata(f"tokenizer.chat_template.{name}") for name in metadata("tokenizer.chat_templates", ())
    }
    listed = [{"name": name, "template": template} for name, template in named.items() if template]
    if not listed:
        return content
    return content | {"chat_template": default if listed == [{"name": "default", "template": default}] else listed}


def end_ids(metadata: Metadata) -> tuple[int, ...]:
    """Every token id that ends an answer. The file's `eos` is first."""
    named = [metadata(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    tokens, types = metadata("tokenizer.ggml.tokens", ()), metadata("tokenizer.ggml.token_type", ())
    special = (index for index, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED))
    known = [index for index in special if index < len(tokens) and is_end_token(tokens[index])]
    return tuple(dict.fromkeys(index for index in [*named, *known] if index is not None))


def _adds_bos(metadata: Metadata, rule: _PreTokenizerRule) -> bool:
    has_one = metadata("tokenizer.ggml.bos_token_id") is not None
    return has_one and bool(metadata("tokenizer.ggml.add_bos_token", rule.add_bos))


def _post_processor(metadata: Metadata, rule: _PreTokenizerRule, tokens: list[str]) -> Any:
    if not _adds_bos(metadata, rule):
        return processors.ByteLevel(trim_offsets=True)
    index = metadata("tokenizer.ggml.bos_token_id")
    return processors.TemplateProcessing(single=[tokens[index], "$A"], special_tokens=[(tokens[index], index)])


def _add_special_tokens(tokenizer: Any, tokens: list[str], types: list[int]) -> None:
    control = [token for token, kind in zip(tokens, types, strict=False) if kind in (_UNKNOWN, _CONTROL)]
    user = [token for token, kind in zip(tokens, types, strict=False) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user])

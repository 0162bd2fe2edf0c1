"""Converts the tokenizer in a GGUF file's metadata to a Hugging Face tokenizer.json.

There are two kinds: byte-level BPE ("gpt2"), with a list of merges and the name of the rule that splits text into words
(gguf_words.py), and SentencePiece ("llama"), with a score for each token (gguf_sentencepiece.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from gateway.builder.sources.end_tokens import is_end_token
from gateway.builder.sources.gguf_sentencepiece import sentencepiece
from gateway.builder.sources.gguf_words import RULES, Rule
from gateway.errors import BundleError, cut, quote

Metadata = Callable[..., Any]  # metadata(key, default=None)

_KINDS = ("gpt2", "llama")
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type


def tokenizer_json(metadata: Metadata, file_name: str) -> str:
    """The text of tokenizer.json. Raises BundleError if the kind of tokenizer or its pre-tokenizer is unknown."""
    kind = metadata("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise BundleError(
            f"{file_name} has a tokenizer of kind {quote(str(kind))}. Only byte-level BPE ('gpt2') and SentencePiece "
            "('llama') are supported: use another file of the model."
        )
    tokens: list[str] = metadata("tokenizer.ggml.tokens")
    make = (
        partial(_byte_level, metadata, tokens, file_name)
        if kind == "gpt2"
        else partial(sentencepiece, metadata, tokens)
    )
    try:
        tokenizer = make()
    except BundleError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise BundleError(
            f"{file_name} is damaged: its vocabulary and merges do not fit together ({cut(str(error), 100)})."
        ) from error
    if _adds_bos(metadata):
        index = metadata("tokenizer.ggml.bos_token_id")
        begin = processors.TemplateProcessing(single=[tokens[index], "$A"], special_tokens=[(tokens[index], index)])
        tokenizer.post_processor = begin
    _add_special_tokens(tokenizer, tokens, metadata("tokenizer.ggml.token_type", ()))
    return str(tokenizer.to_str())


def _byte_level(metadata: Metadata, tokens: list[str], file_name: str) -> Tokenizer:
    rule = _rule(metadata, file_name)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _rule(metadata: Metadata, file_name: str) -> Rule:
    name = metadata("tokenizer.ggml.pre", "default")
    if name not in RULES:
        raise BundleError(f"{file_name} has the pre-tokenizer {name!r}. Only these are supported: {', '.join(RULES)}.")
    return RULES[name]


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
    content["add_bos_token"] = _adds_bos(metadata)
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


def _adds_bos(metadata: Metadata) -> bool:
    if metadata("tokenizer.ggml.bos_token_id") is None:
        return False
    rule = RULES.get(metadata("tokenizer.ggml.pre", "default"))
    usual = metadata("tokenizer.ggml.model") == "llama" or (rule is not None and rule.add_bos)
    return bool(metadata("tokenizer.ggml.add_bos_token", usual))


def _add_special_tokens(tokenizer: Any, tokens: list[str], types: list[int]) -> None:
    control = [token for token, kind in zip(tokens, types, strict=False) if kind in (_UNKNOWN, _CONTROL)]
    user = [token for token, kind in zip(tokens, types, strict=False) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user])

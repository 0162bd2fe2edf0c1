"""How each pre-tokenizer of GGUF files splits text into words. `tokenizer.ggml.pre` has its name.

A rule is a list of patterns. Each one splits the pieces that the patterns before it have left. An unknown name is an
error, because a wrong pre-tokenizer gives wrong token ids that still decode to text.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"


class Rule(Struct, frozen=True, kw_only=True):
    patterns: tuple[str, ...]
    nfc: bool = False  # normalise to NFC first
    ignore_merges: bool = False  # a word in the vocabulary is one token, even if the merges do not lead to it
    add_bos: bool = False  # the default of `add_bos_token`

    def pre_tokenizer(self) -> Any:
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_SINGLE_DIGITS = Rule(patterns=(r"\p{N}", _GPT2))
_LLAMA3_RULE = Rule(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True)
_DEFAULT = Rule(patterns=(_PUNCTUATION, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
RULES = {
    "default": _DEFAULT,
    "gpt-2": Rule(patterns=(_GPT2,)),
    "olmo": Rule(patterns=(_GPT2,)),
    "trillion": Rule(patterns=(_GPT2,)),
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "minerva-7b": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "falcon3": _LLAMA3_RULE,
    "pixtral": _LLAMA3_RULE,
    "smaug-bpe": Rule(patterns=(_LLAMA3,)),
    "dbrx": Rule(patterns=(_LLAMA3,)),
    "gpt-4o": Rule(patterns=(_GPT4O,)),
    "qwen2": Rule(patterns=(_QWEN2,), nfc=True),
    "megrez": Rule(patterns=(_QWEN2,)),
    "deepseek-r1-qwen": Rule(patterns=(_QWEN2,), nfc=True),
    "tekken": Rule(patterns=(_TEKKEN,), ignore_merges=True, add_bos=True),
}

"""Converts a SentencePiece tokenizer in a GGUF file's metadata to a Hugging Face tokenizer.json.

SentencePiece's BPE has no list of merges. Of the neighbours whose joined text is a token, it joins those with the best
score first. So the merges are all pairs of tokens whose joined text is a token, in the order of its score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers

Metadata = Callable[..., Any]  # metadata(key, default=None)

_NORMAL, _UNKNOWN = 1, 2  # tokenizer.ggml.token_type
_LONGEST = 1024  # characters of a token; those of a longer one are not joined, as its pairs would take too long
_SPACE = "\u2581"  # SentencePiece writes a space as this character


def sentencepiece(metadata: Metadata, tokens: Sequence[str]) -> Tokenizer:
    """The tokenizer without its special tokens. Raises Exception if the vocabulary does not fit together."""
    scores = metadata("tokenizer.ggml.scores", None) or [float(-index) for index in range(len(tokens))]
    types = metadata("tokenizer.ggml.token_type", None) or [_NORMAL] * len(tokens)
    unknown = next((token for token, kind in zip(tokens, types, strict=False) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_merges(tokens, scores, types),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    adds_space = bool(metadata("tokenizer.ggml.add_space_prefix", True))
    prepend = [normalizers.Prepend(_SPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """The pairs in the order in which they are joined. Tokens that are not text, such as `<s>`, are no result."""
    texts = set(tokens)
    ordered = sorted(range(len(tokens)), key=lambda index: -scores[index])
    return [
        (tokens[index][:cut], tokens[index][cut:])
        for index in ordered
        if types[index] == _NORMAL and len(tokens[index]) <= _LONGEST
        for cut in range(1, len(tokens[index]))
        if tokens[index][:cut] in texts and tokens[index][cut:] in texts
    ]

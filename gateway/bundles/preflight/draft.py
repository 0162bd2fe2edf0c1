"""Compares a bundle with the one that drafts for it (`draft` in a model's table), by their small files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec import Struct, field

from gateway.bundles.encoder.bundle import is_encoder_bundle
from gateway.bundles.open import open_bundle
from gateway.errors import BundleError

_LEAST_SHARED = 0.99  # of the tokens: fine-tuned models rename a few

_Stamp = tuple[int, int]  # time of modification in ns, bytes


class _Model(Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Added(Struct):
    id: int
    content: str


class _Tokenizer(Struct):
    model: _Model
    added_tokens: list[_Added] = field(default_factory=list)


def check_draft(name: str, folder: Path, tokenizer: str, draft: Path) -> None:
    """Raises BundleError if the bundle in `draft` cannot draft for the model `name`, whose bundle is in `folder`.

    Args:
        tokenizer: the key of the model's table.
    """
    check_kinds(name, folder, draft)
    own, other = open_bundle(folder, tokenizer=tokenizer), open_bundle(draft)
    check_vocabularies(name, own.tokenizer_path, draft.name, other.tokenizer_path)


def check_kinds(name: str, folder: Path, draft: Path) -> None:
    """The part of `check_draft` that needs no look into the bundles. `folder` can be missing."""
    if is_encoder_bundle(folder):
        raise BundleError(f"{name} is an encoder and generates no text: remove `draft` from its table.")
    if not draft.is_dir():
        raise BundleError(
            f"{draft.name}, which drafts for {name}, has no bundle: `npu-gateway pull` gets one, and "
            f"`npu-gateway serve` without a name builds those with a `source`. Or remove `draft`."
        )
    if is_encoder_bundle(draft):
        raise BundleError(f"{draft.name} is an encoder, which cannot draft for {name}: change `draft`.")


def check_vocabularies(name: str, tokenizer: Path, draft: str, draft_tokenizer: Path) -> None:
    """Raises BundleError if the tokens of the two files differ. A few may be renamed, and one file may have more."""
    if difference := _difference(tokenizer, _stamp(tokenizer), draft_tokenizer, _stamp(draft_tokenizer)):
        raise BundleError(
            f"{draft} cannot draft for {name}: {difference}. Set `draft` to a smaller model of the same family, or "
            "remove it."
        )


@lru_cache(8)
def _difference(tokenizer: Path, stamp: _Stamp, draft_tokenizer: Path, draft_stamp: _Stamp) -> str:
    """Why the vocabularies do not fit; "" if they do. The result is kept until a file changes: to decode 128,000 tokens
    stops all threads for 40 ms, and the gateway looks every few seconds until a mistake is corrected."""
    if tokenizer.read_bytes() == draft_tokenizer.read_bytes():
        return ""
    own, other = _tokens(tokenizer), _tokens(draft_tokenizer)
    shared = sum(other.get(token) == id for token, id in own.items())
    is_same = shared >= _LEAST_SHARED * min(len(own), len(other))
    return "" if is_same else f"only {shared} of its {len(other)} tokens are the same"


def _stamp(file: Path) -> _Stamp:
    found = file.stat()
    return found.st_mtime_ns, found.st_size


def _tokens(path: Path) -> Mapping[str, int]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
    except msgspec.MsgspecError as error:
        raise BundleError(
            f"{path.parent.name}: tokenizer.json has no vocabulary that can be compared: {error}."
        ) from error
    vocab = found.model.vocab
    tokens = vocab if isinstance(vocab, dict) else {token: id for id, (token, _) in enumerate(vocab)}
    return {**tokens, **{added.content: added.id for added in found.added_tokens}}

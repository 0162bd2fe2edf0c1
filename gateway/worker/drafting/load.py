"""Loads the model that drafts, next to the main model in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from gateway.activity import Activity
from gateway.bundles.open import open_bundle
from gateway.errors import BundleError
from gateway.worker.decoders.base import Decoder, KVCache
from gateway.worker.drafting.model import DraftModel
from gateway.worker.frames import PassTimes, WorkerSpec

_LEAST_SHARED = 0.99  # of the tokens: fine-tuned models rename a few

#: Opens a decoder, makes its caches, warms it up and times its passes.
OpenWarm = Callable[[WorkerSpec], tuple[Decoder, list[KVCache], PassTimes]]


class _Model(Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Added(Struct):
    id: int
    content: str


class _Tokenizer(Struct):
    model: _Model
    added_tokens: list[_Added] = field(default_factory=list)


def load_draft_model(
    spec: WorkerSpec, main: Decoder, tokenizer: Path, activity: Activity, open_warm: OpenWarm
) -> DraftModel:
    """Open the bundle `spec.draft`. Raises BundleError if it cannot draft for this model, EngineFailed.

    Args:
        spec: of the worker.
        main: the decoder of the main model.
        tokenizer: the main model's tokenizer.json.
    """
    bundle = open_bundle(Path(spec.draft))
    check_vocabularies(Path(spec.bundle).name, tokenizer, Path(spec.draft).name, bundle.tokenizer_path)
    own = replace(
        spec,
        bundle=spec.draft,
        draft="",
        tokenizer="",
        provider="cpu" if spec.provider == "cpu" else "auto",
        context_length=main.spec.context_length,
    )
    decoder, caches, passes = open_warm(own)
    return DraftModel(decoder, caches, main.spec.vocab_size, passes, activity)


def check_vocabularies(name: str, tokenizer: Path, draft: str, draft_tokenizer: Path) -> None:
    """Raises BundleError if the tokens of the two files differ. A few may be renamed, and one file may have more."""
    if tokenizer.read_bytes() == draft_tokenizer.read_bytes():
        return
    own, other = _tokens(tokenizer), _tokens(draft_tokenizer)
    shared = sum(other.get(token) == id for token, id in own.items())
    if shared < _LEAST_SHARED * min(len(own), len(other)):
        raise BundleError(
            f"{draft} cannot draft for {name}: only {shared} of its {len(other)} tokens are the same. Set `draft` to a "
            "smaller model of the same family, or remove it."
        )


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

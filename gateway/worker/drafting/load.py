"""Loads the model that drafts, next to the main model in the same process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from gateway.activity import Activity
from gateway.bundles.open import open_bundle
from gateway.bundles.preflight.draft import check_vocabularies
from gateway.worker.decoders.base import Decoder, KVCache
from gateway.worker.drafting.model import DraftModel
from gateway.worker.frames import PassTimes, WorkerSpec

#: Opens a decoder, makes its caches, warms it up and times its passes.
OpenWarm = Callable[[WorkerSpec], tuple[Decoder, list[KVCache], PassTimes]]


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

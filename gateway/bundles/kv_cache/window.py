"""The context that a model on the CPU serves.

Its KV caches have a fixed size, `max_sequences` times the context, and Windows charges all of it to the page file when
the model is loaded. Without `context_length`, the caches of a model get at most `SHARE` of `[memory] budget_mb`:

    context = SHARE * budget / (max_sequences * bytes of a token)

rounded down to a multiple of 256, at least 4096, and never more than the model has. A model that drafts has caches too,
as long as these or as its context. They count.
"""

from __future__ import annotations

import math
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gateway.bundles.disk import megabytes
from gateway.bundles.genai_config import read_genai_config
from gateway.bundles.kv_cache.element import element_bytes
from gateway.bundles.model_package import variant_folder
from gateway.bundles.stamp import built_folder
from gateway.errors import BundleError

SHARE = 0.5  # of the memory of all models together
_LEAST, _MULTIPLE = 4096, 256  # tokens


class Window(Struct, frozen=True, kw_only=True):
    """Args:
    context: tokens that the model serves.
    own: tokens that it could serve.
    token_bytes: of one token in one cache.
    sequences: number of caches.
    is_configured: the configuration sets the context.
    draft: of the model that drafts.
    """

    context: int
    own: int
    token_bytes: int
    sequences: int
    is_configured: bool = False
    draft: Window | None = None

    @property
    def bytes(self) -> int:
        """Of all caches, when all of them are full."""
        return self.context * self.sequences * self.token_bytes + (self.draft.bytes if self.draft else 0)

    @property
    def note(self) -> str:
        """One sentence if the context is limited for the memory; "": it is not."""
        if self.is_configured or self.context == self.own:
            return ""
        return (
            f"context {self.context} of {self.own}: the KV caches of {self.sequences} requests at a time need "
            f"{megabytes(self.bytes)}; set context_length or max_sequences to change it"
        )

    def refusal(self, budget_bytes: float) -> str:
        """Why the configured context can never fit into the memory of all models; "": it can."""
        if not self.is_configured or self.bytes <= budget_bytes:
            return ""
        fits = int(_fitting(budget_bytes / self.sequences, self.token_bytes, self.draft))
        return (
            f"needs {megabytes(self.bytes)} for the KV caches of {self.sequences} requests at a time with "
            f"context_length = {self.context}, and all models together have {megabytes(int(budget_bytes))}: set "
            f"context_length to at most {fits}, lower max_sequences, or raise [memory] budget_mb"
        )


def read_window(
    folder: Path, *, sequences: int, configured: int, budget_bytes: float, draft: str = ""
) -> Window | None:
    """The context of the bundle in `folder`. None: its caches are not those of the CPU decoder, or it is damaged.

    Args:
        sequences: `max_sequences`.
        configured: `context_length`; 0: not configured.
        budget_bytes: for all models together.
        draft: path of the folder of the bundle that drafts; "": none.
    """
    try:
        folder = variant_folder(folder)
        config = read_genai_config(folder)
    except BundleError:
        return None
    decoder = config.decoder
    if decoder.stages:
        return None
    element = element_bytes(folder / decoder.filename, decoder.inputs.past_key_names.replace("%d", "0"))
    token = 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_size * (element or 0)
    if not token:
        return None
    own, drafting = config.context_length, _of_draft(draft, sequences)
    fitting = min(own, _fitting(SHARE * budget_bytes / sequences, token, drafting))
    limit = own if fitting == own else max(_LEAST, int(fitting) // _MULTIPLE * _MULTIPLE)
    context = min(configured or limit, own)
    return Window(
        context=context,
        own=own,
        token_bytes=token,
        sequences=sequences,
        is_configured=bool(configured),
        draft=replace(drafting, context=min(context, drafting.own)) if drafting else None,
    )


def _of_draft(draft: str, sequences: int) -> Window | None:
    if not draft:
        return None
    return read_window(built_folder(Path(draft)), sequences=sequences, configured=0, budget_bytes=math.inf)


def _fitting(size: float, token_bytes: int, draft: Window | None) -> float:
    """The most tokens that one cache, and that of the model that drafts, have in `size` bytes."""
    if draft is None:
        return size / token_bytes
    both = size / (token_bytes + draft.token_bytes)
    return max(both, (size - draft.own * draft.token_bytes) / token_bytes)  # the second one: that cache ends before

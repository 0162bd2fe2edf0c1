"""What the gateway reads of the metadata that AI Hub writes next to a Genie configuration.

    metadata.json  model_files    {graph or binary: {"inputs": {name: {"shape", ...}}, ...}}   today
    metadata.yaml  components     {graph: ...}                                                older

A graph is called `ar128_cl4096_1_of_4`, with `prompt_` or `token_` before it or not: 128 tokens in one pass, of a
context of 4096. Exports by hand call it `prompt_1_of_4`, and a newer form has one entry for each binary: then the shape
of `input_ids` has the width. Both files can have megabytes, so this module searches them and does not decode them.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from gateway.bundles.identify import METADATA
from gateway.bundles.json_file import read_small_file
from gateway.errors import BundleError

_GRAPH_NAME = re.compile(rb"(?<![a-zA-Z])ar(\d{1,5})_cl(\d{1,7})_\d+_of_\d+")
#: `input_ids` with its shape, in JSON and in both styles of YAML: [1, 128], or one item in each line. `*+` and `?+` are
#: never tried again with less: a hostile file has megabytes of spaces.
_INPUT_IDS = re.compile(
    rb"""input_ids"?\s*+:\s*+\{?+\s*+(?:"?dtype"?\s*+:\s*+"?\w++"?,?+\s*+)?+"?shape"?\s*+:\s*+(?:\[\s*+|-\s*+)1\s*+[,-]\s*+(\d{1,5})\b"""
)


class Metadata(Struct, frozen=True, kw_only=True):
    """A bundle without metadata has the defaults."""

    prompt_width: int | None = None  # the maximum number of prompt tokens in one pass; None: unknown
    contexts: tuple[int, ...] = ()  # the context lengths that graphs exist for, in ascending order; empty: unknown


def read_metadata(folder: Path) -> Metadata:
    """The metadata of the bundle in `folder`. Raises BundleError if its file cannot be read."""
    path = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if path is None:
        return Metadata()
    try:
        text = read_small_file(path)
    except OSError as error:
        raise BundleError(f"{folder.name}: {path.name} cannot be read: {error.strerror}.") from error
    sizes = {(int(found[1]), int(found[2])) for found in _GRAPH_NAME.finditer(text)}
    stated = (int(found[1]) for found in _INPUT_IDS.finditer(text))
    widest = max((width for width, _ in sizes), default=0) or max(stated, default=0)
    return Metadata(
        prompt_width=widest if widest > 1 else None,  # the entry of a binary can describe its graph of one token
        contexts=tuple(sorted({context for _, context in sizes})),
    )

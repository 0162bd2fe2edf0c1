"""What the context binaries of a bundle state, from a child process: this module loads no native library."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.child import run_in_child


class Facts(Struct, frozen=True, kw_only=True):
    """`cast`: the logits have no scale in the bundle, and it was read ("scaled") or not ("unscaled"); "" if they have.

    `written`: the corrected graph.
    """

    binaries: int
    graphs: int
    cast: str = ""
    written: str = ""


class FactsRequest(Struct, frozen=True, kw_only=True):
    folder: str
    soc: int | None
    mended: str  # the folder for the corrected graph; "": none is written


def read_facts(folder: Path, soc: int | None, mended: Path | None = None) -> Facts:
    """Read the binaries of a pipeline or a Genie bundle.

    Args:
        soc: the chip that they must fit; None: any.
        mended: the folder for a corrected graph of the logits; None: none is written.
    Raises BundleError if one does not fit or is damaged.
    """
    request = FactsRequest(folder=str(folder), soc=soc, mended=str(mended or ""))
    return msgspec.json.decode(run_in_child("gateway.pull.examine.binaries", request, folder.name), type=Facts)

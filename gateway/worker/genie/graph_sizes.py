"""The sizes of the graphs in a bundle's binaries. Metadata can lack them, and the library does not report them."""

from __future__ import annotations

import logging

from msgspec.structs import replace

from gateway.bundles.genie.bundle import GenieBundle
from gateway.errors import BundleError
from gateway.qnn.binary_info import read_binary

_MASK = "attention_mask"  # (1, 1, tokens of a pass, context)
_log = logging.getLogger(__name__)


def with_graph_sizes(bundle: GenieBundle) -> GenieBundle:
    """The bundle with the width and the contexts of its graphs, or unchanged if its binaries do not show them.

    Load the dialog first: the library refuses damaged files without a crash, and reading them can crash.
    """
    try:
        graphs = [graph for binary in bundle.binaries for graph in read_binary(binary).graphs.values()]
    except BundleError as error:
        _log.warning("%s: the sizes of its graphs are estimated: %s", bundle.folder.name, error.message)
        return bundle
    masks = [tensor.shape for graph in graphs for tensor in graph.inputs if tensor.name == _MASK]
    if not all(len(shape) >= 2 for shape in masks) or not masks:
        return bundle
    contexts = tuple(sorted({shape[-1] for shape in masks}))
    return replace(bundle, prompt_width=max(shape[-2] for shape in masks), contexts=contexts)

"""What a bundle's binaries say about its graphs. The configuration and the metadata can say something else.

The library does not notice a wrong size: near the end of a context that is shorter than stated, it computes wrong
positions. So the binaries decide.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.genie.bundle import GenieBundle
from gateway.bundles.genie.tensors import StatedTensor, read_tensors
from gateway.qnn.binary_info import Graph, Tensor
from gateway.qnn.chains import MASK

_log = logging.getLogger(__name__)


def with_graph_sizes(bundle: GenieBundle, graphs: Sequence[Graph]) -> GenieBundle:
    """The bundle with the width and the contexts of its graphs, or unchanged if they have no mask."""
    masks = [tensor.shape for graph in graphs for tensor in graph.inputs if tensor.name == MASK]
    if not all(len(shape) >= 2 for shape in masks) or not masks:
        return bundle
    contexts = tuple(sorted({shape[-1] for shape in masks}))
    length = min(bundle.context_length, contexts[-1])
    if length < bundle.context_length:
        _log.warning(
            "%s: its configuration states a context of %d tokens, and its graphs have %d: the graphs are right",
            bundle.folder.name,
            bundle.context_length,
            length,
        )
    return replace(bundle, prompt_width=max(shape[-2] for shape in masks), contexts=contexts, context_length=length)


def warn_of_other_metadata(folder: Path, graphs: Mapping[str, Sequence[Graph]]) -> None:
    """Log one line if metadata.json describes other tensors than the binaries have: names, shapes, types, scales.

    Args:
        graphs: the graphs of each binary, by its file name.
    """
    found = list(_differences(folder, graphs))
    if found:
        more = f", and {len(found) - 1} more differences" if len(found) > 1 else ""
        line = "%s: metadata.json describes another build of the model (%s%s): the binaries are right"
        _log.warning(line, folder.name, found[0], more)


def _differences(folder: Path, graphs: Mapping[str, Sequence[Graph]]) -> Iterator[str]:
    every = [graph for group in graphs.values() for graph in group]
    for name, stated in read_tensors(folder).items():
        candidates = graphs.get(name) or [graph for graph in every if f"_{graph.name}".endswith(f"_{name}")]
        tensors = stated.inputs | stated.outputs
        found = [list(_differs(tensors, graph)) for graph in candidates or every]
        yield from (f"{each} of {name}" for each in min(found, key=len, default=[]))


def _differs(stated: Mapping[str, StatedTensor], graph: Graph) -> Iterator[str]:
    own = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
    for name, tensor in stated.items():
        found = own.get(re.sub(r"[/.]", "_", name))
        if found is None:
            yield f"the unknown tensor {name}"
        elif tensor.shape and tensor.shape != found.shape:
            yield f"the shape {list(tensor.shape)} instead of {list(found.shape)} for {name}"
        elif tensor.dtype and tensor.dtype != found.dtype:
            yield f"the type {tensor.dtype} instead of {found.dtype} for {name}"
        elif not _has_scale(tensor, found):
            yield f"another scale for {name}"


def _has_scale(stated: StatedTensor, found: Tensor) -> bool:
    scale = stated.quantization_parameters
    if scale is None or scale.scale is None or found.scale is None:
        return True
    return math.isclose(scale.scale, found.scale, rel_tol=1e-4) and scale.zero in (None, found.zero_point)

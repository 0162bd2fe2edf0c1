"""What the number format of a bundle's weights changes: the perplexity of a text, and the most probable next tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.builder.graphs.cpu import Boundary
from gateway.builder.graphs.matrices import row_groups
from gateway.builder.loss.graph_parts import GraphParts, Ids, Rows, boundary_values
from gateway.builder.sources.source import EMBEDDING, FINAL_NORM, HEAD, ModelSource
from gateway.bundles.stamp import Loss
from gateway.errors import BundleError, cut

_TEXT = Path(__file__).parents[1] / "npu" / "calibration.txt"
_TOKENS = 512  # of the text at most
_POSITIONS = 64  # whose logits are computed together

#: of each position: the log-probability of the next token, and the most probable one
Predictions = tuple[NDArray[np.float32], NDArray[np.int64]]


def text_ids(source: ModelSource) -> Ids:
    """The tokens of the calibration text, (tokens,). Raises BundleError."""
    from tokenizers import Tokenizer

    text = _TEXT.read_text(encoding="utf-8")
    try:
        tokenizer = Tokenizer.from_str(source.tokenizer_json())
    except BundleError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise BundleError(f"tokenizer.json cannot be read: {cut(str(error), 100)}. Download it again.") from error
    ids = np.array(tokenizer.encode(text).ids[:_TOKENS], np.int64)
    return ids[ids < source.config.vocab]


def measure_loss(
    source: ModelSource,
    ids: Ids,
    reference: Rows,
    graph: Path,
    boundaries: Sequence[Boundary],
    progress: Callable[[float], None],
) -> Loss:
    """Compare a bundle's graph with the source in floating point.

    Args:
        reference: the values of the source behind the last layer.
    """
    expected = _predictions(reference_logits(source, reference), ids)
    found = _predictions(_logits(GraphParts(graph, source.config), ids, boundaries, progress), ids)
    agreement = float(np.mean(expected[1] == found[1]))
    return Loss(before=_perplexity(expected), after=_perplexity(found), agreement=agreement, tokens=len(ids))


def _perplexity(predictions: Predictions) -> float:
    """The last position has no next token."""
    return float(np.exp(-predictions[0][:-1].mean()))


#: columns of logits that were computed together: the positions, the first token, the logits
_Block = tuple[slice, int, Rows]


def _predictions(blocks: Iterable[_Block], ids: Ids) -> Predictions:
    """Needs no more memory than one block of logits."""
    count, following = len(ids), np.roll(ids, -1)
    largest, sums = np.full(count, -np.inf), np.zeros(count)
    best, of_next = np.zeros(count, np.int64), np.zeros(count)
    for rows, first, logits in blocks:
        top = np.maximum(largest[rows], logits.max(-1))
        sums[rows] = sums[rows] * np.exp(largest[rows] - top) + np.exp(logits - top[:, None]).sum(-1)
        best[rows] = np.where(logits.max(-1) > largest[rows], first + logits.argmax(-1), best[rows])
        largest[rows] = top
        column = following[rows] - first
        is_here = (column >= 0) & (column < logits.shape[1])
        values = np.take_along_axis(logits, np.clip(column, 0, logits.shape[1] - 1)[:, None], 1)[:, 0]
        of_next[rows] = np.where(is_here, values, of_next[rows])
    return (of_next - largest - np.log(sums)).astype(np.float32), best


def reference_logits(source: ModelSource, hidden: Rows) -> Iterable[_Block]:
    config = source.config
    size = np.sqrt(np.square(hidden).mean(-1, keepdims=True) + config.rms_eps)
    x, first = hidden / size * source.tensor(FINAL_NORM), 0
    for weights in row_groups(source, EMBEDDING if config.tied_embeddings else HEAD):
        yield slice(0, len(x)), first, x @ weights.T
        first += len(weights)


def _logits(
    parts: GraphParts, ids: Ids, boundaries: Sequence[Boundary], progress: Callable[[float], None]
) -> Iterable[_Block]:
    (hidden,) = parts.open([], [boundaries[0][0]])({}, ids)
    for index, (before, after) in enumerate(pairwise(boundaries)):
        hidden, _ = parts.layer(before, after, hidden)
        progress((index + 1) / len(boundaries))
    compute = parts.open(boundaries[-1], ["logits"])
    for start in range(0, len(hidden), _POSITIONS):
        rows = slice(start, min(start + _POSITIONS, len(hidden)))
        yield rows, 0, compute(boundary_values(boundaries[-1], hidden[rows]), ids[rows])[0][0]
    progress(1.0)

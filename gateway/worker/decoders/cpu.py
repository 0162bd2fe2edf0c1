"""The CPU decoder: one graph for prompts and steps, a cache of slots, and I/O bindings that are made once.

1. Each run of adjacent slots has one I/O binding, made on first use. Its cache tensors are views of the slots, so a
   token allocates nothing and copies no cache. Only ids and logits are bound again when their shape changes.
2. The attention mask is always as wide as the context. Its sum is the length of the sequence, and a fixed shape keeps
   the binding. The results are bit-identical to those of a mask that fits.
3. Several sequences share a call. Relative to a step over one slot, a step over two slots costs 1.2, over four 1.7,
   over eight 2.6 (x86_64, 4-bit weights, int8 activations). A call includes up to two free slots between busy ones; the
   graph writes scratch rows behind their valid rows.
4. When it opens, the decoder finds out whether it is batch-invariant (see invariance.py): whether batching, chunking
   and drafts cannot change an answer. Our own graphs with int8 activations are, with the padding rows that the
   processor needs (see padding.py). Otherwise `spec.is_batch_invariant` is False, and other calls change the last bits:
   with float activations logits in -20..30 by at most 1e-3; with int8 activations, whose grid amplifies them, by 1.6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime as ort
from msgspec.structs import replace
from numpy.typing import NDArray

from gateway.bundles.bundle import Bundle
from gateway.bundles.genai_config import DecoderConfig
from gateway.errors import BundleError
from gateway.qnn.provider import placement
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu_cache import SlotBuffers, SlotCache
from gateway.worker.decoders.invariance import is_batch_invariant
from gateway.worker.decoders.onnx import SessionOptions, numpy_dtype, open_session, running_failed
from gateway.worker.decoders.padding import MAX_EXTRA_ROWS, ROWS, Padding, Span, round_up, span

PROMPT_WIDTH = 64  # wider chunks (measured up to 512) cost the same per token and delay other streams longer
DEFAULT_OPTIONS = SessionOptions()
ACTIVATIONS = "activations"  # metadata key of our own graphs
LOGITS_TO_KEEP = "logits_to_keep"  # input of our own graphs: compute logits for the last n positions only
_MAX_FREE_BETWEEN = 2  # this many free slots in a call cost less than a second call

Ids = NDArray[np.int64]


class CpuDecoder:
    """The Decoder of a one-graph bundle on the CPU provider.

    Args:
        slots: number of caches. Their memory is committed when rows are written.
        context_length: rows of a cache; 0 or a number above the model's limit: the model's limit.

    Raises BundleError if the graph cannot be opened or has other inputs, EngineFailed if there is no memory for it.
    """

    def __init__(
        self, bundle: Bundle, *, slots: int, context_length: int = 0, options: SessionOptions = DEFAULT_OPTIONS
    ) -> None:
        limit = bundle.config.context_length
        context_length = min(context_length or limit, limit)
        session = open_session(bundle.folder / bundle.config.decoder.filename, options)
        self._graph = _Graph(session, bundle.config.decoder, limit)
        self._buffers = self._graph.buffers(slots, context_length)
        self._logits = np.empty((max(slots * ROWS, PROMPT_WIDTH + MAX_EXTRA_ROWS), self._graph.vocab_size), np.float32)
        self._caches = [SlotCache(self._buffers, index) for index in range(slots)]
        self._new_caches = iter(self._caches)
        self._runs: dict[tuple[int, int], _SlotRun] = {}
        self.padding = Padding.NONE
        self._spec = DecoderSpec(
            vocab_size=self._graph.vocab_size,
            context_length=context_length,
            prompt_width=PROMPT_WIDTH,
            device="cpu",
            placement=placement(session),
        )
        self._find_padding(self._graph.paddings(self._buffers))

    @property
    def spec(self) -> DecoderSpec:
        return self._spec

    def new_cache(self) -> SlotCache:
        """The cache of the next slot. At most `slots` calls."""
        return next(self._new_caches)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        logits: Logits = self._extend(_slot(cache), ids, wanted=1)[-1]
        return logits

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._extend(_slot(cache), ids, wanted=len(ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        if len(caches) == 1:
            return self._extend(_slot(caches[0]), ids, wanted=1)
        slots = [_slot(cache) for cache in caches]
        for slot, token in zip(slots, ids, strict=True):
            slot.ids[slot.length] = token
        rows: dict[int, int] = {}  # of the logits, by slot
        row = 0
        for first, count in self._adjacent(sorted(slot.index for slot in slots)):
            spans = [self._span(slot.length, 1, 1, is_alone=count == 1) for slot in self._caches[first : first + count]]
            self._run(first, spans, row)
            for index, each in enumerate(spans, first):
                rows[index] = row + self._caches[index].length - (each.end - each.kept)
                row += each.kept
        for slot in slots:
            slot.length += 1
        order = [rows[slot.index] for slot in slots]
        in_order = order == list(range(len(order)))
        rows_of_logits: Logits = self._logits[: len(order)] if in_order else self._logits[order]
        return rows_of_logits

    def close(self) -> None:
        self._runs.clear()
        self._caches.clear()
        del self._graph, self._buffers

    def _find_padding(self, paddings: Sequence[Padding]) -> None:
        """Use the first padding with which the decoder is batch-invariant. If there is none, use no padding."""
        for self.padding in paddings:
            if is_batch_invariant(self, self._caches[:2], self._graph.attention_block):
                self._spec = replace(self._spec, is_batch_invariant=True)
                return
        self.padding = Padding.NONE

    def _span(self, length: int, new: int, wanted: int, *, is_alone: bool) -> Span:
        block = self._graph.attention_block
        return span(self.padding, length, new, wanted, block=block, is_alone=is_alone)

    def _extend(self, slot: SlotCache, ids: Sequence[int], wanted: int) -> Logits:
        """Append ids. Returns the logits of the last `wanted` ids."""
        end = slot.length + len(ids)
        slot.ids[slot.length : end] = ids
        rows = self._span(slot.length, len(ids), wanted, is_alone=True)
        kept = self._run(slot.index, [rows], 0)
        slot.length = end
        last = kept - (rows.end - end)
        return self._logits[last - wanted : last]

    def _adjacent(self, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Runs (first, count) of adjacent slots that include the slots `indices`, which ascend.

        A full slot is never between two members: the graph has no row there to write.
        """
        first = last = indices[0]
        for index in indices[1:]:
            between = self._caches[last + 1 : index]
            if len(between) > _MAX_FREE_BETWEEN or any(slot.length == self._buffers.context for slot in between):
                yield first, last - first + 1
                first = index
            last = index
        yield first, last - first + 1

    def _run(self, first: int, spans: Sequence[Span], row: int) -> int:
        """One device call over adjacent slots.

        Args:
            first: index of the first slot.
            spans: the rows of each slot, as many in each. Their tokens are in the slots' `ids`.
            row: the first row of the logits buffer to write.

        Returns: the number of rows with logits in each slot.
        """
        key = first, len(spans)
        if key not in self._runs:
            self._runs[key] = _SlotRun(self._graph, self._buffers, *key)
        slots = self._caches[first : first + len(spans)]
        ids = np.stack([slot.ids[rows.start : rows.end] for slot, rows in zip(slots, spans, strict=True)])
        kept = spans[0].kept if self._graph.is_own else spans[0].rows
        self._runs[key](ids, [rows.end for rows in spans], self._logits, row, kept)
        return kept


def _slot(cache: KVCache) -> SlotCache:
    assert isinstance(cache, SlotCache)
    return cache


class _Graph:
    """A session, and the names of its inputs and outputs from the bundle's configuration."""

    def __init__(self, session: ort.InferenceSession, config: DecoderConfig, limit: int) -> None:
        self.session = session
        layers = range(config.num_hidden_layers)
        inputs, outputs = config.inputs, config.outputs
        self.ids, self.mask, self.positions = inputs.input_ids, inputs.attention_mask, inputs.position_ids
        self.past = [name % i for i in layers for name in (inputs.past_key_names, inputs.past_value_names)]
        self.present = [name % i for i in layers for name in (outputs.present_key_names, outputs.present_value_names)]
        self.logits = outputs.logits

        declared = {value.name: value for value in session.get_inputs()}
        optional = {value.name for value in session.get_overridable_initializers()}
        self.is_own = LOGITS_TO_KEEP in declared.keys() | optional
        self.has_positions = self.positions in declared
        results = {value.name: value for value in session.get_outputs()}
        wanted = {self.ids, self.mask, *self.past, self.logits, *self.present}
        if missing := wanted - declared.keys() - results.keys():
            raise BundleError(
                f"The graph has no {min(missing)}. It is not a decoder with an attention mask and a cache."
            )
        _, kv_heads, _, head_dim = declared[self.past[0]].shape
        self._row, self._dtype = (kv_heads, head_dim), numpy_dtype(declared[self.past[0]].type)
        self.vocab_size = int(results[self.logits].shape[-1])
        self.attention_block = 2 * head_dim if self.is_own else PROMPT_WIDTH
        self._positions = limit + 1 if self.is_own else limit

    def buffers(self, slots: int, context: int) -> SlotBuffers:
        return SlotBuffers(len(self.past), slots, self._row, context, self._dtype)

    def mask_width(self, buffers: SlotBuffers) -> int:
        """The context, and in our own graphs also the padding rows, as far as the graph has positions."""
        return min(buffers.capacity, self._positions) if self.is_own else buffers.context

    def paddings(self, buffers: SlotBuffers) -> Sequence[Padding]:
        """The paddings to try. With float activations, a step over two rows costs 2.4 times as much as over one."""
        activations = self.session.get_modelmeta().custom_metadata_map.get(ACTIVATIONS)
        if not self.is_own or activations != "int8":
            return (Padding.NONE,)
        has_rows = round_up(buffers.context) <= self.mask_width(buffers)
        return (Padding.NONE, Padding.PAIRS, *([Padding.FOURS] if has_rows else []))


class _SlotRun:
    """The graph, bound to the caches of some adjacent slots.

    The binding holds pointers into numpy arrays. Each array is an attribute here, so that it stays in memory.
    """

    def __init__(self, graph: _Graph, buffers: SlotBuffers, first: int, count: int) -> None:
        self._graph = graph
        self._binding = graph.session.io_binding()
        self._mask = np.zeros((count, graph.mask_width(buffers)), np.int64)
        self._lengths = [0] * count
        self._keep = np.zeros(1, np.int64) if graph.is_own else None
        self._ids = np.empty((0, 0), np.int64)
        self._written = (-1, -1)  # the bound part of the logits buffer: first row, rows of each slot
        self._cache = buffers.run(first, count)
        for past, present, buffer in zip(graph.past, graph.present, self._cache, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        self._bind(graph.mask, self._mask)
        if self._keep is not None:
            self._bind(LOGITS_TO_KEEP, self._keep)

    def __call__(self, ids: Ids, lengths: Sequence[int], logits: Logits, row: int, kept: int) -> None:
        """Run the graph; see `CpuDecoder._run`. Writes `kept` rows of logits for each slot."""
        self._bind_ids(ids, lengths)
        self._bind_logits(logits, row, kept)
        for row, length in enumerate(lengths):
            self._set_length(row, length)
        try:
            self._graph.session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise running_failed(error) from error

    def _bind(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def _bind_ids(self, ids: Ids, lengths: Sequence[int]) -> None:
        if ids.shape == self._ids.shape:
            self._ids[...] = ids
        else:
            self._ids = ids
            self._bind(self._graph.ids, ids)
        if self._graph.has_positions:
            last = np.array(lengths, np.int64)[:, None]
            self._position_ids = last - np.arange(ids.shape[1], 0, -1)
            self._bind(self._graph.positions, self._position_ids)

    def _bind_logits(self, logits: Logits, row: int, kept: int) -> None:
        if (row, kept) == self._written:
            return
        self._written = row, kept
        slots = len(self._lengths)
        target = logits[row : row + slots * kept].reshape(slots, kept, -1)
        self._binding.bind_ortvalue_output(self._graph.logits, ort.OrtValue.ortvalue_from_numpy(target))
        if self._keep is not None:
            self._keep[0] = kept

    def _set_length(self, row: int, length: int) -> None:
        """Set the row's mask to `length` ones. Writes only the difference."""
        before = self._lengths[row]
        self._mask[row, min(before, length) : max(before, length)] = length > before
        self._lengths[row] = length

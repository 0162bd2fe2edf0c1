"""The CPU decoder: one graph for prompts and steps, a cache of slots, and I/O bindings that are made once.

1. Each run of adjacent slots has one I/O binding, made on first use. Its cache tensors are views of the slots, so a
   token allocates nothing and copies no cache. Only ids and logits are bound again when their shape changes.
2. The attention mask is always as wide as the context. Its sum is the length of the sequence, and a fixed shape keeps
   the binding. The bits are those of a mask that fits.
3. Several sequences share a call. Relative to a step over one slot, a step over two slots costs 1.2, over four 1.7,
   over eight 2.6. A step includes up to two free slots between busy ones: scratch rows behind their valid rows.
4. When it opens, the decoder finds out whether it is batch-invariant (see invariance.py): whether batching, chunking
   and drafts cannot change an answer. Our own graphs with int8 activations are, with the padding rows that the
   processor needs (see builder/graphs/cpu.py). Otherwise `spec.is_batch_invariant` is False, and other calls change the
   last bits: with float activations logits in -20..30 by at most 1e-3, with int8 activations by up to 1.6.
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
from gateway.worker.decoders.packed import open_packed
from gateway.worker.decoders.row_record import RowRecord, Rows, rows_of
from gateway.worker.decoders.threads import default_threads

PROMPT_WIDTH = 64  # wider chunks (measured up to 512) cost the same per token and delay other streams longer
DEFAULT_OPTIONS = SessionOptions()
ACTIVATIONS = "activations"  # metadata key of our own graphs
LOGITS_TO_KEEP = "logits_to_keep"  # input of our own graphs: compute logits for the last n positions only
ROW_MULTIPLE = "row_multiple"  # input of our own graphs: compute a multiple of n rows
_MAX_FREE_BETWEEN = 2  # this many free slots in a call cost less than a second call

Ids = NDArray[np.int64]


class CpuDecoder:
    """The Decoder of a one-graph bundle on the CPU provider.

    Args:
        slots: number of caches. Their memory is committed when rows are written.
        context_length: rows of a cache; 0 or a number above the model's limit: the model's limit.
        keeps_record: use the packed weights and the record of the check in the bundle (packed.py, row_record.py).

    Raises BundleError if the graph cannot be opened or has other inputs, EngineFailed if there is no memory for it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int,
        context_length: int = 0,
        options: SessionOptions = DEFAULT_OPTIONS,
        keeps_record: bool = False,
    ) -> None:
        context_length = min(context_length or bundle.config.context_length, bundle.config.context_length)
        path = bundle.folder / bundle.config.decoder.filename
        session = (open_packed if keeps_record else open_session)(path, options)
        self._graph = _Graph(session, bundle.config.decoder)
        self._buffers = self._graph.buffers(slots, context_length)
        self._logits = np.empty((max(slots, PROMPT_WIDTH), self._graph.vocab_size), np.float32)
        self._caches = [SlotCache(self._buffers, index) for index in range(slots)]
        self._new_caches = iter(self._caches)
        self._runs: dict[tuple[int, int], _SlotRun] = {}
        self._spec = DecoderSpec(
            vocab_size=self._graph.vocab_size,
            context_length=context_length,
            prompt_width=PROMPT_WIDTH,
            device="cpu",
            placement=placement(session),
            shared_prompt_rows=PROMPT_WIDTH if self._graph.has_logits_to_keep else 0,
        )
        settings = slots > 1, context_length, options.threads or default_threads()
        record = RowRecord(path, settings) if keeps_record else None
        self.row_multiple, batch_invariant = rows_of(record, self._graph.row_multiples, self._check_rows)
        shared = self._spec.shared_prompt_rows if batch_invariant else 0
        self._spec = replace(self._spec, is_batch_invariant=batch_invariant, shared_prompt_rows=shared)

    @property
    def spec(self) -> DecoderSpec:
        return self._spec

    def new_cache(self) -> SlotCache:
        """The cache of the next slot. At most `slots` calls."""
        return next(self._new_caches)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        logits: Logits = self._extend(_slot(cache), ids, keep=1)[-1]
        return logits

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._extend(_slot(cache), ids, keep=len(ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        if len(caches) == 1:
            return self._extend(_slot(caches[0]), ids, keep=1)
        return self._together(caches, [[token] for token in ids])

    def prefill_together(self, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]) -> Logits:
        return self._together(caches, ids)

    def _together(self, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]) -> Logits:
        slots, width = [_slot(cache) for cache in caches], len(ids[0])
        next_ids = {slot.index: tokens for slot, tokens in zip(slots, ids, strict=True)}
        rows: dict[int, int] = {}  # of the logits, by slot
        for first, count in self._adjacent(sorted(next_ids), _MAX_FREE_BETWEEN if width == 1 else 0):
            members = range(first, first + count)
            tokens = np.array([next_ids.get(index, [0]) for index in members], np.int64)
            lengths = [self._caches[index].length + width for index in members]
            self._run(first, tokens, lengths, keep=1, row=len(rows))
            rows |= {index: len(rows) + offset for offset, index in enumerate(members)}
        for slot in slots:
            slot.length += width
        order = [rows[slot.index] for slot in slots]
        logits: Logits = self._logits[: len(order)] if order == list(range(len(order))) else self._logits[order]
        return logits

    def free_caches(self) -> None:
        self._runs.clear()  # their bindings hold the buffers
        self._buffers.renew()

    def close(self) -> None:
        self._runs.clear()
        self._caches.clear()
        del self._graph, self._buffers

    def _check_rows(self) -> Rows:
        """The first multiple with which the decoder is batch-invariant. If there is none, no padding rows."""
        for multiple in self._graph.row_multiples:
            self.row_multiple = multiple
            if is_batch_invariant(self, self._caches[:2], self._graph.attention_block):
                return Rows(multiple, True)
        return Rows(1, False)

    @property
    def row_multiple(self) -> int:
        """The graph computes a number of rows that is a multiple of this."""
        return int(self._graph.row_multiple[0])

    @row_multiple.setter
    def row_multiple(self, multiple: int) -> None:
        self._graph.row_multiple[0] = multiple

    def _extend(self, slot: SlotCache, ids: Sequence[int], keep: int) -> Logits:
        """Append ids. The logits of the last `keep` ids, or of all ids if the graph cannot limit them."""
        self._run(slot.index, np.array([ids], np.int64), [slot.length + len(ids)], keep)
        slot.length += len(ids)
        return self._logits[: keep if self._graph.has_logits_to_keep else len(ids)]

    def _adjacent(self, indices: Sequence[int], most_free: int) -> Iterator[tuple[int, int]]:
        """Runs (first, count) of adjacent slots that include the slots `indices`, which ascend, and no full slot."""
        first = last = indices[0]
        for index in indices[1:]:
            between = self._caches[last + 1 : index]
            if len(between) > most_free or any(slot.length == self._buffers.context for slot in between):
                yield first, last - first + 1
                first = index
            last = index
        yield first, last - first + 1

    def _run(self, first: int, ids: Ids, lengths: Sequence[int], keep: int, row: int = 0) -> None:
        """One device call over adjacent slots.

        Args:
            first: index of the first slot.
            ids: int64 (slots, new), the new tokens of each slot.
            lengths: rows of each slot after the call.
            keep: positions with logits in each slot.
            row: the first row of the logits buffer to write.
        """
        assert max(lengths) <= self._buffers.context
        key = first, len(ids)
        if key not in self._runs:
            self._runs[key] = _SlotRun(self._graph, self._buffers, *key)
        kept = keep if self._graph.has_logits_to_keep else ids.shape[1]
        self._runs[key](ids, lengths, self._logits, row, kept)


def _slot(cache: KVCache) -> SlotCache:
    assert isinstance(cache, SlotCache)
    return cache


class _Graph:
    """A session, and the names of its inputs and outputs from the bundle's configuration."""

    def __init__(self, session: ort.InferenceSession, config: DecoderConfig) -> None:
        self.session = session
        layers = range(config.num_hidden_layers)
        inputs, outputs = config.inputs, config.outputs
        self.ids, self.mask, self.positions = inputs.input_ids, inputs.attention_mask, inputs.position_ids
        self.past = [name % i for i in layers for name in (inputs.past_key_names, inputs.past_value_names)]
        self.present = [name % i for i in layers for name in (outputs.present_key_names, outputs.present_value_names)]
        self.logits = outputs.logits

        declared = {value.name: value for value in session.get_inputs()}
        optional = {value.name for value in session.get_overridable_initializers()}
        self.has_logits_to_keep = LOGITS_TO_KEEP in declared.keys() | optional
        self.has_row_multiple = ROW_MULTIPLE in optional
        self.row_multiple = np.ones(1, np.int64)  # bound to each run
        self.has_positions = self.positions in declared
        results = {value.name: value for value in session.get_outputs()}
        wanted = {self.ids, self.mask, *self.past, self.logits, *self.present}
        if missing := wanted - declared.keys() - results.keys():
            raise BundleError(
                f"The graph has no {min(missing)}. It is not a decoder with an attention mask and a cache."
            )
        self._cache = declared[self.past[0]]
        self.vocab_size = int(results[self.logits].shape[-1])

    @property
    def row_multiples(self) -> Sequence[int]:
        """The multiples to try. With float activations, a step over two rows costs 2.4 times as much as over one."""
        activations = self.session.get_modelmeta().custom_metadata_map.get(ACTIVATIONS)
        return (1, 2, 4) if self.has_row_multiple and activations == "int8" else (1,)

    @property
    def attention_block(self) -> int:
        """The largest number of queries that attention computes together."""
        return 2 * int(self._cache.shape[3]) if self.has_row_multiple else PROMPT_WIDTH

    def buffers(self, slots: int, context: int) -> SlotBuffers:
        _, kv_heads, _, head_dim = self._cache.shape
        return SlotBuffers(len(self.past), slots, (kv_heads, head_dim), context, numpy_dtype(self._cache.type))


class _SlotRun:
    """The graph, bound to the caches of some adjacent slots.

    The binding holds pointers into numpy arrays. Each array is an attribute here, so that it stays in memory.
    """

    def __init__(self, graph: _Graph, buffers: SlotBuffers, first: int, count: int) -> None:
        self._graph = graph
        self._binding = graph.session.io_binding()
        self._mask = np.zeros((count, buffers.context), np.int64)
        self._lengths = [0] * count
        self._keep = np.zeros(1, np.int64) if graph.has_logits_to_keep else None
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
        if graph.has_row_multiple:
            self._bind(ROW_MULTIPLE, graph.row_multiple)

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
            self._position_ids = np.array(lengths, np.int64)[:, None] - np.arange(ids.shape[1], 0, -1)
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

"""The CPU decoder: one graph for prompts and steps, its cache in slots, its bindings made once.

1. Every run of adjacent slots has one I/O binding, made on first use, whose cache tensors are views of the slots: a
   token allocates nothing and copies no cache. Only ids and logits are bound anew, when their shape changes.
2. The attention mask always is as wide as the context: its sum says how long a sequence is, and a fixed shape keeps
   the binding. The results are bit for bit those of a mask that fits.
3. A step costs, on x86_64 with 4-bit weights and int8 activations, relative to one over a single slot: two slots
   1.2, four 1.7, eight 2.6. So sequences share a call, and take a free slot or two between them along; what that writes
   there lies behind valid rows.
4. The same logits by different ways (a step alone, a step in a batch, a prompt cut here or there) are the same bit for
   bit in our own graphs (see cpu_graph.py), so nothing that is done for speed can change an answer. With float
   activations, and in graphs from elsewhere, the last bits differ: at most 1e-3 of logits in -20..30 with floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gateway.bundles.bundle import Bundle
from gateway.bundles.genai_config import DecoderConfig
from gateway.errors import BundleError
from gateway.qnn.provider import placement
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu_cache import SlotBuffers, SlotCache
from gateway.worker.decoders.onnx import SessionOptions, numpy_dtype, open_session, running_failed

PROMPT_WIDTH = 64  # wider chunks (up to 512 measured) cost the same per token and hold other streams up for longer
DEFAULT_OPTIONS = SessionOptions()
ACTIVATIONS = "activations"  # our own graphs' metadata
KEEP = "logits_to_keep"  # our own graphs' input: how many of the last positions get logits
_FREE_SLOTS_ALONG = 2  # so many free slots between busy ones cost less than a second call

Ids = NDArray[np.int64]


class CpuDecoder:
    """The Decoder of a one-graph bundle on the CPU provider.

    Args:
        slots: how many caches there can be; their memory is committed as it is used.
        context_length: rows per cache; 0, or more than the model was made for: what it was made for.
    Raises BundleError when the graph cannot be opened or is of another kind.
    """

    def __init__(
        self, bundle: Bundle, *, slots: int, context_length: int = 0, options: SessionOptions = DEFAULT_OPTIONS
    ) -> None:
        limit = bundle.config.context_length
        context_length = min(context_length or limit, limit)
        session = open_session(bundle.folder / bundle.config.decoder.filename, options)
        self._graph = _Graph(session, bundle.config.decoder)
        self._buffers = self._graph.buffers(slots, context_length)
        self._logits = np.empty((max(slots, PROMPT_WIDTH), self._graph.vocab_size), np.float32)
        self._caches: list[SlotCache] = []
        self._runs: dict[tuple[int, int], _SlotRun] = {}
        self._spec = DecoderSpec(
            vocab_size=self._graph.vocab_size,
            context_length=context_length,
            prompt_width=PROMPT_WIDTH,
            device="cpu",
            placement=placement(session),
            is_batch_invariant=session.get_modelmeta().custom_metadata_map.get(ACTIVATIONS) == "int8",
        )

    @property
    def spec(self) -> DecoderSpec:
        return self._spec

    def new_cache(self) -> SlotCache:
        """The next slot's cache; there are `slots` of them."""
        assert len(self._caches) < self._buffers.slots
        self._caches.append(SlotCache(self._buffers, len(self._caches)))
        return self._caches[-1]

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        logits: Logits = self._extend(_slot(cache), ids, keep=1)[-1]
        return logits

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._extend(_slot(cache), ids, keep=len(ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        if len(caches) == 1:
            return self._extend(_slot(caches[0]), ids, keep=1)
        slots = [_slot(cache) for cache in caches]
        next_ids = {slot.index: token for slot, token in zip(slots, ids, strict=True)}
        rows: dict[int, int] = {}  # of the logits, by slot
        for first, count in self._adjacent(sorted(next_ids)):
            members = range(first, first + count)
            tokens = np.array([[next_ids.get(index, 0)] for index in members], np.int64)
            lengths = [self._caches[index].length + 1 for index in members]
            self._run(first, tokens, lengths, keep=1, row=len(rows))
            rows |= {index: len(rows) + offset for offset, index in enumerate(members)}
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

    def _extend(self, slot: SlotCache, ids: Sequence[int], keep: int) -> Logits:
        """Logits of the last `keep` ids, or of all where the graph cannot leave any out."""
        self._run(slot.index, np.array([ids], np.int64), [slot.length + len(ids)], keep)
        slot.length += len(ids)
        return self._logits[: keep if self._graph.has_keep else len(ids)]

    def _adjacent(self, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Runs (first, count) that cover the slots `indices`, ascending; a few free ones between them included."""
        first = last = indices[0]
        for index in indices[1:]:
            between = self._caches[last + 1 : index]
            if len(between) > _FREE_SLOTS_ALONG or any(slot.length == self._buffers.context for slot in between):
                yield first, last - first + 1
                first = index
            last = index
        yield first, last - first + 1

    def _run(self, first: int, ids: Ids, lengths: Sequence[int], keep: int, row: int = 0) -> None:
        """Run over the adjacent slots from `first` on; ids (slots, new); logits go to the buffer from `row` on."""
        assert max(lengths) <= self._buffers.context
        key = first, len(ids)
        if key not in self._runs:
            self._runs[key] = _SlotRun(self._graph, self._buffers, *key)
        kept = keep if self._graph.has_keep else ids.shape[1]
        self._runs[key](ids, lengths, self._logits, row, kept)


def _slot(cache: KVCache) -> SlotCache:
    assert isinstance(cache, SlotCache)
    return cache


class _Graph:
    """A session, and the names of its inputs and outputs as the bundle states them."""

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
        self.has_keep = KEEP in declared.keys() | optional
        self.has_positions = self.positions in declared
        results = {value.name: value for value in session.get_outputs()}
        wanted = {self.ids, self.mask, *self.past, self.logits, *self.present}
        if missing := wanted - declared.keys() - results.keys():
            raise BundleError(
                f"The graph has no {min(missing)}; it is not a decoder with an attention mask and a cache."
            )
        self._cache = declared[self.past[0]]
        self.vocab_size = int(results[self.logits].shape[-1])

    def buffers(self, slots: int, context: int) -> SlotBuffers:
        _, kv_heads, _, head_dim = self._cache.shape
        return SlotBuffers(len(self.past), slots, (kv_heads, head_dim), context, numpy_dtype(self._cache.type))


class _SlotRun:
    """The graph bound to the cache of some adjacent slots.

    The binding holds pointers into numpy arrays; whatever it points to is kept here as an attribute.
    """

    def __init__(self, graph: _Graph, buffers: SlotBuffers, first: int, count: int) -> None:
        self._graph = graph
        self._binding = graph.session.io_binding()
        self._mask = np.zeros((count, buffers.context), np.int64)
        self._lengths = [0] * count
        self._keep = np.zeros(1, np.int64) if graph.has_keep else None
        self._ids = np.empty((0, 0), np.int64)
        self._written = (-1, -1)  # where the logits go: first row and rows per slot
        self._cache = buffers.run(first, count)
        for past, present, buffer in zip(graph.past, graph.present, self._cache, strict=True):
            value = ort.OrtValue.ortvalue_from_numpy(buffer)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        self._bind(graph.mask, self._mask)
        if self._keep is not None:
            self._bind(KEEP, self._keep)

    def __call__(self, ids: Ids, lengths: Sequence[int], logits: Logits, row: int, kept: int) -> None:
        """ids (slots, new); lengths of the sequences, `new` included; writes `kept` rows of logits for each slot."""
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
        """The row's mask becomes `length` ones; only what changed is written."""
        before = self._lengths[row]
        self._mask[row, min(before, length) : max(before, length)] = length > before
        self._lengths[row] = length

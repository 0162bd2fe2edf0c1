"""Finds the graphs of a published model in its context binaries, and checks that they fit together.

A model has 1 to n parts, and each binary holds the graphs of one part. For each context length there is one chain of
graphs for prompts and one for single steps. Their names are `prompt_ar128_cl4096_1_of_4` and
`token_ar1_cl4096_1_of_4`, or the same without the first word. Shapes and scales are compared here, because the provider
reports a wrong tensor late or never.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import BundleError
from gateway.qnn.binary_info import Graph, Tensor, read_binary

IDS, MASK, COSINES, SINES, LOGITS = (
    "input_ids",
    "attention_mask",
    "position_ids_cos",
    "position_ids_sin",
    "logits",
)
_SIZES = re.compile(r"ar(\d{1,9})_cl(\d{1,9})")
_PART = re.compile(r"(\d{1,9})_of_(\d{1,9})$")
_PAST = re.compile(r"past_(key|value)_(\d+)_in")
_QUANTISED = {"uint8", "uint16"}


class Part(Struct, frozen=True):
    """One graph of a chain, the binary that has it, and the chip of the binary (None: not stated)."""

    graph: Graph
    binary: Path
    soc: int | None = None
    architecture: int | None = None


class Chains(Struct, frozen=True, kw_only=True):
    """The chains for one context length. `width`: tokens of a pass over a prompt.

    `narrow`: for passes over `narrow_width` tokens that verify drafts; most binaries have no graphs for it.
    """

    context: int
    width: int
    prompt: tuple[Part, ...]
    step: tuple[Part, ...]
    narrow_width: int = 0
    narrow: tuple[Part, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*self.prompt, *self.step, *self.narrow)

    def tensor(self, name: str) -> Tensor:
        """The input or output `name` of the prompt chain."""
        tensors = (tensor for part in self.prompt for tensor in (*part.graph.inputs, *part.graph.outputs))
        return next(tensor for tensor in tensors if tensor.name == name)

    @property
    def layers(self) -> int:
        return sum(tensor.name.startswith("past_key_") for part in self.prompt for tensor in part.graph.inputs)


def read_chains(binaries: Sequence[Path]) -> list[Chains]:
    """The chains of all context lengths, shortest first.

    Args:
        binaries: in the order of the parts.
    Raises BundleError if a binary cannot be read, a graph is missing, or the graphs do not fit together.
    """
    found = []
    for number, binary in enumerate(binaries, start=1):
        info = read_binary(binary)
        graphs = [Part(graph, binary, info.soc, info.architecture) for graph in info.graphs.values()]
        found += [(part, number) for part in graphs]
    return chains_of(found, binaries[0].parent.name)


def chains_of(parts: Iterable[tuple[Part, int]], where: str) -> list[Chains]:
    """The chains of these graphs, as `read_chains`.

    Args:
        parts: each graph, and its part of the model if its name does not state that.
        where: the start of error messages.
    """
    found = _Graphs(where)
    for part, number in parts:
        found.add(part, number)
    chains = found.chains()
    _check_encodings(chains, where)
    return found.with_narrow(chains)


class _Slot(Struct, frozen=True):
    """Where a graph belongs. `context` 0: its shapes do not depend on the context, and its name states none."""

    width: int
    context: int
    part: int


class _Graphs:
    """The graphs of a model by their slot."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._slots: dict[_Slot, Part] = {}

    def add(self, part: Part, number: int) -> None:
        """Add a graph. `number`: its part, if its name does not state it."""
        slot = _slot(part.graph, number)
        other = self._slots.setdefault(slot, part)
        if other is not part and slot.context:
            raise BundleError(f"{self._where}: {part.graph.name} and {other.graph.name} do the same.")

    def chains(self) -> list[Chains]:
        contexts = sorted({slot.context for slot in self._slots if slot.context})
        width = self._common_width(contexts)
        return [
            Chains(
                context=context,
                width=width,
                prompt=self._chain(width, context),
                step=self._chain(1, context),
            )
            for context in contexts
        ]

    def with_narrow(self, chains: list[Chains]) -> list[Chains]:
        """The chains with the narrowest ones that every context has and that give the logits of all rows."""
        widths = self._common_widths(chain.context for chain in chains) - {1, chains[0].width}
        if not widths:
            return chains
        width = min(widths)
        try:
            found = [replace(each, narrow_width=width, narrow=self._chain(width, each.context)) for each in chains]
            _check_encodings(found, self._where)
        except BundleError:  # the model runs without them
            return chains
        outputs = [tensor for chain in found for tensor in chain.narrow[-1].graph.outputs if tensor.name == LOGITS]
        return found if all(tensor.shape[1] == width for tensor in outputs) else chains

    def _common_widths(self, contexts: Iterable[int]) -> set[int]:
        widths = [{slot.width for slot in self._slots if slot.context == context} for context in contexts]
        return set.intersection(*widths) if widths else set()

    def _common_width(self, contexts: Iterable[int]) -> int:
        """The largest width that every context has."""
        common = self._common_widths(contexts)
        if 1 not in common or len(common) < 2:
            names = sorted(part.graph.name for part in self._slots.values())
            raise BundleError(
                f"{self._where}: its binaries need graphs for prompts and for single tokens, for each context length, "
                f"and have {', '.join(names[:4]) or 'none'}. Download the bundle again."
            )
        return max(common)

    def _chain(self, width: int, context: int) -> tuple[Part, ...]:
        parts = []
        for number in range(1, max(slot.part for slot in self._slots) + 1):
            slot = _Slot(width, context, number)
            part = self._slots.get(slot) or self._slots.get(_Slot(width, 0, number))
            if part is None:
                raise BundleError(
                    f"{self._where}: part {number} has no graph of width {width} for a context of {context} tokens. "
                    "Download the bundle again."
                )
            parts.append(part)
        _Check(self._where, width, context).chain(parts)
        return tuple(parts)


def _slot(graph: Graph, number: int) -> _Slot:
    sizes, part = _SIZES.search(graph.name), _PART.search(graph.name)
    mask = next((tensor.shape for tensor in graph.inputs if tensor.name == MASK), None)
    if mask is not None and len(mask) == 4:
        width, context = mask[2:]
    else:
        first = graph.inputs[0].shape if graph.inputs else ()
        width, context = (first[1] if len(first) > 1 else 0), int(sizes[2]) if sizes else 0
    return _Slot(width, context, int(part[1]) if part else number)


class _Check:
    """Checks one chain: each input is one of the host's, a part of the cache, or an output of an earlier part."""

    def __init__(self, where: str, width: int, context: int) -> None:
        self._where, self._width, self._context = where, width, context

    def chain(self, parts: Sequence[Part]) -> None:
        known: dict[str, Tensor] = {}
        for part in parts:
            for tensor in part.graph.inputs:
                self._input(part.graph, tensor, known)
            if again := known.keys() & {tensor.name for tensor in part.graph.outputs}:
                raise self._error(part.graph, min(again), "is an output of an earlier part too")
            known |= {tensor.name: tensor for tensor in part.graph.outputs}
        logits = known.get(LOGITS)
        if logits is None or len(logits.shape) != 3:
            raise self._error(parts[-1].graph, LOGITS, "is missing, or not of the shape (1, rows, vocabulary)")
        if logits.shape[1] not in (1, self._width):
            raise self._error(parts[-1].graph, LOGITS, f"has {logits.shape[1]} rows")

    def _input(self, graph: Graph, tensor: Tensor, known: dict[str, Tensor]) -> None:
        match tensor.name:
            case name if name == IDS:
                fits = tensor.shape == (1, self._width) and tensor.dtype in ("int32", "int64")
            case name if name == MASK:
                fits = tensor.shape == (1, 1, self._width, self._context)
            case name if name in (COSINES, SINES):
                fits = len(tensor.shape) == 4 and tensor.shape[:3] == (1, 1, self._width)
            case name if past := _PAST.fullmatch(name):
                fits = self._cache_fits(graph, tensor, past[1] == "key")
            case name if name in known and not _same(tensor, known[name]):
                raise self._error(
                    graph, name, "has another type or scale than in the part before: these are two models"
                )
            case name if name in known:
                fits = tensor.shape == known[name].shape
            case _:
                raise self._error(graph, tensor.name, "is provided by no other graph")
        if not fits:
            raise self._error(graph, tensor.name, f"has the unexpected shape {list(tensor.shape)} ({tensor.dtype})")

    def _cache_fits(self, graph: Graph, past: Tensor, is_key: bool) -> bool:
        """True if the cache has a row for each token but the current ones, and the graph returns those."""
        new = next((tensor for tensor in graph.outputs if tensor.name == past.name.replace("_in", "_out")), None)
        if new is None or len(past.shape) != 4 or not _same(past, new):
            return False
        axis = 3 if is_key else 2
        expected = list(past.shape)
        expected[axis] = self._width
        return past.shape[axis] == self._context - self._width and list(new.shape) == expected

    def _error(self, graph: Graph, tensor: str, problem: str) -> BundleError:
        return BundleError(f"{self._where}: {tensor} of {graph.name} {problem}, so our own engine cannot run it.")


def _same(one: Tensor, other: Tensor) -> bool:
    """True if both have the same type, scale and zero point."""
    if one.dtype != other.dtype or one.zero_point != other.zero_point:
        return False
    return math.isclose(one.scale or 0.0, other.scale or 0.0, rel_tol=1e-5)


def _check_encodings(chains: Iterable[Chains], where: str) -> None:
    """Raise BundleError if a tensor has no scale, or another one in another graph: one host and one cache serve all."""
    seen: dict[str, Tensor] = {}
    for part in (part for chain in chains for part in chain.parts):
        for tensor in (*part.graph.inputs, *part.graph.outputs):
            if tensor.dtype in _QUANTISED and tensor.scale is None:
                raise BundleError(f"{where}: {tensor.name} of {part.graph.name} has no scale.")
            if tensor.scale is not None and not 0 < tensor.scale < math.inf:
                raise BundleError(f"{where}: {tensor.name} of {part.graph.name} has the scale {tensor.scale:g}.")
            if tensor.name == MASK and tensor.scale is not None and tensor.zero_point <= 0:
                raise BundleError(f"{where}: {MASK} of {part.graph.name} has no value below 0, so it hides no token.")
            if not _same(tensor, seen.setdefault(tensor.name, tensor)):
                raise BundleError(f"{where}: {tensor.name} has another scale in {part.graph.name}.")

"""Which rows a device call of the CPU decoder computes. Some kernels need more rows than the new ones.

A row's numbers are bit-identical for any batch size and chunking only if the same kernels compute it each time. By
number of rows, and by the end of the sequence, these kernels have more than one code path:

- The 4-bit product of int8 activations, x86 with AVX2 only: one for a single row. `Padding.PAIRS`
- The same product on ARM: one for each four rows and one for the rest. Attention on ARM: one for each four keys and one
  for the rest. So a call starts and ends at a multiple of four. It computes up to three rows of the past again, with
  the same result. `Padding.FOURS`
- Attention computes queries in blocks of at most 2 * head_dim, with another code path for a single row. This concerns
  heads below 32, because other blocks are as wide as a whole call.

x86 with AVX-512 needs no padding. `find_padding` finds out by comparing bits (see `invariance.py`).
"""

from __future__ import annotations

import enum

from msgspec import Struct

ROWS = 4  # of a block of `Padding.FOURS`
MAX_EXTRA_ROWS = 2 * (ROWS - 1)  # of one slot in a call


class Padding(enum.Enum):
    NONE = enum.auto()
    PAIRS = enum.auto()  # a single row gets a padding row behind it
    FOURS = enum.auto()  # whole blocks of four rows


class Span(Struct, frozen=True):
    """The rows `start` to `end` of a slot are computed, with logits for the last `kept`."""

    start: int
    end: int
    kept: int

    @property
    def rows(self) -> int:
        return self.end - self.start


def span(padding: Padding, length: int, new: int, wanted: int, *, block: int, is_alone: bool) -> Span:
    """The rows to compute in one slot.

    Args:
        length: valid rows before the call.
        new: rows to append.
        wanted: of them, the last rows whose logits the caller reads.
        block: attention's largest block of queries.
        is_alone: True if the call has no other slot.
    """
    end = length + new
    first = end - wanted
    if padding is Padding.FOURS:
        start, end = length // ROWS * ROWS, round_up(end)
        return Span(start, end, end - first // ROWS * ROWS)
    least = 2 if padding is Padding.PAIRS and is_alone else 1
    if new < least or (new > 1 and new % block == 1):
        end += 1
    return Span(length, end, max(end - first, least))


def round_up(length: int) -> int:
    """The next multiple of four."""
    return -(-length // ROWS) * ROWS

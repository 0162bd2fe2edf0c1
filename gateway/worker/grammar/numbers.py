"""Limits of numbers in a JSON schema, as llguidance can enforce them.

The library reads a limit as a double. It refuses limits above about 1e18, and very small ones. Programs write
them for "any integer": +-9007199254740991 (zod), +-9223372036854775808. A limit that it cannot hold becomes the nearest
one outside, so no valid number is lost.
"""

from __future__ import annotations

import math
from typing import Any

from gateway.worker.grammar.schema_shape import Schema

LARGEST = 10**17
SMALLEST = 1e-30  # above zero

_LOWER = ("minimum", "exclusiveMinimum")
_UPPER = ("maximum", "exclusiveMaximum")


def with_wider_limits(schema: Schema) -> Schema:
    """The schema with limits that the library takes; a limit that no number reaches is left out."""
    found = {key: schema[key] for key in (*_LOWER, *_UPPER) if _is_number(schema.get(key))}
    changed = {key: _below(value) if key in _LOWER else _above(value) for key, value in found.items()}
    if changed == found:
        return schema
    return {key: value for key, value in (schema | changed).items() if changed.get(key, 0) is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _below(limit: int | float) -> int | float | None:
    """The largest limit that is not above `limit`; None: there is none."""
    above = _above(-limit)
    return None if above is None else -above


def _above(limit: int | float) -> int | float | None:
    """The smallest limit that is not below `limit`; None: there is none."""
    if limit > LARGEST or limit != limit:
        return None
    if limit < -LARGEST:
        return -LARGEST
    if 0 < limit < SMALLEST:
        return SMALLEST
    if -SMALLEST < limit < 0:
        return 0
    if isinstance(limit, float):
        return limit
    nearest = float(limit)
    return int(nearest if nearest >= limit else math.nextafter(nearest, math.inf))

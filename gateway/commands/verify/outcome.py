"""How a check ended, and who is wrong."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

LONGEST = 300  # characters of a detail


class GatewayFault(Exception):
    """The API is not kept, whatever the model is."""


class ModelFault(Exception):
    """The API is kept, and the answer is of no use."""


class NotApplicable(Exception):
    """The model does not have the ability."""


class Result(Struct, frozen=True, kw_only=True):
    """`outcome`: "gateway" and "model" name who is wrong; "skipped": the model does not have the ability."""

    group: str
    name: str
    outcome: Literal["passed", "gateway", "model", "skipped"]
    detail: str = ""


def promise(kept: object, detail: str) -> None:
    """Raise GatewayFault unless `kept`."""
    if not kept:
        raise GatewayFault(detail)


def expect(good: object, detail: str) -> None:
    """Raise ModelFault unless `good`."""
    if not good:
        raise ModelFault(detail)

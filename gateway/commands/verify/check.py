"""One check, and a run of many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from gateway.commands.verify.outcome import LONGEST, GatewayFault, ModelFault, NotApplicable, Result
from gateway.commands.verify.peer import Peer


class Check(NamedTuple):
    group: str
    name: str
    run: Callable[[Peer], None]


def results(checks: Iterable[Check], peer: Peer) -> Iterator[Result]:
    """Run the checks one after the other. Raises the client library's error if no server answers."""
    for check in checks:
        outcome, detail = _ended(check, peer)
        yield Result(group=check.group, name=check.name, outcome=outcome, detail=detail[:LONGEST])


def _ended(check: Check, peer: Peer) -> tuple[Literal["passed", "gateway", "model", "skipped"], str]:
    try:
        check.run(peer)
    except GatewayFault as fault:
        return "gateway", str(fault)
    except ModelFault as fault:
        return "model", str(fault)
    except NotApplicable as reason:
        return "skipped", str(reason)
    return "passed", ""

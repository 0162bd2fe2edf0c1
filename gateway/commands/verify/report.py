"""What the checks showed, for a person and for a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from gateway.commands.verify.outcome import Result

#: The most wrong tool checks, as a part of all, of a model that is reliable, and of one that is of use.
_RELIABLE, _USABLE = 0.05, 0.2
_LINE = 200  # characters of an example


class Score(Struct, frozen=True, kw_only=True):
    """One group. `checks` are those that apply to the model."""

    group: str
    passed: int
    checks: int
    gateway_faults: int

    @property
    def text(self) -> str:
        return f"{self.group} {self.passed}/{self.checks}" if self.checks else f"{self.group} -"


def scores(results: Sequence[Result]) -> list[Score]:
    return [_score(group, [each for each in results if each.group == group]) for group in _groups(results)]


def lines(results: Sequence[Result], stopped: str = "") -> Iterator[str]:
    """A line for each group, its first fault of the gateway and of the model, the scores, and the verdict.

    Args:
        stopped: why the other checks could not run.
    """
    for score in scores(results):
        yield score.text
        for outcome, owner in (("gateway", "gateway"), ("model", "this model")):
            faults = [each for each in results if each.group == score.group and each.outcome == outcome]
            if faults:
                more = f" ({len(faults)} of this kind)" if len(faults) > 1 else ""
                yield f"  {owner}: {_short(f'{faults[0].name}: {faults[0].detail}')}{more}"
    yield ""
    yield ", ".join(score.text for score in scores(results))
    yield verdict(results, stopped)


def _short(text: str) -> str:
    return text if len(text) <= _LINE else f"{text[:_LINE]}…"


def verdict(results: Sequence[Result], stopped: str = "") -> str:
    """One sentence for a person."""
    if stopped:
        return f"Not complete: the checks stopped after {len(results)}: {stopped}"
    faults = [each for each in results if each.outcome == "gateway"]
    if faults:
        checks = "one check" if len(faults) == 1 else f"{len(faults)} checks"
        return f"The gateway itself is wrong in {checks}, first in '{faults[0].group}: {faults[0].name}': report it."
    vectors = [each for each in results if each.group in ("embeddings", "rerank")]
    if vectors:
        wrong = sum(each.outcome == "model" for each in vectors)
        return "This model finds texts about one thing." if not wrong else "This model does not find what is relevant."
    tools = [each for each in results if each.group == "tools" and each.outcome != "skipped"]
    wrong = sum(each.outcome == "model" for each in tools)
    if not tools:
        return "This model has no tools: use it for chats, not for agents."
    if wrong > _USABLE * len(tools):
        return f"Do not use this model for agents: {wrong} of {len(tools)} tool checks were wrong."
    if wrong > _RELIABLE * len(tools):
        return f"This model calls tools, with mistakes: {wrong} of {len(tools)} tool checks were wrong."
    return "This model calls tools reliably."


def as_dict(model: str, url: str, results: Sequence[Result], stopped: str = "") -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "model": model,
        "url": url,
        "api_ok": is_kept(results) and not stopped,
        "verdict": verdict(results, stopped),
        "stopped": stopped,
        "groups": [asdict(score) for score in scores(results)],
        "checks": [asdict(each) for each in results],
    }


def is_kept(results: Sequence[Result]) -> bool:
    """True if the gateway did its part in every check."""
    return not any(each.outcome == "gateway" for each in results)


def _groups(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(each.group for each in results))


def _score(group: str, results: Sequence[Result]) -> Score:
    counted = [each for each in results if each.outcome != "skipped"]
    return Score(
        group=group,
        passed=sum(each.outcome == "passed" for each in counted),
        checks=len(counted),
        gateway_faults=sum(each.outcome == "gateway" for each in counted),
    )

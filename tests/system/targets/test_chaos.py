"""Several servers behind one model, of which one is killed, hangs, fails or sends garbage under load.

Each request has exactly one ending, and none fails before its first content while one server lives. The breaker of the
model counts none of it. docs/targets.md has the figures of a long run: `python -m tests.system.targets`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.config.tables import BreakerConfig, ScriptedModel
from gateway.lanes.breaker import BreakerStatus
from gateway.lanes.lane import Lane
from tests.support.hostile import Hostile, hostile
from tests.support.server import Running, config_of, script_of, serving, wait_until
from tests.system.targets.backends import Backend, running, scripted_table, targets_of
from tests.system.targets.bad_servers import BAD, BAD_LATER, chats_of, misbehave, slow
from tests.system.targets.traffic import Outcome, Traffic, failed_early, without_ending

REPLY = "one two three"
SILENT = ("hangs", "hangs_after_its_head", "hangs_after_its_role", "drips_comments", "hangs_after_content")
SILENT_S = 5.0  # they are given up after this
EACH = 8  # requests to each model
KILLED_REQUESTS, AT_ONCE = 200, 16
HANGS_AT, HANGING = 10, "stuck"  # the answer, and its word, with which a server hangs in the middle and is killed


class Runs(msgspec.Struct):
    outcomes: dict[str, list[Outcome]]  # by the name of the fault
    servers: dict[str, Hostile]
    breakers: dict[str, BreakerStatus]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Requests to one model for each fault. Each has a bad server and a good one, which they share.

    Those whose bad server is silent come after the others: only they have a time limit, and then the good server is
    not busy.
    """
    faults = {**BAD, **BAD_LATER, "slow": slow}
    with ExitStack() as stack:
        good = stack.enter_context(
            serving(config_of({"m": ScriptedModel(max_sequences=1000, script=script_of(replies=[REPLY]))}))
        )
        servers = {name: stack.enter_context(hostile()) for name in faults}
        models: dict[str, Any] = {}
        for name, server in servers.items():
            misbehave(server, faults[name])
            limit = {"watchdog_s": SILENT_S} if name in SILENT else {}
            models[name] = targets_of(f"http://127.0.0.1:{server.port}/v1", f"{good.url}/v1", **limit)
        front = stack.enter_context(serving(config_of(models)))
        outcomes: dict[str, list[Outcome]] = {}
        for names in ([name for name in faults if name not in SILENT], SILENT):
            found = asyncio.run(Traffic(front.url, names).run(EACH * len(names), EACH * len(names)))
            outcomes |= {name: found[index :: len(names)] for index, name in enumerate(names)}
        wait_until(lambda: not in_flight(front), "a server still counts requests")
        yield Runs(outcomes, servers, {name: breaker_of(front, name) for name in faults})


def breaker_of(front: Running, model: str) -> BreakerStatus:
    lane = front.app.state.router.lanes[model]
    assert isinstance(lane, Lane) and lane.breaker.config == BreakerConfig()
    return lane.breaker.status


def in_flight(front: Running) -> int:
    """The requests that the targets of all models count."""
    lanes = front.app.state.router.lanes.values()
    return sum(target.running for lane in lanes for target in lane.engine.targets)


@pytest.mark.parametrize("fault", [*BAD, "slow"])
def test_no_request_fails_while_another_server_lives(runs: Runs, fault: str) -> None:
    outcomes = runs.outcomes[fault]
    assert not without_ending(outcomes) and not failed_early(outcomes)
    assert [outcome.text for outcome in outcomes] == [REPLY] * EACH
    assert chats_of(runs.servers[fault]) > 0
    if fault != "slow":
        assert any("reason=failover" in outcome.route for outcome in outcomes)


@pytest.mark.parametrize("fault", BAD_LATER)
def test_answer_that_breaks_has_one_error_and_no_other_text(runs: Runs, fault: str) -> None:
    outcomes = runs.outcomes[fault]
    assert not without_ending(outcomes) and not failed_early(outcomes)
    assert {(outcome.text, outcome.is_complete) for outcome in outcomes} == {("Half ", False), (REPLY, True)}


@pytest.mark.parametrize("fault", [*BAD, *BAD_LATER, "slow"])
def test_one_bad_server_of_two_does_not_count_against_the_model(runs: Runs, fault: str) -> None:
    breaker = runs.breakers[fault]
    complete = sum(outcome.is_complete for outcome in runs.outcomes[fault])
    assert (breaker.state, breaker.bad, breaker.judged) == ("closed", 0, complete)


def test_killed_server_costs_only_the_answers_that_had_begun(tmp_path: Path) -> None:
    hanging = f"[[models.m.script.faults]]\nrequests = [{HANGS_AT}]\nafter = 1\nstall_s = inf\n"
    replies = [*["w " * 8] * HANGS_AT, f"{HANGING} " * 8]
    first = Backend(tmp_path / "one", scripted_table(*replies, token_s=0.001) + hanging)
    second = Backend(tmp_path / "two", scripted_table("w " * 8, token_s=0.001))

    def kill(outcome: Outcome) -> None:
        if outcome.text.strip() == HANGING:
            first.kill()

    with running(first, second):
        model = targets_of(f"{first.url}/v1", f"{second.url}/v1")
        with serving(config_of({"m": model})) as front:
            outcomes = asyncio.run(Traffic(front.url, "m", kill).run(KILLED_REQUESTS, AT_ONCE))
            wait_until(lambda: not in_flight(front), "a server still counts requests")
            breaker = breaker_of(front, "m")
        assert not first.is_alive
    assert not without_ending(outcomes) and not failed_early(outcomes)
    assert (breaker.state, breaker.bad) == ("closed", 0)
    broken = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.text.strip() for outcome in broken].count(HANGING) == 1
    assert len(broken) <= AT_ONCE and {outcome.target for outcome in broken} == {first.address}
    assert sum(outcome.target == second.address for outcome in outcomes) > KILLED_REQUESTS / 2

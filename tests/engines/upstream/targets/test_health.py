"""When a target gets requests, by a clock that the test sets."""

from __future__ import annotations

from gateway.engines.upstream.targets.health import FIRST_PAUSE_S, MOST_PAUSE_S, Health


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_failure_probe_and_request_in_turn() -> None:
    health = Health(Clock())
    assert health.failed("HTTP 500") and (health.state, health.reason) == ("down", "HTTP 500")
    assert not health.failed("late"), "of a request that was sent before"
    health.listed()
    assert (health.state, health.reason) == ("trial", "HTTP 500")
    assert health.answered() and (health.state, health.reason) == ("up", "")
    assert not health.answered()


def test_pause_doubles_until_a_whole_answer() -> None:
    clock = Clock()
    health = Health(clock)
    pauses = []
    for _ in range(9):
        health.failed("HTTP 500")
        pauses.append(health.until - clock.now)
        health.listed()
        health.answered()  # the first content, and then it breaks
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30] and pauses[-1] == MOST_PAUSE_S
    health.completed()
    health.failed("HTTP 500")
    assert health.until - clock.now == FIRST_PAUSE_S


def test_probe_that_fails_doubles_the_pause() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed("gone")
    health.probe_failed("does not answer")
    assert (health.state, health.reason, health.until - clock.now) == ("down", "does not answer", 2 * FIRST_PAUSE_S)


def test_busy_target_comes_back_by_itself() -> None:
    clock = Clock()
    health = Health(clock)
    health.busy("HTTP 429", 4.0)
    clock.now += 3.5
    assert health.state == "busy"
    clock.now += 0.5
    assert (health.state, health.reason) == ("up", "")
    health.busy("HTTP 429", 1e9)
    assert health.until - clock.now == 5
    health.failed("gone")
    health.busy("HTTP 429", 1.0)
    assert health.state == "down", "being busy is less than being down"


def test_server_can_ask_for_a_longer_pause() -> None:
    clock = Clock()
    health = Health(clock)
    health.failed("HTTP 503", wait_s=12.0)
    assert health.until - clock.now == 12


def test_list_of_models_does_not_change_a_target_that_is_up() -> None:
    health = Health(Clock())
    health.listed()
    assert health.state == "up"

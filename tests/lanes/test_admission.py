"""AdmissionQueue: the order of admission, and the expected wait. In virtual time."""

from __future__ import annotations

import random

import pytest

from gateway.lanes.admission import AdmissionQueue, Ticket
from tests.support.virtual_time import in_virtual_time, now


def admitted(*tickets: Ticket) -> list[bool]:
    return [ticket.admitted_at is not None for ticket in tickets]


@in_virtual_time
async def test_slots_are_given_in_order_of_arrival() -> None:
    queue = AdmissionQueue(2, 3, now)
    tickets = [queue.enqueue() for _ in range(5)]
    assert admitted(*tickets) == [True, True, False, False, False]
    assert queue.is_full()
    tickets[3].leave()  # stopped waiting
    tickets[0].leave()
    assert admitted(*tickets[2:]) == [True, False, False]
    tickets[1].leave()
    assert admitted(tickets[4]) == [True]
    assert (queue.running, queue.waiting) == (2, 0)


@in_virtual_time
async def test_background_requests_are_admitted_last_and_leave_one_slot_free() -> None:
    queue = AdmissionQueue(2, 8, now)
    first, second, third = (
        queue.enqueue(background=True),
        queue.enqueue(background=True),
        queue.enqueue(background=True),
    )
    assert admitted(first, second, third) == [True, False, False]
    chat, other = queue.enqueue(), queue.enqueue()
    assert admitted(chat, other) == [True, False]
    first.leave()
    assert admitted(other, second) == [True, False]
    chat.leave()
    assert admitted(second) == [False]  # one slot stays free
    other.leave()
    assert admitted(second, third) == [True, False]


@in_virtual_time
async def test_others_counts_requests_that_share_the_device() -> None:
    queue = AdmissionQueue(3, 8, now)
    chat, other, batch, waits = (
        queue.enqueue(),
        queue.enqueue(),
        queue.enqueue(background=True),
        queue.enqueue(background=True),
    )
    assert admitted(chat, batch, waits) == [True, False, False]  # one slot stays free
    other.leave()
    assert admitted(batch, waits) == [True, False]
    assert [queue.others(ticket) for ticket in (chat, batch, waits)] == [
        0,
        1,
        2,
    ]


@in_virtual_time
async def test_background_queue_is_bounded_separately() -> None:
    queue = AdmissionQueue(2, 3, now)
    count = 0
    while not queue.is_full(background=True):
        queue.enqueue(background=True)
        count += 1
    assert count == 1 + 3
    assert not queue.is_full()


@in_virtual_time
async def test_single_slot_is_given_to_background_request() -> None:
    queue = AdmissionQueue(1, 8, now)
    assert admitted(queue.enqueue(background=True)) == [True]


@in_virtual_time
async def test_refuse_waiting_ends_every_wait_and_no_running_request() -> None:
    queue = AdmissionQueue(1, 8, now)
    inside, waiting, background = queue.enqueue(), queue.enqueue(), queue.enqueue(background=True)
    queue.refuse_waiting()
    assert await inside.wait()
    assert not await waiting.wait()
    assert not await background.wait()
    for ticket in (inside, waiting, background, waiting, inside):
        ticket.leave()
    assert (queue.running, queue.waiting) == (0, 0)


@in_virtual_time
async def test_expected_wait_follows_measured_service_time() -> None:
    time = 0.0
    queue = AdmissionQueue(2, 8, lambda: time)
    assert queue.expected_wait_s() == 0.0
    for _ in range(3):
        ticket = queue.enqueue()
        time += 4.0
        ticket.leave()
    assert queue.mean_service_s == pytest.approx(4.0)
    assert queue.expected_wait_s() == 0.0  # a slot is free
    queue.enqueue()
    time += 1.0
    queue.enqueue()
    assert queue.expected_wait_s() == pytest.approx(3.0)
    assert queue.expected_wait_s(background=True) == pytest.approx(4.0)  # one slot stays free
    background, chat = queue.enqueue(background=True), queue.enqueue()
    assert (queue.wait_s(chat), queue.wait_s(background)) == (pytest.approx(3.0), pytest.approx(8.0))
    assert queue.expected_wait_s() == pytest.approx(4.0)  # background requests do not count for a chat
    assert queue.expected_wait_s(background=True) == pytest.approx(12.0)


@in_virtual_time
async def test_expected_wait_simulates_end_of_each_request() -> None:
    queue = AdmissionQueue(2, 8, now)
    for seconds in (5.0, 1.0, 2.0, 4.0):  # the third is admitted at 1, the fourth at 3; slots are free at 5 and 7
        queue.enqueue(remaining_s=lambda seconds=seconds: seconds)
    assert queue.expected_wait_s() == pytest.approx(5.0)
    assert queue.expected_wait_s(background=True) == pytest.approx(5.0 + 2.0 + 4.0)


@pytest.mark.parametrize("seed", range(20))
@in_virtual_time
async def test_random_arrivals_and_departures_keep_the_limits(seed: int) -> None:
    dice = random.Random(seed)
    queue = AdmissionQueue(dice.randint(1, 4), dice.randint(0, 6), now)
    here: list[Ticket] = []
    for _ in range(500):
        if dice.random() < 0.55:
            background = dice.random() < 0.4
            if not queue.is_full(background):
                here.append(queue.enqueue(background))
        elif here:
            here.pop(dice.randrange(len(here))).leave()
        inside = [ticket for ticket in here if ticket.admitted_at is not None]
        assert queue.running == len(inside) <= queue.slots
        assert queue.waiting == len(here) - len(inside)
        for background in (False, True):
            waiting = sum(ticket.background == background and ticket.admitted_at is None for ticket in here)
            assert waiting <= queue.max_waiting
        if any(ticket.admitted_at is None and not ticket.background for ticket in here):
            assert queue.running == queue.slots  # no interactive request waits while a slot is free
    for ticket in here:
        ticket.leave()
    assert (queue.running, queue.waiting) == (0, 0)

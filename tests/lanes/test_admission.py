"""AdmissionQueue: the order of admission, and the expected wait. In virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

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
        time += 9.0  # 5 s of them before the engine began
        ticket.leave(4.0)
    queue.enqueue().leave()  # the engine never began
    assert queue.mean_service_s == pytest.approx(4.0)
    assert queue.expected_wait_s() == 0.0  # a slot is free
    queue.enqueue()
    time += 1.0
    queue.enqueue()
    assert queue.expected_wait_s() == pytest.approx(3.0)
    assert queue.expected_wait_s(background=True) == pytest.approx(4.0)  # one slot stays free
    background, chat = queue.enqueue(background=True), queue.enqueue()
    assert (queue.wait_s(chat), queue.wait_s(background)) == (pytest.approx(3.0), pytest.approx(7.0))
    assert queue.expected_wait_s() == pytest.approx(4.0)  # background requests do not count for a chat
    assert queue.expected_wait_s(background=True) == pytest.approx(11.0)


@in_virtual_time
async def test_expected_wait_simulates_end_of_each_request() -> None:
    queue = AdmissionQueue(2, 8, now)
    for seconds in (5.0, 1.0, 2.0, 4.0):  # the third is admitted at 1, the fourth at 3; slots are free at 5 and 7
        queue.enqueue(remaining_s=lambda seconds=seconds: seconds)
    assert queue.expected_wait_s() == pytest.approx(5.0)
    assert queue.expected_wait_s(background=True) == pytest.approx(7.0)


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


# -- turns of clients --------------------------------------------------------------------------------------------------


def waiting_of(queue: AdmissionQueue, tickets: list[Ticket]) -> int:
    return sum(ticket.admitted_at is None and not ticket.has_left for ticket in tickets)


@in_virtual_time
async def test_slots_go_to_the_client_with_the_fewest_running_requests() -> None:
    queue = AdmissionQueue(2, 32, now)
    crowd = [queue.enqueue(client="a") for _ in range(6)]
    others = [queue.enqueue(client=client) for client in "bcb"]
    order = []
    for _ in range(7):
        ending = next(ticket for ticket in (*crowd, *others) if ticket.admitted_at is not None and not ticket.has_left)
        before = [ticket for ticket in (*crowd, *others) if ticket.admitted_at is None]
        ending.leave()
        order += [ticket for ticket in before if ticket.admitted_at is not None]
    assert "".join(ticket.client for ticket in order) == "bacbaaa"
    assert [crowd.index(ticket) for ticket in order if ticket.client == "a"] == [2, 3, 4, 5]


@in_virtual_time
async def test_slot_stays_free_for_a_client_that_was_here_in_the_last_minute() -> None:
    queue = AdmissionQueue(3, 32, now)
    queue.enqueue(client="b").leave()
    crowd = [queue.enqueue(client="a") for _ in range(5)]
    assert admitted(*crowd) == [True, True, False, False, False]
    other, second = queue.enqueue(client="b"), queue.enqueue(client="b")
    assert admitted(other, second) == [True, False]
    crowd[0].leave()  # no client is absent, so all slots are used
    assert queue.running == 3 and queue.waiting == 3
    second.leave()
    other.leave()
    assert queue.running == 2 and queue.waiting == 2
    await asyncio.sleep(61)
    crowd[1].leave()
    assert queue.running == 3 and queue.waiting == 0


@pytest.mark.parametrize("slots", [2, 4])
@in_virtual_time
async def test_flood_of_one_client_at_most_doubles_the_p95_of_the_first_token_of_another(slots: int) -> None:
    """Requests that do not take turns on the device, as those to another server."""
    p95 = []
    for flood in (0, 20):
        queue, waited = AdmissionQueue(slots, 32, now), list[float]()

        async def answer(client: str, queue: AdmissionQueue = queue) -> float:
            came_at, ticket = now(), queue.enqueue(client=client)
            assert await ticket.wait()
            await asyncio.sleep(1.0)  # the first token
            ttft_s = now() - came_at
            await asyncio.sleep(9.0 if client == "a" else 3.0)
            ticket.leave()
            return ttft_s

        async def repeat(begin_s: float, answer: Callable[[str], Awaitable[float]] = answer) -> None:
            await asyncio.sleep(begin_s)
            while True:
                await answer("a")

        tasks = [asyncio.create_task(repeat(0.37 * number)) for number in range(flood)]
        await asyncio.sleep(30)
        for number in range(40):
            waited.append(await answer("b"))
            await asyncio.sleep(1 + number * 7 % 11)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        p95.append(sorted(waited)[37])
    assert p95[0] == pytest.approx(1.0) and p95[1] <= 2 * p95[0]


@in_virtual_time
async def test_client_alone_may_use_the_whole_queue_and_others_still_get_in() -> None:
    """36 requests of one client: 4 run and 32 wait. Each newcomer evicts one, until all have the same."""
    queue = AdmissionQueue(4, 32, now)
    crowd = []
    while not queue.is_full(client="a"):
        crowd.append(queue.enqueue(client="a"))
    assert len(crowd) == 36
    others = {client: [queue.enqueue(client=client)] for client in "bcdefgh"}
    assert all(not tickets[0].has_left for tickets in others.values())
    assert queue.waiting == 32 and waiting_of(queue, crowd) == 25
    assert [crowd.index(ticket) for ticket in crowd if ticket.refusal == "evicted"] == list(range(29, 36))
    for client, tickets in others.items():
        while not queue.is_full(client=client):
            tickets.append(queue.enqueue(client=client))
    shares = [waiting_of(queue, tickets) for tickets in (crowd, *others.values())]
    assert sum(shares) == 32 and max(shares) - min(shares) <= 1


@in_virtual_time
async def test_evicted_request_ends_once_and_newest_first() -> None:
    queue = AdmissionQueue(1, 2, now)
    running, first, second = (queue.enqueue(client="a") for _ in range(3))
    assert queue.is_full(client="a") and not queue.is_full(client="b")
    newcomer = queue.enqueue(client="b")
    assert not await second.wait() and second.refusal == "evicted"
    assert queue.wait_s(second) == 0.0
    second.leave()
    second.leave()
    assert queue.waiting == 2 and queue.is_full(client="b") and queue.is_full(client="c")
    for ticket in (running, newcomer, first):
        ticket.leave()
    assert (queue.running, queue.waiting) == (0, 0)


@in_virtual_time
async def test_background_crowd_evicts_no_interactive_request() -> None:
    queue = AdmissionQueue(1, 2, now)
    chats = [queue.enqueue(client="a") for _ in range(3)]
    batch = [queue.enqueue(background=True, client="a") for _ in range(2)]
    queue.enqueue(background=True, client="b")
    assert [ticket.has_left for ticket in (*chats, *batch)] == [False, False, False, False, True]


@in_virtual_time
async def test_guest_is_admitted_above_the_slots_once_for_each_client() -> None:
    queue = AdmissionQueue(2, 32, now, guests=lambda: 2)
    crowd = [queue.enqueue(client="a") for _ in range(10)]
    assert queue.running == 2
    guest, second = queue.enqueue(client="b"), queue.enqueue(client="b")
    assert admitted(guest, second) == [True, False]
    assert admitted(queue.enqueue(client="c"), queue.enqueue(client="d")) == [True, False]  # two guests
    assert admitted(queue.enqueue(background=True, client="e")) == [False]
    crowd[0].leave()
    assert queue.running == 4  # d follows
    guest.leave()
    assert admitted(second) == [True] and waiting_of(queue, crowd) == 8


@in_virtual_time
async def test_background_crowd_takes_no_slot_of_others_where_requests_take_turns() -> None:
    queue = AdmissionQueue(4, 32, now, guests=lambda: 4)
    crowd = [queue.enqueue(background=True, client="a") for _ in range(10)]
    assert queue.running == 3
    assert admitted(queue.enqueue(background=True, client="b")) == [True]
    assert admitted(*(queue.enqueue(client="c") for _ in range(5))) == [True] * 4 + [False]
    assert admitted(queue.enqueue(background=True, client="d")) == [False]  # an interactive request waits
    assert waiting_of(queue, crowd) == 7


@pytest.mark.parametrize("guests", [0, 1])
@in_virtual_time
async def test_background_queue_is_bounded_while_an_interactive_request_waits(guests: int) -> None:
    """Also for a client that would have a slot: it is not admitted before the interactive request."""
    queue = AdmissionQueue(1, 2, now, guests=lambda: guests)
    chats = [queue.enqueue(client="a") for _ in range(2)]
    assert admitted(*chats) == [True, False]
    accepted = []
    for number in range(50):
        for client in ("b", f"c{number}"):
            if not queue.is_full(True, client):
                accepted.append(queue.enqueue(True, client=client))
    assert sum(not ticket.has_left for ticket in accepted) == 2 and queue.waiting == 3
    chats[0].leave()
    chats[1].leave()
    assert admitted(*(ticket for ticket in accepted if not ticket.has_left)) == [True, bool(guests)]


@in_virtual_time
async def test_expected_wait_follows_the_turns_of_clients() -> None:
    queue = AdmissionQueue(1, 32, now)
    for _ in range(5):
        queue.enqueue(client="a", remaining_s=lambda: 10.0)
    assert queue.expected_wait_s(client="a") == pytest.approx(50.0)
    assert queue.expected_wait_s(client="b") == pytest.approx(10.0 + 10.0)  # a's next turn was before
    b = queue.enqueue(client="b", remaining_s=lambda: 1.0)
    assert queue.wait_s(b) == pytest.approx(20.0)
    assert queue.expected_wait_s(client="a") == pytest.approx(51.0)
    assert AdmissionQueue(1, 32, now, guests=lambda: 1).expected_wait_s(client="b") == 0.0


@in_virtual_time
async def test_thousand_clients_leave_no_state() -> None:
    queue = AdmissionQueue(4, 32, now, guests=lambda: 4)
    tickets = []
    for number in range(1_000):
        if not queue.is_full(client=f"{number}"):
            tickets.append(queue.enqueue(client=f"{number}"))
    assert len(tickets) == 8 + 32
    for ticket in tickets:
        ticket.leave()
    assert not queue._waiting[False]._clients and not queue._running and not queue._counts[False] and queue.waiting == 0


@pytest.mark.parametrize("seed", range(20))
@in_virtual_time
async def test_random_clients_keep_order_shares_and_forecast(seed: int) -> None:
    """The simulated order is the real one, each client's requests start in order, and every request gets a slot."""
    dice = random.Random(seed)
    slots, waiting, guests = dice.randint(1, 4), dice.randint(1, 12), dice.choice([0, 3])
    queue = AdmissionQueue(slots, waiting, now, guests=lambda: guests)
    here: list[Ticket] = []
    for _ in range(400):
        client, background = dice.choice("aaaabbcd"), dice.random() < 0.2
        if dice.random() < 0.6:
            if not queue.is_full(background, client):
                here.append(queue.enqueue(background, remaining_s=lambda: 1.0, client=client))
        elif inside := [ticket for ticket in here if ticket.admitted_at is not None]:
            dice.choice(inside).leave()
        here = [ticket for ticket in here if not ticket.has_left]
        waits = [ticket for ticket in here if ticket.admitted_at is None]
        assert len(waits) == queue.waiting
        assert queue.running == len(here) - len(waits) <= (slots + guests) * (2 if guests else 1)
        if waits and not any(ticket.background for ticket in waits):
            first = min(waits, key=queue.wait_s)
            expected = [ticket for ticket in waits if queue.wait_s(ticket) == queue.wait_s(first)]
            while first.admitted_at is None and not any(ticket.admitted_at is not None for ticket in expected):
                next(ticket for ticket in here if ticket.admitted_at is not None and not ticket.has_left).leave()
                started = [ticket for ticket in waits if ticket.admitted_at is not None]
                assert all(ticket in expected for ticket in started)
            here = [ticket for ticket in here if not ticket.has_left]


@in_virtual_time
async def test_queue_that_became_shorter_evicts_for_no_request_that_has_a_slot() -> None:
    queue = AdmissionQueue(1, 5, now, guests=lambda: 1)
    waiting = [queue.enqueue(client="a") for _ in range(5)][1:]
    queue.max_waiting = 1
    assert queue.is_full(client="a") and not queue.is_full(client="b")
    assert admitted(queue.enqueue(client="b")) == [True]  # a guest
    assert not any(ticket.has_left for ticket in waiting)
    assert admitted(queue.enqueue(client="b")) == [False] and waiting[-1].refusal == "evicted"

from __future__ import annotations

import random

from gateway.server.shares import Shares


def test_one_client_gets_half_and_others_the_rest_in_halves() -> None:
    shares = Shares(lambda: 64)
    held = {}
    for client in "abcdef":
        held[client] = 0
        while shares.take(client, 1):
            held[client] += 1
        shares.give_back(client, 1)
    assert list(held.values()) == [32, 16, 8, 4, 2, 1]


def test_failed_take_is_counted_until_it_is_given_back() -> None:
    shares = Shares(lambda: 10)
    assert not shares.take("a", 8)
    assert not shares.take("b", 2)
    shares.give_back("a", 8)
    assert shares.take("b", 2)
    shares.give_back("b", 4)


def test_limit_can_change() -> None:
    limit = 10
    shares = Shares(lambda: limit)
    assert not shares.take("a", 6)
    limit = 20
    assert shares.take("b", 1)


def test_thousand_clients_leave_no_state() -> None:
    shares, dice = Shares(lambda: 100), random.Random(1)
    taken = [(f"{dice.randrange(1_000)}", dice.randrange(5)) for _ in range(2_000)]
    for client, amount in taken:
        shares.take(client, amount)
    dice.shuffle(taken)
    for client, amount in taken:
        shares.give_back(client, amount)
    assert not shares._held and shares._total == 0

"""CacheContent: which part of a prompt can stay in the cache."""

from __future__ import annotations

import pytest

from gateway.worker.genie.cache import CacheContent

IDS = list(range(200))


def cache(held: int, computed: int | None = None) -> CacheContent:
    made = CacheContent((64, 128, 256), 8)
    made.hold("ann", IDS[:held], held - 1 if computed is None else computed)
    return made


@pytest.mark.parametrize(
    ("held", "prompt", "usable"),
    [
        (30, [*IDS[:30], 7, 7], 29),
        (30, [*IDS[:20], 7, 7], 19),
        (30, IDS[:30], 28),
        (30, IDS[:25], 23),
        (30, [7, *IDS[1:30]], 0),
        (30, IDS[:2], 0),
        (30, [], 0),
        (56, [*IDS[:20], 7, 7], 19),
        (57, [*IDS[:20], 7, 7], 0),  # the answer may have moved the conversation to the context of 128
        (70, [*IDS[:65], 7, 7], 0),
        (70, [*IDS[:66], 7, 7], 65),
        (140, [*IDS[:100], 7, 7], 0),
        (140, [*IDS[:130], 7, 7], 129),
    ],
)
def test_common_prefix_stays_within_the_context_of_the_conversation(held: int, prompt: list[int], usable: int) -> None:
    assert cache(held).usable("ann", prompt) == usable


def test_uncomputed_tokens_are_not_usable() -> None:
    assert cache(30, computed=20).usable("ann", [*IDS[:30], 7, 7]) == 20


def test_other_owner_uses_nothing() -> None:
    assert cache(30).usable("bob", [*IDS[:30], 7, 7]) == 0


def test_truncated_conversation_stays_in_its_context() -> None:
    held = cache(140)
    held.hold("ann", IDS[:130], 129)
    assert held.usable("ann", [*IDS[:100], 7, 7]) == 0


def test_forgotten_content_is_not_used() -> None:
    held = cache(30)
    held.forget()
    assert held.usable("ann", IDS[:30]) == 0


def test_one_context_has_no_limit_inside() -> None:
    single = CacheContent((128,), 8)
    single.hold("", IDS[:125], 124)
    assert single.usable("", [*IDS[:20], 7, 7]) == 19

"""Server-sent events: every cut of the bytes gives the same data, within the bounds."""

from __future__ import annotations

import random

import pytest

from gateway.engines.upstream.sse import EVENT_BYTES, EventParser, EventTooLarge

TEXT = b"\xef\xbb\xbfdata: a\n\ndata:b\r\n\r\n: comment\r"
TEXT += b"data: c\rdata: d\r\revent: x\ndata\n\ndata:  e\n\nid: 1\n\n\n\ndata: f"


def parsed(parts: list[bytes], max_lines: int = 100) -> list[bytes]:
    parser = EventParser(max_lines)
    return [data for part in parts for data in parser.feed(part)] + list(parser.end())


def test_data_is_the_same_for_every_cut() -> None:
    expected = [b"a", b"b", b"c\nd", b" e", b"f"]
    assert parsed([TEXT]) == expected
    assert parsed([TEXT[at : at + 1] for at in range(len(TEXT))]) == expected
    chance = random.Random(1)
    for _ in range(200):
        cuts = sorted(chance.sample(range(len(TEXT)), 5))
        parts = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        assert parsed([*parts[:2], b"", *parts[2:]]) == expected, parts


def test_event_up_to_the_bound_is_read_and_a_longer_one_is_not() -> None:
    longest = b"data:" + b"x" * (EVENT_BYTES - 5)
    assert len(parsed([longest, b"\n\n", longest, b"\n\n"])) == 2
    for text in (longest + b"x", b"x" * (EVENT_BYTES + 1), b"data:xxxxx\n" * (EVENT_BYTES // 10 + 1)):
        with pytest.raises(EventTooLarge):
            parsed([text[at : at + 7000] for at in range(0, len(text), 7000)], max_lines=10**9)


def test_number_of_lines_has_a_bound() -> None:
    assert parsed([b"\n" * 90]) == []
    with pytest.raises(EventTooLarge):
        parsed([b":\n" * 101])

"""TextStream against a naive search of the whole text, over every way to cut it into pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.text.textstream import TextStream

letters = st.text(alphabet="ab<é", max_size=40)
patterns = st.lists(st.text(alphabet="ab<é", min_size=1, max_size=6), max_size=4)


@st.composite
def pieces(draw: st.DrawFn) -> list[str]:
    text = draw(letters)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def naive(text: str, patterns: list[str]) -> tuple[str, str | None]:
    found = [(text.find(pattern), len(pattern), pattern) for pattern in patterns if pattern in text]
    if not found:
        return text, None
    start, _, pattern = min(found)
    return text[:start], pattern


def run(stream: TextStream, pieces: list[str]) -> tuple[str, str | None, list[str]]:
    """What was delivered before the first match, the match, and the deliveries one by one."""
    delivered: list[str] = []
    for piece in pieces:
        text, match = stream.push(piece)
        delivered.append(text)
        if match is not None:
            return "".join(delivered), match, delivered
    text, match = stream.finish()
    return "".join(delivered) + text, match, delivered


@given(pieces(), patterns)
def test_the_cut_is_the_naive_one_however_the_text_arrives(pieces: list[str], patterns: list[str]) -> None:
    text, match, _ = run(TextStream(patterns), pieces)
    assert (text, match) == naive("".join(pieces), patterns)


@given(pieces(), patterns)
def test_nothing_is_held_that_cannot_begin_a_match(pieces: list[str], patterns: list[str]) -> None:
    stream, arrived, delivered = TextStream(patterns), "", ""
    for piece in pieces:
        text, match = stream.push(piece)
        if match is not None:
            return
        arrived, delivered = arrived + piece, delivered + text
        held = arrived[len(delivered) :]
        assert not held or any(pattern.startswith(held) for pattern in patterns)


@given(pieces(), patterns)
def test_all_matches_in_order_equal_those_of_repeated_naive_search(pieces: list[str], patterns: list[str]) -> None:
    stream, got = TextStream(patterns), []
    for piece in pieces:
        text, match = stream.push(piece)
        got.append(text)
        while match is not None:
            got.append(f"[{match}]")
            text, match = stream.push("")
            got.append(text)
    match = ""
    while match is not None:
        text, match = stream.finish()
        got.append(text if match is None else f"{text}[{match}]")

    rest, expected = "".join(pieces), []
    while (cut := naive(rest, patterns))[1] is not None:
        expected.append(f"{cut[0]}[{cut[1]}]")
        rest = rest[len(cut[0]) + len(cut[1]) :]
    assert "".join(got) == "".join([*expected, rest])


def test_a_failed_beginning_is_delivered_at_once() -> None:
    stream = TextStream(["END"])
    assert stream.push("the E") == ("the ", None)
    assert stream.push("N") == ("", None)
    assert stream.push("V") == ("ENV", None)


def test_held_text_comes_out_at_the_end() -> None:
    stream = TextStream(["END"])
    assert stream.push("EN") == ("", None)
    assert stream.finish() == ("EN", None)


def test_a_shorter_stop_inside_a_longer_one_waits_for_the_longer_ones_fate() -> None:
    stream = TextStream(["<end of file>", "file"])
    assert stream.push("x <end of file") == ("x ", None)
    assert stream.push(">") == ("", "<end of file>")

    stream = TextStream(["<end of file>", "file"])
    stream.push("x <end of file")
    assert stream.push("s") == ("<end of ", "file")


def test_patterns_can_change_behind_a_match() -> None:
    stream = TextStream(["<call>"])
    assert stream.push("a<call>b</call>c") == ("a", "<call>")
    stream.look_for(["</call>"])
    assert stream.push("") == ("b", "</call>")
    stream.look_for([])
    assert stream.push("d") == ("cd", None)


@pytest.mark.parametrize("piece", [1, 4096])
def test_time_is_linear_for_text_that_nearly_matches_everywhere(piece: int) -> None:
    pattern, text = "a" * 2_000 + "b", "a" * 100_000
    stream, delivered = TextStream([pattern]), 0
    began = time.process_time()
    for i in range(0, len(text), piece):
        delivered += len(stream.push(text[i : i + piece])[0])
    assert delivered == len(text) - 2_000
    assert time.process_time() - began < 2.0  # a naive search takes 200 million comparisons

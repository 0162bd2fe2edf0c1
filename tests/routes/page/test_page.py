"""GET and HEAD /, and GET /web/...: the page and its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.routes.page.files import FOLDER, MEDIA_TYPES, web_files
from gateway.routes.page.page import POLICY
from tests.support.server import error_of

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_root_answers_text_to_a_client(http: httpx.Client, accept: str) -> None:
    answer = http.get("/", headers={"accept": accept})
    assert answer.headers["content-type"].startswith("text/plain")
    assert "npu-gateway" in answer.text
    head = http.head("/", headers={"accept": accept})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_root_answers_the_page_to_a_browser(http: httpx.Client) -> None:
    answer = http.get("/", headers=BROWSER)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (FOLDER / "index.html").read_bytes()
    assert answer.headers["vary"] == "accept"
    assert http.head("/", headers=BROWSER).headers["etag"] == answer.headers["etag"]


def test_policy_allows_only_own_files(http: httpx.Client) -> None:
    for path in ("/", "/web/app/main.js"):
        headers = http.get(path, headers=BROWSER).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-dns-prefetch-control"] == "off"
    assert "unsafe" not in POLICY
    assert not re.search(r"https?:|\*", POLICY)
    assert "frame-ancestors 'none'" in POLICY


def test_unchanged_file_is_304(http: httpx.Client) -> None:
    first = http.get("/web/app/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = http.get("/web/app/main.js", headers={"if-none-match": f'W/"x", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/web/app/main.js", headers={"if-none-match": '"x"'}).content == first.content
    head = http.head("/web/app/main.js")
    assert (head.content, head.headers["content-length"]) == (b"", str(len(first.content)))


def test_every_file_has_its_media_type(http: httpx.Client) -> None:
    for name, file in web_files().items():
        answer = http.get(f"/web/{name}")
        assert answer.content == file.body
        assert answer.headers["content-type"].split(";")[0] == MEDIA_TYPES["." + name.rpartition(".")[2]]


@pytest.mark.parametrize(
    "path",
    [
        "/web/",
        "/web/app",
        "/web/missing.js",
        "/web/../app.py",
        "/web/%2e%2e/app.py",
        "/web/app/..%2f..%2f..%2fapp.py",
        "/web/..%5capp.py",
        "/web/index.html%00",
    ],
)
def test_other_paths_are_404(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert error_of(answer)["type"] == "invalid_request_error"


def test_pages_of_other_hosts_get_no_file(http: httpx.Client) -> None:
    for path in ("/", "/web/app/main.js"):
        assert http.get(path, headers={"host": "evil.example"}).status_code == 403
        assert http.get(path, headers={"origin": "http://evil.example"}).status_code == 403


def test_page_names_only_own_files() -> None:
    """No file of the page refers to another host, or to a file that does not exist."""
    files = web_files()
    for name, file in files.items():
        if name.startswith("vendor/") or not name.endswith((".html", ".css", ".js")):
            continue
        text = file.body.decode()
        for path in re.findall(r"""["'(]/web/([^"')]+)["')]""", text):
            assert path in files or path == "vendor/", f"{name} names {path}"
        for path in re.findall(r"""(?:from|import)\s*\(?["'](\.[^"']+)["']""", text):
            resolved = (FOLDER / name).parent.joinpath(path).resolve().relative_to(FOLDER).as_posix()
            assert resolved in files, f"{name} imports {path}"
        assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?https?:""", text), name


def test_vendored_files_equal_the_lock() -> None:
    """`scripts/vendor_web.py` writes them from the registry's packages, whose hashes are in the lock too."""
    vendor = FOLDER / "vendor"
    lock = json.loads((vendor / "vendor.json").read_text(encoding="utf-8"))
    hashes = {f"{name}/{file['name']}": file["sha256"] for name, library in lock.items() for file in library["files"]}
    files = [path for path in vendor.rglob("*") if path.is_file() and path.name != "vendor.json"]
    found = {path.relative_to(vendor).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert found == hashes
    assert {name.partition("/")[0] for name in found if name.endswith("/LICENSE.txt")} == lock.keys()
    assert all(library["integrity"].startswith("sha512-") for library in lock.values())


def texts(name: str) -> dict[str, str]:
    """The texts of one language by key, as they are in the source."""
    source = "".join((FOLDER / folder / f"{name}.js").read_text(encoding="utf-8") for folder in ("texts", "live"))
    return dict(re.findall(r'^  "?([\w.]+)"?: (.+),$', source, re.MULTILINE))


def own_scripts() -> list[Path]:
    scripts = [path for folder in ("app", "chat", "live") for path in sorted((FOLDER / folder).glob("*.js"))]
    return [path for path in scripts if path.name not in ("en.js", "zh.js")]


def used_keys() -> Iterator[tuple[str, str]]:
    """Each key that a file of the page names, and the file."""
    for path in own_scripts():
        for key in re.findall(r'\bt\(\s*"([\w.]+)"', path.read_text(encoding="utf-8")):
            yield key, path.name
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    yield from ((key, "index.html") for key in re.findall(r'data-(?:text|label)="([\w.]+)"', html))


def test_both_languages_have_every_text() -> None:
    english, chinese = texts("en"), texts("zh")
    assert english.keys() == chinese.keys()
    assert len(english) > 100
    assert [(key, file) for key, file in used_keys() if key not in english] == []
    for key, text in english.items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key


def test_every_text_is_used() -> None:
    sources = "".join(source.read_text(encoding="utf-8") for source in (*own_scripts(), FOLDER / "index.html"))
    families = (*re.findall(r"t\(`([\w.]+\.)\$\{", sources), "notice.")  # t(`theme.${name}`)
    unused = [key for key in texts("en") if f'"{key}"' not in sources and not key.startswith(families)]
    assert unused == []


def test_every_visible_text_is_in_the_lists() -> None:
    """The files of the page contain no visible text: each text is in both language files."""
    for path in own_scripts():
        code = re.sub(r"//.*|/\*[\s\S]*?\*/", "", path.read_text(encoding="utf-8"))
        sentences = re.findall(r'"([A-Z][a-z]+ [a-z][^"]*)"', code)
        assert sentences == [] or path.name == "sanitise.js", path.name

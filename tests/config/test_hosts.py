"""Host names, web origins, addresses to listen on, and URLs of upstream servers, in every spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.file import load_config
from gateway.config.hosts import host_name, is_loopback, server_url, web_origin
from gateway.errors import ConfigError

MODEL = '[models.a]\npath = "a"\n'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MyLaptop", "mylaptop"),
        ("mylaptop.", "mylaptop"),
        ("NPU.Lan.", "npu.lan"),
        ("my_laptop", "my_laptop"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example", "xn--mnchen-3ya.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("[0:0:0:0:0:0:0:1]", "[::1]"),
        ("[FE80::A]", "[fe80::a]"),
    ],
)
def test_host_name_has_one_spelling(text: str, name: str) -> None:
    assert host_name(text) == name
    assert host_name(name) == name


NEVER_MATCH = ["", " ", "a b", "a ", "http://a", "a/", "a:8000", "[::1]:8000", "*.example", "a..b", ".a", "a@b", "[a]"]
NEVER_MATCH += ["fe80::1%eth0", "x" * 64, "straße.example", "a\x00", "a\n", "-\u200d.example", "a,b", "."]
NEVER_MATCH += ["ä." * 127 + "ää"]  # 256 characters


@pytest.mark.parametrize("text", NEVER_MATCH)
def test_host_that_never_matches_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):
        host_name(text)
    file = tmp_path / "config.toml"
    escaped = "".join(f"\\u{ord(char):04x}" for char in text)
    file.write_text(f'[server]\nallowed_hosts = ["localhost", "{escaped}"]\n{MODEL}', encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert caught.value.message.startswith(f"{file}: [server] allowed_hosts: {text!r} never matches: ")


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://Chat.Example/", "https://chat.example"),
        ("HTTPS://chat.example:443", "https://chat.example"),
        ("http://chat.example:80", "http://chat.example"),
        ("https://chat.example:8443", "https://chat.example:8443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://münchen.example", "https://xn--mnchen-3ya.example"),
        ("https://*.chat.example", "https://*.chat.example"),
        ("http://localhost:*", "http://localhost:*"),
        ("vscode-webview://abc", "vscode-webview://abc"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_web_origin_has_one_spelling(text: str, origin: str) -> None:
    assert web_origin(text) == origin


@pytest.mark.parametrize(
    "text", ["", "chat.example", "https://", "https://a/b", "https://a?b", "https://u@a", "https://a b", "https://a//"]
)
def test_origin_that_never_matches_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[server]\ncors_origins = ['{text}']\n{MODEL}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\[server\] cors_origins: .* never matches: "):
        load_config(file, {})


OPEN_HOSTS = ["0.0.0.0", "::", "[::]", "0", "0x0", "000.0.0.0", "::ffff:0.0.0.0", "::0.0.0.0", "0:0:0:0:0:0:0:0", "*"]
OPEN_HOSTS += [
    "::ffff:127.0.0.1",
    "localhost.",
    "localhost.example",
    "mylaptop",
    " ",
    "127.1",
    "127.0.0.1 ",
    "192.168.1.5",
]


@pytest.mark.parametrize("host", OPEN_HOSTS)
def test_address_that_may_be_open_needs_key(tmp_path: Path, host: str) -> None:
    assert not is_loopback(host)
    file = tmp_path / "config.toml"
    file.write_text(f'[server]\nhost = "{host}"\n{MODEL}', encoding="utf-8")
    with pytest.raises(ConfigError, match="lets other machines connect without a key"):
        load_config(file, {})


@pytest.mark.parametrize("url", ["http://127.0.0.1:8081/v1", "HTTPS://Example/v1", "http://[::1]:1", "http://a/v1?b=c"])
def test_server_url_is_accepted(url: str) -> None:
    assert server_url(url).hostname


BAD_URLS = [
    "",
    "localhost:8081",
    "ftp://a",
    "http://",
    "http:///v1",
    "http://:80",
    "http://a:99999",
    "http://a:x",
    "http://http://a",
]
BAD_URLS += ["http://a:0", "http://u:p@a/v1", "http://a/#v1", "http://a b", "http://a\n", "http://ä/", "http://[::1"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_server_url_that_cannot_be_reached_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        server_url(url)

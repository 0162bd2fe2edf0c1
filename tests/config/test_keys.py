"""API keys of table, file and environment: what is refused, and what gets a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.config.file import has_keys, load_config
from gateway.config.keys import key_mistakes, key_warnings
from gateway.config.tables import Config
from gateway.errors import ConfigError

MODEL = '[models.a]\npath = "a"\n'
FILE = '[server]\napi_keys_file = "keys.txt"\n'


def load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Config:
    file = folder / "config.toml"
    file.write_text(text + MODEL, encoding="utf-8")
    return load_config(file, environ or {})


def refusal(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ)
    assert "\n" not in caught.value.message
    return caught.value.message


ODD = {
    "comment_after_key": (b"k-1 #anna\n", "line 1: a key must not start with '#'"),
    "comment_after_name_and_key": (b"anna k-1 # of her laptop\n", "line 1: expected KEY or NAME KEY"),
    "second_byte_order_mark": (b"\n\xef\xbb\xbfk-1\n", "printable ASCII"),
    "nul": (b"k-1\0\n", "printable ASCII"),
}


@pytest.mark.parametrize(("content", "words"), ODD.values(), ids=ODD)
def test_odd_line_of_keys_file_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "keys.txt").write_bytes(content)
    message = refusal(tmp_path, FILE)
    assert words in message and "k-1" not in message


@pytest.mark.parametrize("end", ["\u2028", "\x0c", "\x85", "\x1c"])
def test_only_a_new_line_ends_a_comment(tmp_path: Path, end: str) -> None:
    content = f"\ufeff# anna{end}hello\r\nanna\tk-1\r\nk-2"
    (tmp_path / "keys.txt").write_bytes(content.encode())
    assert load(tmp_path, FILE).server.api_keys == {"anna": "k-1", "key3": "k-2"}


EMPTY = {
    "empty": b"",
    "comments": b"# none yet\n  # still none\n",
    "blank_lines": b"\n \t\r\n\n",
    "byte_order_mark": b"\xef\xbb\xbf\n",
    "byte_order_mark_and_comment": b"\xef\xbb\xbf# none\n",
}


@pytest.mark.parametrize("content", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_keys_file_without_key_is_refused(tmp_path: Path, content: bytes, host: str) -> None:
    (tmp_path / "keys.txt").write_bytes(content)
    message = refusal(tmp_path, FILE + f'host = "{host}"\ninsecure = true\n')
    assert message.startswith("[server] api_keys_file: ") and "has no key" in message


def test_keys_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, FILE).endswith("keys.txt cannot be read")
    (tmp_path / "keys.txt").mkdir()
    assert refusal(tmp_path, FILE).endswith("keys.txt cannot be read")
    (tmp_path / "keys.txt").rmdir()
    (tmp_path / "keys.txt").write_text("anna k-1\n", encoding="utf-16")  # as PowerShell 5 writes with `>`
    assert refusal(tmp_path, FILE).endswith("keys.txt is not UTF-8 text")
    assert "NUL character" in refusal(tmp_path, '[server]\napi_keys_file = "a\\u0000b"\n')
    assert "printable" in refusal(tmp_path, '[server]\napi_keys_file = "a\\u2028b"\n')


def test_empty_key_variable_is_refused(tmp_path: Path) -> None:
    assert "NPU_GATEWAY_API_KEY is empty" in refusal(tmp_path, "", {"NPU_GATEWAY_API_KEY": ""})
    assert "without spaces" in refusal(tmp_path, "", {"NPU_GATEWAY_API_KEY": "  "})
    assert "API_KEYS_FILE" in refusal(tmp_path, "", {"NPU_GATEWAY_SERVER_API_KEYS_FILE": ""})
    assert "API_KEYS:" in refusal(tmp_path, "", {"NPU_GATEWAY_SERVER_API_KEYS": ""})
    assert "not empty" in refusal(tmp_path, "", {"NPU_GATEWAY_SERVER_API_KEYS": "anna"})


@pytest.mark.parametrize(
    ("text", "lines", "environ", "name"),
    [
        (FILE, "anna k-1\nanna k-2\n", {}, "anna"),
        (FILE, "key2 k-1\nk-2\n", {}, "key2"),
        (FILE + 'api_keys = { anna = "k-0" }\n', "anna k-1\n", {}, "anna"),
        (FILE, "environment k-1\n", {"NPU_GATEWAY_API_KEY": "k-2"}, "environment"),
        ('[server]\napi_keys = { environment = "k-0" }\n', "", {"NPU_GATEWAY_API_KEY": "k-2"}, "environment"),
        ("", "", {"NPU_GATEWAY_SERVER_API_KEYS": "anna=k-1,anna=k-2"}, "anna"),
    ],
)
def test_key_name_used_twice_is_refused(
    tmp_path: Path, text: str, lines: str, environ: Mapping[str, str], name: str
) -> None:
    (tmp_path / "keys.txt").write_text(lines, encoding="utf-8")
    message = refusal(tmp_path, text, environ)
    assert repr(name) in message and "k-" not in message


def test_same_key_with_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("anna k-1\nbert k-1\n", encoding="utf-8")
    assert refusal(tmp_path, FILE).endswith("two names have the same key: 'anna' and 'bert'")
    (tmp_path / "keys.txt").write_text("anna k-1\n", encoding="utf-8")
    assert "'anna' and 'environment'" in refusal(tmp_path, FILE, {"NPU_GATEWAY_API_KEY": "k-1"})


@pytest.mark.parametrize("key", ["", " ", "a b", "k\t", "k\x00", "k\x1b[2J", "k\x7f", "kéy", "k\u200b", "k\n"])
def test_key_that_is_not_printable_ascii_is_a_mistake(key: str) -> None:
    assert "printable ASCII" in next(key_mistakes({"a": key}))


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b"])
def test_key_name_that_is_not_printable_is_a_mistake(name: str) -> None:
    assert "must be printable" in next(key_mistakes({name: "k-1"}))


def test_short_key_and_readable_file_are_warnings(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("anna short\nbert a-long-random-text-1\n", encoding="utf-8")
    file.chmod(0o644)
    warnings = list(key_warnings(load(tmp_path, FILE).server))
    assert warnings[0] == "the API key 'anna' has fewer than 16 characters and can be guessed"
    assert len(warnings) == (2 if os.name == "posix" else 1)
    if os.name == "posix":
        assert warnings[1].startswith(f"other users can read {file}")
    file.chmod(0o600)
    assert list(key_warnings(load(tmp_path, FILE).server)) == warnings[:1]


def test_key_before_its_name_is_in_no_message(tmp_path: Path) -> None:
    secret = "a-long-random-text-1"
    (tmp_path / "keys.txt").write_text(f"{secret} anna\n", encoding="utf-8")
    warnings = [line for line in key_warnings(load(tmp_path, FILE).server) if "guessed" in line]
    assert len(warnings) == 1 and "is it the key?" in warnings[0] and secret not in warnings[0]
    for lines in (f"{secret} anna\n{secret} bert\n", f"{secret} anna\n{secret}-2 anna\n", f"{secret} \x1b\n"):
        (tmp_path / "keys.txt").write_text(lines, encoding="utf-8")
        assert secret not in refusal(tmp_path, FILE)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no permission bits")
@pytest.mark.parametrize(
    "text",
    [
        '[server.api_keys]\nanna = "a-long-random-text-1"\n',
        '[models.u]\nengine = "upstream"\nurl = "http://h"\napi_key = "x"\n',
        '[state]\nurl = "postgresql://u:password@h/d"\n',
    ],
)
def test_config_with_keys_that_others_can_read_is_a_warning(tmp_path: Path, text: str) -> None:
    config, file = load(tmp_path, text), tmp_path / "config.toml"
    file.chmod(0o640)
    assert has_keys(file)
    assert [line[:20] for line in key_warnings(config.server, file)] == ["other users can read"]
    file.chmod(0o600)
    assert list(key_warnings(config.server, file)) == []
    load(tmp_path, "")
    assert not has_keys(file)


def test_config_without_models_has_no_keys(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[server]\nport = 8000\n", encoding="utf-8")
    assert not has_keys(file)


@pytest.mark.parametrize("variable", ["CORS_ORIGINS", "ALLOWED_HOSTS"])
def test_star_without_keys_is_a_warning(tmp_path: Path, variable: str) -> None:
    environ = {f"NPU_GATEWAY_SERVER_{variable}": "*"}
    [line] = key_warnings(load(tmp_path, "", environ).server)
    assert line.startswith(f"{variable.lower()} has '*' and there are no keys")
    assert (
        list(key_warnings(load(tmp_path, "", {**environ, "NPU_GATEWAY_API_KEY": "a-long-random-text-1"}).server)) == []
    )

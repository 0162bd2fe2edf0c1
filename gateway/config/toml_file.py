"""Reads a TOML file. The message of a mistake is one line: its line number, and what to write."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError, cut

_LONGEST_QUOTE = 100
_LONGEST_FILE = 1_000_000  # bytes: each command reads ./config.toml, which comes with any folder
_LONGEST_LINE = 10_000  # characters; a longer one is not explained
#: A key of 200 parts. tomllib needs memory for the square of their number.
_DEEP_KEY = re.compile(r"""(?:(?:(?<![\w-])[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){200}""")
_GOOD_ESCAPE = re.compile(r'\\(?:[btnfr"\\]|u[0-9A-Fa-f]{4}|U00(?:0[0-9A-Fa-f]|10)[0-9A-Fa-f]{4})')
_VALUE = re.compile(r"""(?P<key>[^=#]+)=(?P<value>[^#]*)(?:#.*)?$""")
_WORDS = re.compile(r"""\d+(\.\d+){3}|(?![\d+-])[^\s"'\[\]{},=]+( [^\s"'\[\]{},=]+)*""")  # or an address
_CURLY = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"
_PLAIN = (  # a regular expression for tomllib's message -> our words
    (r"Cannot (declare|mutate|redefine).*", "this table is in the file twice; write its keys under one header"),
    (r"Cannot overwrite a value|Duplicate inline table key.*", "this key is in its table twice; remove one line"),
    (r"Unclosed inline table|Invalid initial character for a key part", "a table in { } must be on one line"),
    (r"Expected '=' after a key.*|Invalid statement", "expected `key = value`, or a [table]"),
    (r"Unclosed array", "a list lacks its ]"),
    (r"Illegal character '\\n'|Unterminated string|Expected \"'\"", "a text lacks its closing quote"),
    (r"Expected '\]' at the end of a table declaration", "a table is written [NAME]; a name with a space needs quotes"),
    (r"Expected newline or end of document after a statement", "there is more after the value; text needs quotes"),
)


def read_toml(file: Path) -> dict[str, Any]:
    """The content of the file. Raises ConfigError."""
    text = ""
    try:
        text = _start_of(file, _LONGEST_FILE + 1).decode("utf-8-sig")  # Notepad writes a byte order mark
        if len(text) > _LONGEST_FILE or _DEEP_KEY.search(text):
            raise ConfigError(f"{file}: no configuration: it has more than 1 MB, or a key with hundreds of parts")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{file}: the file does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {_explained(str(error), text)}") from None
    except ValueError:  # Python's limit
        raise ConfigError(f"{file}: not valid TOML: a number has too many digits") from None
    except RecursionError:
        raise ConfigError(f"{file}: not valid TOML: too many nested lists or tables") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


def has_header(file: Path, tables: set[str]) -> bool:
    """True if a line of the file begins one of these tables, also in a file that is not valid TOML or UTF-16.

    Raises:
        OSError: the file cannot be read.
    """
    names = "|".join(map(re.escape, sorted(tables)))
    text = _start_of(file, _LONGEST_FILE).replace(b"\0", b"").decode("latin-1")
    return re.search(rf"""^[ \t]*(?:\ufeff|ï»¿|ÿþ)?\[\s*["']?({names})["']?\s*[.\]]""", text, re.MULTILINE) is not None


def _start_of(file: Path, length: int) -> bytes:
    with file.open("rb") as opened:
        return opened.read(length)


def _explained(message: str, text: str) -> str:
    """The message of tomllib in plain words: "line 4: in "C:\\Users" a backslash starts an escape. Use ..."."""
    lines = text.splitlines()
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    number = int(found[1]) if found else 0
    for at in [number] if number else range(1, len(lines) + 1):
        if hint := _line_hint(lines[at - 1] if at <= len(lines) else ""):
            return f"line {at}: {hint}"
    problem = re.sub(r" \(at .*\)$", "", message)
    plain = next((ours for pattern, ours in _PLAIN if re.fullmatch(pattern, problem)), "")
    return f"{f'line {number}: ' if number else ''}not valid TOML: {plain or problem}"


def _line_hint(line: str) -> str:
    """What is wrong with one line of TOML, for the usual mistakes of people. "": none of them."""
    if len(line) > _LONGEST_LINE:
        return ""
    for wrong in _bad_escapes(line):
        quoted = cut(f'"{wrong}"', _LONGEST_QUOTE)
        return f"in {quoted} a backslash starts an escape. Use {_without_escapes(wrong)}"
    pair = _VALUE.match(line)
    if pair is None:
        return ""
    key, value = pair["key"].strip(), pair["value"].strip()
    if any(mark in value for mark in _CURLY) and not value.startswith(("'", '"')):
        return f"write straight quotes: {key} = '{_cut(value.strip(_CURLY))}'"
    if value in ("True", "False"):
        return f"write {key} = {value.lower()}"
    if not value:
        return f"{key} has no value"
    if _WORDS.fullmatch(value) and value not in ("true", "false", "inf", "nan"):
        return f"text needs quotes: {key} = '{_cut(value)}'"
    return ""


def _bad_escapes(line: str) -> Iterator[str]:
    """The texts in double quotes that have a backslash where TOML needs an escape."""
    for start in (found.start() for found in re.finditer(r'(?<!\\)"', line)):
        if line[:start].count('"') % 2 or line.lstrip().startswith("#") or line.startswith('""', start):
            continue
        rest = line[start + 1 :]
        end = re.search(r'"\s*(?=[,}\]#]|$)', rest)
        text = rest[: end.start()] if end else rest
        escapes = _GOOD_ESCAPE.sub("", text)
        if "\\" in escapes or text.endswith("\\"):
            yield text


def _without_escapes(text: str) -> str:
    """`text`, which has backslashes, in the forms that TOML reads as it is."""
    shown = _cut(text)
    forms = [f"'{shown}'"] if "'" not in text else ['"' + shown.replace("\\", "\\\\") + '"']
    if re.match(r"[A-Za-z]:\\|\\\\|\.{1,2}\\", text):  # a path
        forms.append(f'"{shown}"'.replace("\\", "/"))
    return " or ".join(forms)


def _cut(text: str) -> str:
    return cut(text, _LONGEST_QUOTE)

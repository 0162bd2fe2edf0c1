"""The question of a chat without a conversation: the arguments, and the text on standard input."""

from __future__ import annotations

import codecs
import locale
import sys
import threading
from collections.abc import Sequence

from gateway.errors import GatewayError

_NOTE_AFTER_S = 3.0  # of waiting for standard input
_MAX_BYTES = 16 * 1024 * 1024


def read_question(words: Sequence[str]) -> str:
    """The words, then what standard input has. Raises GatewayError if there is no text at all."""
    parts = (_valid(" ".join(words)), _standard_input(bool(words)))
    text = "\n\n".join(part for part in parts if part.strip())
    if not text.strip():
        raise GatewayError('There is no question. Write it behind the command: npu-gateway chat "QUESTION"')
    return text.strip()


def _valid(text: str) -> str:
    """An argument can have bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _standard_input(has_question: bool) -> str:
    stream = sys.stdin
    if stream is None or stream.closed or (has_question and stream.isatty()):
        return ""
    note = threading.Timer(_NOTE_AFTER_S, print, ["npu-gateway: reading standard input up to its end"])
    note.kwargs = {"file": sys.stderr, "flush": True}
    note.daemon = True
    note.start()
    try:
        data = stream.buffer.read(_MAX_BYTES + 1)
    finally:
        note.cancel()
    if len(data) > _MAX_BYTES:
        raise GatewayError("Standard input has more than 16 MB; no model reads a text of this length.")
    return decoded(data)


def decoded(data: bytes) -> str:
    """Text in UTF-8, in UTF-16 with a mark (as Windows writes it), or in the code page. Raises GatewayError."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    if b"\0" in data:
        raise GatewayError("Standard input is not text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(locale.getencoding(), "replace")

"""Text from arguments and standard input, in the encodings that shells write."""

from __future__ import annotations

import io
import sys

import pytest

from gateway.commands.chat.question import decoded, read_question
from gateway.errors import GatewayError


@pytest.mark.parametrize(
    ("words", "stdin", "question"),
    [
        (["Sum", "up."], b"one\r\ntwo\n", "Sum up.\n\none\r\ntwo"),
        (["Sum up."], b" \n", "Sum up."),
        ([], b"\n /help\n", "/help"),
        (["caf\udce9"], b"", "caf\ufffd"),
    ],
)
def test_question_is_arguments_then_standard_input(
    words: list[str], stdin: bytes, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    assert read_question(words) == question


def test_process_without_standard_input_has_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert read_question(["hi"]) == "hi"
    with pytest.raises(GatewayError, match="no question"):
        read_question([])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_decoded(encoding: str) -> None:
    assert decoded("Grüße, 世界".encode(encoding)) == "Grüße, 世界"


def test_binary_file_is_refused() -> None:
    with pytest.raises(GatewayError, match="not text"):
        decoded(b"PK\x03\x04\x00\x00")

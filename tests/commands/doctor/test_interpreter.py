from __future__ import annotations

import sys

import pytest

from gateway.commands.doctor.interpreter import Interpreter, this_interpreter


def interpreter(built_for: str, host: str, bits: int = 64) -> Interpreter:
    return Interpreter(version="3.12.1", bits=bits, built_for=built_for, host=host, path="python")


@pytest.mark.parametrize(
    ("built_for", "host", "is_emulated"),
    [
        ("win-amd64", "ARM64", True),
        ("win32", "ARM64", True),
        ("win-arm64", "ARM64", False),
        ("win-amd64", "AMD64", False),
        ("win-amd64", "", False),  # before IsWow64Process2
        ("linux-x86_64", "x86_64", False),
        ("linux-aarch64", "aarch64", False),
        ("macosx-14-arm64", "arm64", False),
    ],
)
def test_python_for_another_processor_on_arm_is_found(built_for: str, host: str, is_emulated: bool) -> None:
    found = interpreter(built_for, host)
    assert found.is_emulated == is_emulated
    assert ("https://www.python.org/downloads/windows/" in found.problem) == is_emulated


def test_python_with_32_bits_is_found() -> None:
    assert "needs 64" in interpreter("win32", "AMD64", 32).problem


def test_this_python_is_described() -> None:
    found = this_interpreter()
    assert found.path == sys.executable and found.bits == 64 and found.host and not found.problem

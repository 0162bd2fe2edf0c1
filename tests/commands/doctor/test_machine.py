from __future__ import annotations

import pytest

from gateway.commands.doctor.finding import Finding
from gateway.commands.doctor.interpreter import Interpreter
from gateway.commands.doctor.machine import build_note, library_findings, machine, python

GOOD = {"onnxruntime": "1.32.0", "onnxruntime-qnn": "2.7.0", "numpy": "2.4.6"}


def test_x64_python_on_arm_is_bad_and_keeps_the_models_from_the_npu() -> None:
    found = python(Interpreter(version="3.12.1", bits=64, built_for="win-amd64", host="ARM64", path="python"))
    assert (found.level, found.cause, found.symptom) == ("bad", "interpreter", "not on the NPU")
    assert found.step.startswith("Install the ARM64 Python from https://www.python.org/")


def test_32_bit_python_refuses() -> None:
    found = python(Interpreter(version="3.12.1", bits=32, built_for="win32", host="AMD64", path="python"))
    assert (found.level, found.cause, found.symptom) == ("bad", "interpreter", "refused")


@pytest.mark.parametrize(
    ("changes", "npu_expected", "bad"),
    [
        ({}, True, []),
        ({"numpy": ""}, False, [("numpy", "libraries", "refused")]),
        ({"onnxruntime-qnn": ""}, False, []),
        ({"onnxruntime-qnn": ""}, True, [("onnxruntime-qnn", "libraries", "not on the NPU")]),
        ({"onnxruntime": "1.23.0"}, True, [("versions", "libraries", "not on the NPU")]),
        ({"onnxruntime-qnn": "1.22.0"}, True, [("versions", "libraries", "not on the NPU")]),
        ({"onnxruntime": ""}, True, [("onnxruntime", "libraries", "refused")]),
    ],
)
def test_versions_that_do_not_fit_are_found(
    changes: dict[str, str], npu_expected: bool, bad: list[tuple[str, str, str]]
) -> None:
    found = [each for each in library_findings({**GOOD, **changes}, npu_expected) if each.level == "bad"]
    assert [(each.what, each.cause, each.symptom) for each in found] == bad
    assert all(each.step for each in found)


def test_windows_before_24h2_is_noted_on_arm() -> None:
    [old] = build_note(22631, True)
    assert (old.level, old.cause) == ("note", "driver") and "26100" in old.detail
    assert list(build_note(26100, True)) == list(build_note(22631, False)) == list(build_note(None, True)) == []


def test_this_machine_is_good() -> None:
    assert {each.level for each in machine() if isinstance(each, Finding)} == {"ok"}

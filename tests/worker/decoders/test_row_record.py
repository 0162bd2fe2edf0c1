"""The record of the check of batch invariance: a start checks again only if something that decides it has changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from gateway.bundles.bundle import ROWS_FILE, load_bundle
from gateway.worker.decoders import cpu, row_record
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.row_record import RowRecord, Rows, processor
from tests.support.tiny import build_tiny

Open = Callable[..., Rows]


@pytest.fixture
def checks() -> list[int]:
    """The row multiples that were checked."""
    return []


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return build_tiny(tmp_path)


@pytest.fixture
def open_decoder(bundle: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch) -> Open:
    check = cpu.is_batch_invariant

    def counted(decoder: CpuDecoder, *arguments: object) -> bool:
        checks.append(decoder.row_multiple)
        return check(decoder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cpu, "is_batch_invariant", counted)

    def open_it(slots: int = 2, context_length: int = 64) -> Rows:
        decoder = CpuDecoder(load_bundle(bundle), slots=slots, context_length=context_length, keeps_record=True)
        assert decoder.new_cache().length == 0
        found = Rows(decoder.row_multiple, decoder.spec.is_batch_invariant)
        decoder.close()
        return found

    return open_it


def test_second_start_makes_no_check(open_decoder: Open, bundle: Path, checks: list[int]) -> None:
    first = open_decoder()
    assert checks
    checks.clear()
    assert open_decoder() == first and not checks
    (bundle / ROWS_FILE).write_bytes(b'{"conditions": [')
    assert open_decoder() == first and checks, "a damaged record is no record"


def test_settings_that_alternate_are_checked_once_each(open_decoder: Open, checks: list[int]) -> None:
    """As for a model that is used on its own, and also drafts for another one."""
    first = [open_decoder(context_length=length) for length in (64, 63)]
    checks.clear()
    assert [open_decoder(context_length=length) for length in (64, 63)] == first and not checks


def test_record_keeps_the_last_settings_only(bundle: Path) -> None:
    def record(number: int) -> RowRecord:
        return RowRecord(bundle / "model.onnx", [number])

    for number in range(30):
        record(number).write(Rows(1, True))
    known = [number for number in range(30) if record(number).read()]
    assert known == list(range(30 - row_record._MOST_SETTINGS, 30))


def test_telemetry_switch_of_the_gateway_is_no_condition(
    open_decoder: Open, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    open_decoder()
    checks.clear()
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    open_decoder()
    assert not checks


def test_record_without_a_multiple_of_the_graph_is_not_used(
    open_decoder: Open, bundle: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowRecord, "read", lambda self: Rows(3, True))
    assert open_decoder().multiple != 3 and checks


@pytest.mark.parametrize("change", ["processor", "version", "environment", "graph", "weights", "slots", "context"])
def test_another_condition_makes_the_check_again(
    open_decoder: Open, bundle: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    open_decoder()
    checks.clear()
    options = {"slots": {"slots": 1}, "context": {"context_length": 63}}.get(change, {})
    match change:
        case "processor":
            monkeypatch.setattr(row_record, "processor", lambda: "another one")
        case "version":
            monkeypatch.setattr(ort, "__version__", "1.33.0")
        case "environment":
            monkeypatch.setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
        case "graph" | "weights":
            name = "model.onnx" if change == "graph" else "model.onnx.data"
            os.utime(bundle / name, ns=(0, 1_000_000_000))
    open_decoder(**options)
    assert checks


def test_bundle_that_cannot_be_written_is_checked_each_time(
    open_decoder: Open, bundle: Path, checks: list[int]
) -> None:
    (bundle / ROWS_FILE).mkdir()  # in the way of the file, also for a user who may write everything
    open_decoder()
    checks.clear()
    open_decoder()
    assert checks and not list(bundle.glob(f"{ROWS_FILE}.*"))


def test_processor_is_the_same_text_each_time() -> None:
    assert processor() == processor() != ""
    assert "mhz" not in processor()

"""Ratios of two measurements, and which of them are within the spread."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.commands.bench.compare import Metric, compare, meaning, rows
from gateway.commands.bench.report import Prefill, encode, read
from gateway.errors import ConfigError
from tests.support.bench_report import report_of


def test_rows_have_medians_ratio_and_meaning() -> None:
    found = {row[0]: row[1:] for row in rows(report_of(), report_of(0.5))}
    assert found["64 tokens, first run"] == ("3.6 s", "1.8 s", "0.50", "measured once")
    assert found["64 tokens, later runs"] == ("3.47 (3.3-3.63) s", "1.73 (1.65-1.82) s", "0.50", "B is better")
    assert found["generated"][2:] == ("2.00", "B is better")
    assert found["prompt of 256"][2:] == ("2.00", "B is better")
    assert found["memory"] == ("460 MB", "460 MB", "1.00", "measured once")


def test_ranges_that_overlap_are_within_the_spread() -> None:
    a, b = Metric(name="x", values=[1.0, 1.2]), Metric(name="x", values=[1.15, 1.4])
    assert meaning(a, b) == "within the spread"
    assert meaning(a, Metric(name="x", values=[1.3, 1.4])) == "B is worse"


def test_files_of_two_models_are_compared_with_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(encode(report_of()), encoding="utf-8")
    (tmp_path / "b.json").write_text(
        encode(report_of(device="cpu", prefill=[Prefill(length=256, runs=[])])), encoding="utf-8"
    )
    compare(tmp_path / "a.json", tmp_path / "b.json")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7 and all(line.count("\t") == 4 for line in lines)
    assert read(tmp_path / "a.json") == report_of()


@pytest.mark.parametrize("text", ["", "{}", '{"model": 1}'])
def test_other_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a result of `npu-gateway bench --json`"):
        read(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "missing.json")

"""`npu-gateway usage` reads the file that the gateways of this user write, also while none runs."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from gateway import cli
from gateway.bundles.disk import data_folder
from gateway.monitoring.usage.counts import Cell, bucket
from gateway.monitoring.usage.store import UsageStore
from gateway.state.sqlite import FILE, SqliteDatabase
from tests.support.terminal import Terminal


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    return data_folder() / FILE


@pytest.fixture
def used(file: Path) -> None:
    hour = int(time.time() // 3600)
    answers = Counter({"requests": 1200, "answered": 1199, "failed": 1, "completion_tokens": 3456, "ending stop": 1199})
    answers["ending engine_failed"] = 1
    answers[f"ttft {bucket(200)}"] = 1199
    refusals = Counter({"requests": 3, "refused": 3, "ending latency_breaker_open": 3})
    UsageStore(SqliteDatabase(file), 30).add(
        {Cell(hour, "big", "anna"): answers, Cell(hour - 24 * 3, "small", ""): refusals}
    )


def test_no_requests_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", "--days", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("There are no requests since 2") and str(file) in captured.err


@pytest.mark.parametrize(
    ("by", "first", "second"),
    [("model", "big", "small"), ("key", "anna", "(no key)"), ("day", "20", "20")],
)
def test_a_pipe_gets_a_row_for_each(
    used: None, by: str, first: str, second: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["usage", "--by", by]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0].startswith(name) for row, name in zip(rows, (first, second), strict=True)] == [True, True]
    assert rows[0][1:8] == ["1200", "0", "1", "0", "0", "3456", "216.8"]
    assert rows[1][1:4] == ["3", "3", "0"]


def test_days_limit_the_rows(used: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", "--days", "2", "--by", "model"]) == 0
    assert capsys.readouterr().out.startswith("big\t1200")


def test_rows_are_joined_and_chosen(used: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", "--by", "model,key", "--key", "anna"]) == 0
    [row] = capsys.readouterr().out.splitlines()
    assert row.split("\t")[:3] == ["big", "anna", "1200"]
    assert cli.main(["usage", "--by", "key,model", "--csv"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("key,model,requests,answered,") and rows[0].startswith("anna,big,1200,1199,")
    assert [row.split(",")[0] for row in rows] == ["anna", ""]
    assert cli.main(["usage", "--by", "model,nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_json_has_all_numbers(used: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["requests"] == 1203
    assert report["total"]["endings"] == {"stop": 1199, "engine_failed": 1, "latency_breaker_open": 3}


@pytest.mark.parametrize("terminal", [50, 160], indirect=True)
def test_terminal_shows_totals_and_errors(used: None, terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        assert cli.main(["usage", "--by", "model"]) == 0
    text = terminal.getvalue()
    words = " ".join(text.split())
    assert "1,203 requests since" in words and "not answered: 3 latency_breaker_open, 1 engine_failed" in words
    assert max(map(len, text.splitlines())) <= terminal.width


@pytest.mark.parametrize("days", ["0", "-3", "9999"])
def test_wrong_number_of_days_is_one_line(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["usage", "--days", days]) == 2
    assert capsys.readouterr().err == f"npu-gateway: --days must be from 1 to 3660, not {days}\n"


def test_damaged_file_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database" * 1000)
    assert cli.main(["usage"]) == 1
    assert "is damaged" in capsys.readouterr().err

"""`npu-gateway keys`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway import cli
from gateway.state.keys import hash_of

pytestmark = pytest.mark.usefixtures("data")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> tuple[str, str]:
    assert cli.main(["keys", *words]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_key_is_shown_once_and_stored_as_a_hash(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "add", "anna", "--requests-per-minute", "60", "--models", "a, b")
    key = out.strip()
    assert key.startswith("npu-") and len(key) == 47 and "keys = true" in err and key not in err
    for file in data.rglob("*.sqlite*"):
        assert key.encode() not in file.read_bytes()
    assert hash_of(key.encode()) in (data / "npu-gateway" / "state.sqlite").read_bytes().decode("latin-1")
    out, _ = run(capsys, "list")
    assert out.split("\t")[0] == "anna" and "requests per minute 60; models a, b" in out and key not in out
    [row] = json.loads(run(capsys, "list", "--json")[0])
    assert row.keys() == {"name", "limits", "created", "revoked"} and row["revoked"] is None


def test_name_is_used_once_until_its_key_is_revoked(capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = run(capsys, "add", "anna")
    assert "already" in run(capsys, "add", "anna", code=2)[1]
    assert "revoked" in run(capsys, "revoke", "anna")[0]
    assert "revoked" in run(capsys, "list")[0]
    assert "No key in use has the name" in run(capsys, "revoke", "anna", code=1)[1]
    second, _ = run(capsys, "add", "anna")
    assert first != second


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\nb", "a\x1b[31m", "laptop"])
def test_wrong_name_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[server]\napi_keys = { laptop = "a-long-random-text-of-a-key" }\n', encoding="utf-8")
    out, err = run(capsys, "add", name, "--config", str(file), code=2)
    assert out == "" and err.count("\n") == 1 and "\x1b" not in err


def test_no_keys_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == ("", "There are no keys. `npu-gateway keys add NAME` makes one.\n")


def test_password_of_the_database_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (
        "postgresql://u:pass-word@127.0.0.1:1/x",
        "postgresql://u:pass-word@127.0.0.1:99999/x",
        "postgresql://u:pass-word@[::1/x",
        "postgresql://u:pass-word@h/x?ssl=1",
        "postgresql://u:pass-word@h/x?sslmode=pass-word",
        "postgresql:/u:pass-word@h/x",
        "mysql://u:pass-word@h/x",
        "postgresql://u:pass-word@h/x#f",
        "postgresql://:pass-word@h/x",
    ):
        monkeypatch.setenv("NPU_GATEWAY_STATE_URL", url)
        code = cli.main(["keys", "list"])
        captured = capsys.readouterr()
        assert code in (1, 2) and captured.err.count("\n") == 1
        assert "pass-word" not in captured.out + captured.err, url

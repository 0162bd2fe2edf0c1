"""The command line of a service."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.commands.greeting import own_command
from gateway.commands.service.launch import call, make_launch
from gateway.errors import ConfigError, GatewayError
from tests.support.processes import SCRIPTED

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an environment of POSIX")


def test_named_configuration_is_passed_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text(SCRIPTED, encoding="utf-8")
    launch = make_launch(Path("own.toml"))
    assert launch.arguments == ("-P", "-m", "gateway", "serve", "--config", str(tmp_path / "own.toml"))
    assert launch.folder == tmp_path and launch.program.exists()


def test_mistake_in_the_configuration_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[server]\nprot = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="port"):
        make_launch(tmp_path / "own.toml")


def test_program_of_a_clone_is_behind_its_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an upgrade, which lets the link point to another environment, does not break the service."""
    environment = tmp_path / ".venvs" / "1"
    (environment / "bin").mkdir(parents=True)
    (tmp_path / ".venv").symlink_to(environment)
    (tmp_path / "own.toml").write_text(SCRIPTED, encoding="utf-8")
    monkeypatch.setattr("gateway.config.find.clone_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    assert make_launch(tmp_path / "own.toml").program == tmp_path / ".venv" / "bin" / "python"
    (environment / "bin" / "npu-gateway").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert Path(own_command()).parts[:2] == (".venv", "bin")  # what the greeting shows


def test_program_of_the_system_gives_its_exit_code_and_all_of_its_text() -> None:
    assert call(["sh", "-c", "echo one; echo two >&2; exit 3"]) == (3, "one\ntwo")


def test_missing_program_of_the_system_is_reported() -> None:
    with pytest.raises(GatewayError, match="absent-program cannot be started"):
        call(["absent-program"])


def test_windows_takes_its_programs_from_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the current folder, where any file can lie."""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("SYSTEMROOT", "/windows")
    with pytest.raises(GatewayError, match=r"^/windows/System32/schtasks\.exe cannot be started"):
        call(["schtasks"])

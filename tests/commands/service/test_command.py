"""What `npu-gateway service` prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.running.run_file import RunFile, announced
from gateway.commands.service.command import describe
from gateway.commands.service.launch import ServiceState


@pytest.mark.parametrize(
    ("state", "lines"),
    [
        (ServiceState(), ["not installed: `npu-gateway service install` installs it"]),
        (ServiceState(Path(sys.executable), True), [f"installed: {sys.executable}", "running"]),
        (
            ServiceState(Path(sys.executable), failure="exit code 2"),
            [f"installed: {sys.executable}", "not running", "last error: exit code 2. `npu-gateway logs` shows it"],
        ),
        (
            ServiceState(Path("moved", "python"), True),
            [f"broken: {Path('moved', 'python')} does not exist any more. `npu-gateway service install` repairs it"],
        ),
    ],
)
def test_state_is_described(
    state: ServiceState, lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.commands.running.run_file.data_folder", lambda: tmp_path)  # no gateway runs
    assert describe(state) == lines


def test_running_service_is_shown_with_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.commands.running.run_file.data_folder", lambda: tmp_path)
    ours = RunFile(url="http://127.0.0.1:8000", host="127.0.0.1", port=8000, log_file="x.log")
    other = RunFile(url="http://127.0.0.1:8001", host="127.0.0.1", port=8001, python=str(tmp_path / "bin" / "python"))
    with announced(ours), announced(other):
        *_, last = describe(ServiceState(Path(sys.executable), is_running=True))
    assert last == f"  http://127.0.0.1:8000  pid {os.getpid()}  log x.log"


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_nothing_installed_is_no_error_for_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert (cli.main(["service", "remove"]), cli.main(["service", "status"])) == (0, 1)
    assert capsys.readouterr().out.startswith("No service is installed.\nnot installed: ")


def test_macos_gets_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.main(["service", "status"]) == 1
    assert (
        capsys.readouterr().err
        == "npu-gateway: There is no service for macOS. Let launchd start `npu-gateway serve`.\n"
    )

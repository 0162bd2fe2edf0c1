"""The unit: as systemd reads it, and really started. A user's systemd itself does not run in a container."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.commands.service.launch import Launch, ServiceState
from gateway.commands.service.systemd import UNIT, SystemdService, quoted, unit_text, unquoted
from gateway.errors import GatewayError
from tests.support.processes import OWN_GROUP, PATIENCE_S, SCRIPTED, Serving, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """In a folder whose name has everything that systemd could change."""
    folder = tmp_path / 'my 模型 100% $HOME "quoted" it\'s'
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text("[server]\nport = 0\n" + SCRIPTED, encoding="utf-8")
    return Launch(Path(sys.executable), ("-P", "-m", "gateway", "serve", "--config", str(config)), folder)


class Systemctl:
    """Records the commands and answers them."""

    def __init__(self, text: str = "", code: int = 0) -> None:
        self.commands: list[str] = []
        self.text, self.code = text, code

    def __call__(self, command: Sequence[str]) -> tuple[int, str]:
        assert list(command[:2]) == ["systemctl", "--user"]
        self.commands.append(" ".join(command[2:]))
        return self.code, self.text


def value(unit: str, key: str) -> str:
    (found,) = re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("part", ["a b", 'a"b', "100%", "$HOME ${X}", "a\\b\\", "模型", "%%", "\\$"])
def test_argument_is_quoted_for_systemd(part: str) -> None:
    assert unquoted(f"{quoted('first')} {quoted(part)}") == ["first", part]


def test_unit_is_valid(launch: Launch, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "$my ${X} 100% 模型" / "python"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    launch = launch._replace(program=program)
    assert unquoted(value(unit_text(launch), "ExecStart")) == [str(program), *launch.arguments]
    (tmp_path / UNIT).write_text(unit_text(launch), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(tmp_path / UNIT)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
    )
    own = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line]
    assert own == []


def test_command_of_the_unit_serves_and_ends_with_its_signal(launch: Launch, tmp_path: Path) -> None:
    unit = unit_text(launch)
    folder = value(unit, "WorkingDirectory").replace("%%", "%")
    with subprocess.Popen(
        unquoted(value(unit, "ExecStart")),
        cwd=folder,
        env=environment(XDG_DATA_HOME=str(tmp_path / "data"), NPU_GATEWAY_LOG_FILE="auto"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        **OWN_GROUP,
    ) as process:
        assert "paris  ready" in Serving(process).read_greeting()
        process.send_signal(signal.Signals[value(unit, "KillSignal")])
        assert process.wait(timeout=PATIENCE_S) == 0  # `on-failure` does not start it again
    assert "paris is ready" in (tmp_path / "data" / "npu-gateway" / "logs" / "gateway.log").read_text(encoding="utf-8")


def test_second_install_updates_and_remove_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    systemctl = Systemctl("ActiveState=active\nResult=success\nExecMainStatus=0")
    service = SystemdService(tmp_path / "units", systemctl)
    assert service.state() == ServiceState() and not service.remove() and systemctl.commands == []
    service.install(launch._replace(folder=tmp_path))
    service.install(launch)
    assert systemctl.commands == ["daemon-reload", f"enable {UNIT}", f"restart {UNIT}"] * 2
    assert (tmp_path / "units" / UNIT).read_text(encoding="utf-8") == unit_text(launch)
    assert service.state() == ServiceState(launch.program, is_running=True)
    assert service.remove()
    assert systemctl.commands[-2:] == [f"disable --now {UNIT}", "daemon-reload"]
    assert list((tmp_path / "units").iterdir()) == []


def test_failure_is_in_the_state(launch: Launch, tmp_path: Path) -> None:
    systemctl = Systemctl("ActiveState=failed\nResult=exit-code\nExecMainStatus=2")
    service = SystemdService(tmp_path, systemctl)
    service.install(launch)
    assert service.state() == ServiceState(launch.program, is_running=False, failure="exit-code, exit code 2")


def test_missing_systemd_is_reported_and_leaves_no_unit(launch: Launch, tmp_path: Path) -> None:
    systemctl = Systemctl("Failed to connect to bus: No medium found", code=1)
    with pytest.raises(GatewayError, match="systemd does not run for this user here"):
        SystemdService(tmp_path / "units", systemctl).install(launch)
    assert not (tmp_path / "units" / UNIT).exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *(("folder", name) for name in ("a\nb", "a\rExecStart=b", "a\\", "a ", "a\udcff")),
        *(("program", name) for name in ("a\nb", "a'b", 'a"b', "a\\b", "a\tb", "a\udcff")),
        *(("arguments", name) for name in ("a\nb", "a\rExecStart=b", "a\udcff")),
    ],
)
def test_path_that_changes_the_unit_is_refused(launch: Launch, tmp_path: Path, part: str, name: str) -> None:
    changed = (name,) if part == "arguments" else tmp_path / name
    systemctl = Systemctl()
    with pytest.raises(GatewayError, match="cannot have the path"):
        SystemdService(tmp_path, systemctl).install(launch._replace(**{part: changed}))
    assert systemctl.commands == [] and not (tmp_path / UNIT).exists()

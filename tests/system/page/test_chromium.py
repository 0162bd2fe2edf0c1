"""scripts/chromium.py: it installs a browser where it may, and never fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import chromium
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="apt-get is Debian's")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH, but for `timeout`."""
    (tmp_path / "timeout").write_text('#!/bin/sh\nshift 3\nexec "$@"\n', encoding="utf-8")
    (tmp_path / "timeout").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add(programs: Path, name: str, script: str) -> None:
    (programs / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (programs / name).chmod(0o755)


def run_script() -> str:
    script = ROOT / "scripts" / "chromium.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_machine_without_apt_is_one_line(programs: Path) -> None:
    assert run_script() == f"Chromium is not installed (this is no Debian): {chromium.LEFT_OUT}.\n"


def test_browser_that_is_there_is_kept(programs: Path) -> None:
    add(programs, "chromium-browser", "")
    add(programs, "apt-get", "echo it must not run >&2; exit 1")
    assert run_script() == ""


def test_failed_installation_is_its_last_line(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "_os_release", lambda: "NAME=x\nID=debian\n")
    add(programs, "sudo", 'shift\nexec "$@"')
    add(programs, "true", "")
    add(programs, "apt-get", "echo one >&2; echo 'E: Unable to locate package chromium' >&2; exit 100")
    assert chromium.install() == "apt-get: E: Unable to locate package chromium"


def test_installation_updates_the_lists_first(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "_os_release", lambda: "ID=debian")
    add(programs, "sudo", 'shift\nexec "$@"')
    add(programs, "true", "")
    add(programs, "apt-get", f'echo "$@" >> {programs}/calls')
    assert chromium.install() == ""
    update, install = (programs / "calls").read_text(encoding="utf-8").splitlines()
    assert update.endswith(" update") and install.endswith(" install --yes --no-install-recommends chromium")

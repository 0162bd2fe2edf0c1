"""Install Debian's Chromium for the tests of the page, if no browser is there. `.ci/run` calls it.

    python scripts/chromium.py

It asks nothing, ends after five minutes at most, and never fails: without a browser those tests are left out.
"""

import os
import shutil
import subprocess
from pathlib import Path

#: Programs that Playwright can drive.
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
LEFT_OUT = "the tests of the page in a browser are left out"
UPDATE_S, INSTALL_S = 60, 240
_OPTIONS = ("-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=30", "-o", "DPkg::Lock::Timeout=60")


def find() -> str | None:
    """The path of a browser; None: none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def install() -> str:
    """Install the package. Returns why that is not possible; "" if it is done."""
    if "\nID=debian\n" not in f"\n{_os_release()}\n" or shutil.which("apt-get") is None:
        return "this is no Debian"
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    sudo = [] if is_root else ["sudo", "-n"]
    if sudo and (shutil.which("sudo") is None or _run([*sudo, "true"], 10)):
        return "apt-get needs root"
    _run([*sudo, "apt-get", *_OPTIONS, "update"], UPDATE_S)  # without lists, the next step says what is missing
    return _run([*sudo, "apt-get", *_OPTIONS, "install", "--yes", "--no-install-recommends", "chromium"], INSTALL_S)


def _os_release() -> str:
    try:
        return Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""


def _run(command: list[str], limit_s: int) -> str:
    """Run to the end or for `limit_s` seconds. Returns the last line of the error; "" if there was none."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    bounded = ["timeout", "-k", "10", str(limit_s), *command]
    done = subprocess.run(bounded, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    return f"apt-get: {lines[-1][:200]}"


if __name__ == "__main__":
    why = "" if find() else install()
    if find() is None:
        print(f"Chromium is not installed ({why or 'apt-get installed none'}): {LEFT_OUT}.", flush=True)

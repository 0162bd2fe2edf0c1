"""Check that every runtime dependency has a wheel for the target, Windows on ARM. That machine has no compiler.

    python scripts/check_wheels.py [--platform win_arm64] [--python-version 3.12]

pip chooses the files as on the target machine, without a download. The lock file must contain the hash of each file.
Prints one line for each dependency, and fails if one has no wheel.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import environment

MACHINES = {
    "win_arm64": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "ARM64"},
    "win_amd64": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "platform_machine": "AMD64"},
}


def requirements(platform: str, python: str) -> list[str]:
    """The lock's NAME==VERSION entries for that machine."""
    from packaging.markers import Marker

    target = {**MACHINES[platform], "python_version": python, "python_full_version": f"{python}.0"}
    lock = (environment.ROOT / environment.LOCKS["serve"]).read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z][^ ]*==[^ ;]+)(?: ; (.+?))? \\$", lock, re.MULTILINE)
    return [pin for pin, marker in pins if not marker or Marker(marker).evaluate(target)]


def choose(pins: list[str], platform: str, python: str) -> dict[str, str]:
    """The wheel that pip chooses for each pin, with its hash. Raises CalledProcessError if there is none."""
    # An older pip compares a wheel's requires-python with the running Python. The lock was resolved for all versions.
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--no-deps", "--only-binary=:all:", "--platform", platform, "--python-version", python]
        options += ["--target", folder, "--report", str(report), "--quiet", "--disable-pip-version-check"]
        options.append("--ignore-requires-python")
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *pins], check=True)
        found: list[Any] = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        entry["download_info"]["url"].rsplit("/", 1)[-1]: entry["download_info"]["archive_info"]["hashes"]["sha256"]
        for entry in found
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that every runtime dependency has a wheel for a machine.")
    parser.add_argument("--platform", choices=MACHINES, default="win_arm64")
    parser.add_argument("--python-version", default="3.12")
    arguments = parser.parse_args()
    pins = requirements(arguments.platform, arguments.python_version)
    try:
        wheels = choose(pins, arguments.platform, arguments.python_version)
    except subprocess.CalledProcessError:
        return 1
    lock = (environment.ROOT / environment.LOCKS["serve"]).read_text(encoding="utf-8")
    for name, digest in wheels.items():
        print("ok       " if digest in lock else "NOT LOCKED", name)
    print(f"{len(wheels)} of {len(pins)} dependencies have a wheel for {arguments.platform}")
    return 0 if len(wheels) == len(pins) and all(digest in lock for digest in wheels.values()) else 1


if __name__ == "__main__":
    python = environment.ensure("serve")
    if Path(sys.prefix) != python.parent.parent:
        environment.become([str(python), *sys.argv])
    sys.exit(main())

"""Write the four lock files from pyproject.toml: names, versions, hashes, markers.

    python scripts/lock.py [--upgrade]

Each lock file is valid for Linux and Windows, x86 and ARM, and every supported Python. `uv` must be on the PATH. The
lock files contain no package index, because each machine has its own setting for that.
"""

import shlex
import subprocess
import sys

from environment import LOCKS, ROOT

#: Of the image (Dockerfile).
CONTAINER = "requirements-container.lock"
HEADER = "# Written by scripts/lock.py from pyproject.toml; do not edit.\n"
COMPILE = shlex.split(
    "uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header "
    "--no-emit-index-url --no-annotate --quiet"
)


def compile_lock(output: str, *arguments: str) -> None:
    path = ROOT / output
    subprocess.run([*COMPILE, *arguments, "--output-file", output], cwd=ROOT, check=True)
    text = path.read_text(encoding="utf-8")
    path.write_text(HEADER + text.removeprefix(HEADER), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    emulated = ("--extra", "emulation", "--group", "install")
    compile_lock(LOCKS["test"], *emulated, "--group", "test", *sys.argv[1:])
    # Constrained by the test lock, so that all have the same versions.
    compile_lock(LOCKS["emulation"], *emulated, "--constraint", LOCKS["test"], *sys.argv[1:])
    compile_lock(LOCKS["serve"], "--group", "install", "--constraint", LOCKS["test"], *sys.argv[1:])
    compile_lock(CONTAINER, "--extra", "postgres", "--group", "install", "--constraint", LOCKS["test"], *sys.argv[1:])

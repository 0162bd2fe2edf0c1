"""Format, lint and types, as the test suite checks them too.

python scripts/check.py [--fix]
"""

import subprocess
import sys

import environment

CHECKS = ("ruff format --check", "ruff check", "mypy --platform linux", "mypy --platform win32")
FIXES = ("ruff format", "ruff check --fix")

if __name__ == "__main__":
    python = environment.ensure("test")
    commands = (*FIXES, *CHECKS) if "--fix" in sys.argv[1:] else CHECKS
    codes = [subprocess.call([str(python), "-m", *command.split()], cwd=environment.ROOT) for command in commands]
    sys.exit(max(codes))

"""Check format, lint, types and words. Continuous integration runs this before the tests.

    python scripts/check.py [--fix]

Runs the steps at the same time, and names the steps that failed. `--fix` lets ruff correct what it can first.
"""

import subprocess
import sys

import environment

FIXES = ("ruff format", "ruff check --fix")
CHECKS = (
    "ruff format --check",
    "ruff check",
    # One cache for each platform: with a shared one, each run would start again from nothing.
    "mypy --platform linux --cache-dir .mypy_cache/linux",
    "mypy --platform win32 --cache-dir .mypy_cache/win32",
)
WORDS = "scripts/words.py"


def failed(python: str, *steps: str) -> list[str]:
    """Run the steps at the same time; return the ones that ended with an error. The output is in the order of steps."""
    commands = [[python, *([step] if step == WORDS else ["-m", *step.split()])] for step in steps]
    started = [
        subprocess.Popen(command, cwd=environment.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    names = []
    for step, process in zip(steps, started, strict=True):
        output, _ = process.communicate()
        print(f"== {step}", flush=True)
        sys.stdout.buffer.write(output)
        sys.stdout.flush()
        if process.returncode:
            names.append(step)
    return names


if __name__ == "__main__":
    python = str(environment.ensure("test"))
    if "--fix" in sys.argv[1:]:
        for step in FIXES:
            failed(python, step)
    if names := failed(python, *CHECKS, WORDS):
        sys.exit(f"check: failed: {'; '.join(names)}")
    print("check: everything passed")

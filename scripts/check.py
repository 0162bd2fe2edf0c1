"""Check format, lint, types and words. Continuous integration runs this before the tests.

    python scripts/check.py [--fix]

Runs every step, also after a failure, and names the steps that failed. `--fix` lets ruff correct what it can first.
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


def failed(python: str, steps: tuple[str, ...]) -> list[str]:
    """Run each step; return the ones that ended with an error."""
    names = []
    for step in steps:
        print(f"== {step}", flush=True)
        arguments = [step] if step == WORDS else ["-m", *step.split()]
        if subprocess.call([python, *arguments], cwd=environment.ROOT):
            names.append(step)
    return names


if __name__ == "__main__":
    python = str(environment.ensure("test"))
    if "--fix" in sys.argv[1:]:
        failed(python, FIXES)
    if names := failed(python, (*CHECKS, WORDS)):
        sys.exit(f"check: failed: {'; '.join(names)}")
    print("check: everything passed")

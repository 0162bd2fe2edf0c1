"""Run the tests from a fresh clone: make .venv with the test packages, prepare the default model, start pytest.

    python scripts/test.py [--fast] [pytest arguments]

Without pytest arguments, pytest runs in one process for each core, at most four. Each process takes one file at a time.

`--fast` takes under a minute on two cores and needs no model. It runs more than half of the tests: all except those
that need the default model or the emulated NPU, start a process, or are in tests/system/. tests/conftest.py has the
rule. Run the whole suite before you publish a change.
"""

import os
import shlex
import subprocess
import sys

import chromium
import environment

PARALLEL = shlex.split("-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder")

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without its cache of compiled files, pytest starts 4 s later
    fast = [argument for argument in sys.argv[1:] if argument == "--fast"]
    others = [argument for argument in sys.argv[1:] if argument != "--fast"]
    if not fast:
        prepare = [str(python), "-m", "gateway", "models", "--prepare", "--config", "config.toml"]
        if subprocess.call(prepare, stdout=subprocess.DEVNULL):
            sys.exit("The tests need the default model.")
        if chromium.find() is None:
            print(f"Chromium is not installed: {chromium.LEFT_OUT}.", flush=True)
    environment.become([str(python), "-m", "pytest", *fast, *(others or PARALLEL)])

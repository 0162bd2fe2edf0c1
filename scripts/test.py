"""Run the whole test suite from a fresh clone: make .venv with the test tools, prepare the default model, then pytest.

    python scripts/test.py [pytest arguments]

Without arguments pytest runs in a few processes at once, each taking a file at a time; with arguments, as they say.
"""

import os
import shlex
import subprocess
import sys

import environment

# One for each core, but not many: tests start processes of their own, some with a model.
PARALLEL = shlex.split("-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder")

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    prepare = [str(python), "-m", "gateway", "models", "--prepare", "--config", "config.toml"]
    if subprocess.call(prepare, stdout=subprocess.DEVNULL):
        sys.exit("The tests need the default model.")
    environment.become([str(python), "-m", "pytest", *(sys.argv[1:] or PARALLEL)])

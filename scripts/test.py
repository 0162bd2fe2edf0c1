"""Run the whole test suite from a fresh clone: make .venv with the test tools, prepare the default model, then pytest.

python scripts/test.py [pytest arguments]
"""

import os
import subprocess
import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    prepare = [str(python), "-m", "gateway", "models", "--prepare", "--config", "config.toml"]
    if subprocess.call(prepare, stdout=subprocess.DEVNULL):
        sys.exit("The tests need the default model.")
    environment.become([str(python), "-m", "pytest", *sys.argv[1:]])

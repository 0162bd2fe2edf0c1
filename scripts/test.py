"""Run the whole test suite from a fresh clone: make .venv with the test tools, then pytest.

python scripts/test.py [pytest arguments]
"""

import os
import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    environment.become([str(python), "-m", "pytest", *sys.argv[1:]])

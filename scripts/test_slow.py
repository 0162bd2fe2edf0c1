"""Run the slow tests: the full SmolLM2 compiled for the emulated NPU. Takes minutes on two cores and 6 GB of memory.

python scripts/test_slow.py [pytest arguments]
"""

import os
import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    environment.become([str(python), "-m", "pytest", "-m", "slow", *sys.argv[1:]])

"""Install coding agents from their lock files and run each with one prompt and a tool against the gateway.

    python scripts/agents.py [pytest arguments]

It needs Node 20 or newer, the npm registry, 2 GB of disk and some minutes. `-k codex` runs one client.
"""

import os
import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("test")
    os.chdir(environment.ROOT)
    environment.become([str(python), "-m", "pytest", "-m", "slow or not slow", "tests/system/agents", *sys.argv[1:]])

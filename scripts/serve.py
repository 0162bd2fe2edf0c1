"""Start the gateway from a fresh clone: make .venv, install the pinned packages, then run `npu-gateway serve`.

    python scripts/serve.py [--config config.toml] [--host 127.0.0.1] [--port 8000] [--provider auto|cpu|qnn]

A second start skips the set-up.
"""

import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("serve")
    environment.become([str(python), "-m", "gateway", "serve", *sys.argv[1:]])

"""Start the gateway from a fresh clone: make .venv, install what is pinned, then `npu-gateway serve`.

    python scripts/serve.py [--config config.toml] [--host 127.0.0.1] [--port 8000] [--provider auto|cpu|qnn]

The second start does none of the set-up again.
"""

import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("serve")
    environment.become([str(python), "-m", "gateway", "serve", *sys.argv[1:]])

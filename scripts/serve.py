"""Start the gateway from a fresh clone: make .venv, install the pinned packages, then run `npu-gateway serve`.

    python scripts/serve.py [MODEL] [--config config.toml] [--host 127.0.0.1] [--port 8000] [--provider auto|cpu|qnn]

MODEL is what `npu-gateway pull` takes: a name of the catalog, hf:ORG/REPO, a URL, a zip. It is pulled if necessary
and served alone. A second start skips the set-up and the download.
"""

import sys

import environment

if __name__ == "__main__":
    python = environment.ensure("serve")
    environment.become([str(python), "-m", "gateway", "serve", *sys.argv[1:]])

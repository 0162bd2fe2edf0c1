"""Start the gateway from a fresh clone: install the pinned packages, then run `npu-gateway serve`.

    python scripts/serve.py [MODEL] [--config config.toml] [--host 127.0.0.1] [--port 8000] [--provider auto|cpu|qnn]

MODEL is what `npu-gateway pull` takes: a name of the catalog, hf:ORG/REPO, a URL, a zip. It is pulled if necessary
and served alone. A second start skips the set-up and the download. `--help` installs nothing.
"""

# Every Python, also 2.7, can read this file.
import check_python  # noqa: F401  exits if this Python is too old

import serve_command  # isort: skip
import sys

if __name__ == "__main__":
    serve_command.run(sys.argv[1:])

"""The child process that builds a configured model's bundle: `python -m gateway.builder.main`.

The gateway process starts it, so that it never loads the builder and its native libraries itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gateway.builder.fetch import ensure_bundle
from gateway.bundles.stamp import BuildRequest
from gateway.child import report_progress, serve_request


def _build(request: BuildRequest) -> str:
    return str(ensure_bundle(request, Path(request.models_dir), report_progress))


if __name__ == "__main__":
    sys.exit(serve_request(BuildRequest, _build))

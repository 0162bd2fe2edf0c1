"""Work that may crash or take gigabytes, done by one of our modules in a process of its own.

The module is run as `python -m MODULE`, gets a request as JSON on stdin, and says on the last line of stderr why it
refuses. Native libraries print to stdout when they load, so nothing is read from there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import Struct

from gateway.errors import BundleError, GatewayError

_REFUSED = 3  # exit code
_Request = TypeVar("_Request", bound=Struct)


def run_in_child(module: str, request: Struct, what: str) -> None:
    """Run `module` on a request. Raises BundleError with the child's own words, or saying that it crashed on `what`."""
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=msgspec.json.encode(request),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            check=False,
        )
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip()
    if done.returncode == _REFUSED:
        raise BundleError(said.splitlines()[-1])
    if done.returncode:
        raise BundleError(f"The process that worked on {what} crashed (exit code {done.returncode}).")


def serve_request(kind: type[_Request], work: Callable[[_Request], None]) -> int:
    """The child's side: do the work that stdin asks for; returns the exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    try:
        work(request)
    except GatewayError as error:
        print(error.message, file=sys.stderr)
        return _REFUSED
    return 0

"""`npu-gateway stop`: end a running gateway as Ctrl-C in its terminal does, and wait for its end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress

from msgspec import Struct

from gateway.commands import options
from gateway.commands.running.api import call
from gateway.commands.running.find import Found, add_gateway, find_gateway, required_run
from gateway.commands.running.run_file import RunFile, is_alive
from gateway.errors import GatewayError, UpstreamFailed

_POLL_S = 0.1
_SPARE_S = 60.0  # that the end itself takes at most, after the requests


class _Stopping(Struct):
    requests: int
    grace_s: float


def add_parser(subparsers: options.Subparsers) -> None:
    text = """\
Stop a running gateway. Its requests get `shutdown_grace_s` seconds to finish; Ctrl-C ends them at once."""
    parser = subparsers.add_parser("stop", help="stop a running gateway", description=text)
    add_gateway(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    found = find_gateway(arguments)
    run_file = required_run(found)
    line, grace_s = _begin(found, run_file)
    try:
        print(line, flush=True)
        _wait(run_file, grace_s + _SPARE_S)
    except KeyboardInterrupt:
        _end_now(run_file)
        _wait(run_file, _SPARE_S)
    print("stopped")
    return 0


def stopping_line(requests: int, grace_s: float, how: str = "Ctrl-C again stops now") -> str:
    """What a gateway that stops waits for."""
    if not requests or not grace_s:
        return "Stopping"
    count = "1 answer has" if requests == 1 else f"{requests} answers have"
    return f"Stopping: {count} up to {grace_s:g} s; {how}"


def _begin(found: Found, run: RunFile) -> tuple[str, float]:
    """Let the gateway stop. Returns a line for the user, and the seconds that its requests have."""
    try:
        reply = call(found, "POST", "/gateway/stop", _Stopping, limit_s=10.0, headers={"x-stop-token": run.token})
    except UpstreamFailed:
        if not is_alive(run):
            return stopping_line(0, 0.0), 0.0
        if sys.platform == "win32":
            raise GatewayError(f"the gateway does not answer; end it with `taskkill /F /PID {run.pid}`") from None
        os.kill(run.pid, signal.SIGTERM)
        return f"The gateway does not answer, so it gets SIGTERM (pid {run.pid})", 0.0
    return stopping_line(reply.requests, reply.grace_s, "Ctrl-C stops it now"), reply.grace_s


def _end_now(run: RunFile) -> None:
    """A second Ctrl-C of the gateway: its requests end with an error. Windows has only the end of the process."""
    import psutil

    with suppress(psutil.NoSuchProcess, ProcessLookupError):  # it can end at this moment
        if is_alive(run):
            if sys.platform == "win32":
                psutil.Process(run.pid).kill()
            else:
                os.kill(run.pid, signal.SIGINT)


def _wait(run: RunFile, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while is_alive(run):
        if time.monotonic() > until:
            raise GatewayError(f"the gateway (pid {run.pid}) has not ended after {limit_s:g} s")
        time.sleep(_POLL_S)

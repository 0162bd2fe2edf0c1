"""`npu-gateway reload`: let a running gateway apply its changed configuration, and print what it did."""

from __future__ import annotations

import argparse

from gateway.commands import options
from gateway.commands.running.api import call
from gateway.commands.running.find import add_gateway, find_gateway, required_run
from gateway.errors import ConfigError, GatewayError
from gateway.monitoring.output import escape

_TEXT = """\
Apply the changed configuration of a running gateway without a restart. Models are added, removed and changed one by
one, and requests in progress finish. With a mistake in the configuration nothing changes, and the exit code is 1."""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("reload", help="apply a changed configuration", description=_TEXT)
    add_gateway(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.lanes.reload.plan import Reloaded

    try:
        found = find_gateway(arguments)
    except ConfigError as error:
        if arguments.url:
            raise
        raise GatewayError(error.message) from None  # the file of --config has the mistake: as the gateway would reply
    token = required_run(found).token
    reloaded = call(found, "POST", "/gateway/reload", Reloaded, limit_s=None, headers={"x-stop-token": token})
    print("\n".join(map(escape, reloaded.lines)))
    return 0

"""`npu-gateway launch CLIENT`: configures a client for the running gateway and starts it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gateway.commands import options
from gateway.errors import ConfigError, NotFound


def add_parser(subparsers: options.Subparsers) -> None:
    from gateway.commands.launch.clients import CLIENTS

    parser = subparsers.add_parser(
        "launch",
        help="start a coding agent, an editor or a chat program with the gateway",
        description="Configure a client for the running gateway and start it. Its old files stay as NAME.DATE.bak. "
        "Arguments after `--` are for the client.",
    )
    parser.add_argument("client", metavar="CLIENT", choices=sorted(CLIENTS), help=", ".join(sorted(CLIENTS)))
    options.add_config(parser)
    parser.add_argument("--url", help="the gateway (default: the one that runs)")
    parser.add_argument("--api-key", help="key for the client (default: the first one in the gateway's configuration)")
    parser.add_argument("--model", help="model or alias (default: the first model of the gateway)")
    parser.add_argument("--print", action="store_true", dest="only_print", help="show the settings and change nothing")
    parser.add_argument("--no-start", action="store_true", help="write the settings, do not start the client")
    parser.add_argument("--show-key", action="store_true", help="print the API key in full")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from gateway.commands.launch.client import Folders
    from gateway.commands.launch.clients import CLIENTS
    from gateway.commands.launch.files import write
    from gateway.commands.launch.show import shown, without
    from gateway.commands.launch.target import find_target, warnings
    from gateway.commands.running.find import find_gateway
    from gateway.config.file import environment_with

    client = CLIENTS[arguments.client]
    config = options.load(arguments, may_be_empty=True)
    target = find_target(config, find_gateway(arguments, config), arguments.model)
    environ = environment_with()
    folders = Folders(home=Path.home(), environ=environ, platform=sys.platform)
    setup = client.setup(target, folders)
    for line in warnings(client, target, config):
        print(f"npu-gateway: {line}", file=sys.stderr)
    secret = "" if arguments.show_key else target.key
    if arguments.only_print:
        print(shown(setup, folders.home, secret), end="")
        return 0
    program = "" if arguments.no_start else _program(setup.command[0], client.title, client.install)
    try:
        for line in (line for file in setup.files for line in write(file)):
            print(line)
    except ConfigError as error:
        raise ConfigError(without(secret, error.message)) from None
    if arguments.no_start:
        return 0
    return _start([program, *setup.command[1:], *arguments.rest], {**environ, **setup.environment})


def _program(name: str, title: str, install: str) -> str:
    """The path of a program. Raises NotFound with the command that installs it.

    Windows looks in the current folder first, where any file can lie. The client gets the API key.
    """
    if (found := shutil.which(name)) is None:
        hint = "With --no-start the settings are written without it."
        raise NotFound(f"{title} is not installed (no program {name!r}). Install it with `{install}`. {hint}")
    if Path(found).parent == Path():
        raise NotFound(f"{found} lies in the current folder and would be started for {title}. Use another folder.")
    return found


def _start(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Become the client. On Windows: start it, wait for it and leave Ctrl-C to it."""
    sys.stdout.flush()
    if sys.platform != "win32":
        os.execve(command[0], list(command), dict(environ))
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(list(command), env=dict(environ)).returncode
    finally:
        signal.signal(signal.SIGINT, previous)

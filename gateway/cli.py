"""`npu-gateway COMMAND`: the command line.

Exit codes: 0 success, 1 failure, 2 a mistake in the configuration or on the command line, 130 interrupted. Every
expected error is one line on stderr. Commands import their libraries when they run, so `--help` is fast.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from gateway import __version__
from gateway.commands import config_file, keys, serve, usage
from gateway.commands.bench import command as bench
from gateway.commands.chat import command as chat
from gateway.commands.completion import command as completion
from gateway.commands.doctor import command as doctor
from gateway.commands.launch import command as launch
from gateway.commands.models import build, catalog, check, pull, stored, table
from gateway.commands.parser import GroupedParser
from gateway.commands.running import load, logs, ps, reload, stop
from gateway.commands.service import command as service
from gateway.commands.verify import command as verify
from gateway.errors import ConfigError, GatewayError
from gateway.monitoring.output import escape


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Windows pipe can lack characters that a model writes
    argv = sys.argv[1:] if argv is None else argv
    if list(argv[:2]) == ["completion", "--words"]:
        return completion.print_candidates(make_parser(), argv[2:])
    own, rest = _divided(_spelt(argv))
    arguments = make_parser().parse_args(own, argparse.Namespace(rest=rest))
    try:
        code: int = arguments.run(arguments)
    except ConfigError as error:
        return _fail(error.message, 2)
    except GatewayError as error:
        return _fail(error.message, 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 130)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        sys.stdout = None
        return 1
    return code


def _fail(message: str, code: int) -> int:
    print(f"npu-gateway: {escape(message)}", file=sys.stderr)
    return code


def _spelt(argv: Sequence[str]) -> list[str]:
    """The command line with `help`, `help COMMAND` and `version` as options."""
    match list(argv):
        case ["help", *command]:
            return [*command, "--help"]
        case ["version"]:
            return ["--version"]
        case other:
            return other


def _divided(argv: list[str]) -> tuple[list[str], list[str]]:
    """For `launch`: what follows `--` is for the client."""
    at = argv.index("--") if argv[:1] == ["launch"] and "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


#: The commands in the order of `npu-gateway help`.
_GROUPS = {
    "get a model": (
        catalog,
        pull,
        stored,
        build,
    ),
    "serve": (
        serve,
        ps,
        stop,
        reload,
        logs,
        load,
        table,
        config_file,
        service,
        usage,
        keys,
    ),
    "use": (
        chat,
        launch,
    ),
    "find problems and measure": (
        doctor,
        check,
        verify,
        bench,
    ),
    "the command line itself": (completion,),
}


def make_parser() -> GroupedParser:
    parser = GroupedParser(
        _GROUPS,
        prog="npu-gateway",
        description="An OpenAI-compatible API on localhost for the NPU of a Snapdragon X laptop.",
        epilog="The options of a command: `npu-gateway help COMMAND`.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"npu-gateway {__version__}")
    return parser

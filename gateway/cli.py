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
from gateway.commands import bench, build, catalog, chat, check, doctor, models, pull, serve, stored
from gateway.errors import ConfigError, GatewayError
from gateway.output import escape


def main(argv: Sequence[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a Windows pipe can lack characters that a model writes
    arguments = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="npu-gateway", description="An OpenAI-compatible API on localhost for the NPU of a Snapdragon X laptop."
    )
    parser.add_argument("--version", action="version", version=f"npu-gateway {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, pull, stored, catalog, chat, bench, doctor, check, models, build):
        command.add_parser(subparsers)
    return parser

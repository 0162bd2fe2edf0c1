"""`npu-gateway logs`: the last lines of a gateway's log, and those that come."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from gateway.commands import options
from gateway.commands.running.api import call
from gateway.commands.running.find import Found, add_gateway, add_key, find_gateway
from gateway.commands.running.run_file import RunFile, is_alive
from gateway.errors import GatewayError, NotFound, UpstreamFailed
from gateway.monitoring.output import escape

_POLL_S = 0.5
_LAST_TIME = 32_503_680_000  # the year 3000; Windows knows little more
_ENDED = "npu-gateway: the gateway has ended"


class _Line(Struct):
    n: int
    time: Annotated[float, Meta(ge=0, lt=_LAST_TIME)]
    level: str
    text: str


class _Lines(Struct):
    lines: list[_Line]


def add_parser(subparsers: options.Subparsers) -> None:
    text = "Print the last lines of the log of a running gateway, or of the last one that ran."
    parser = subparsers.add_parser("logs", help="print the log of a gateway", description=text)
    parser.add_argument("-n", "--lines", type=int, default=20, help="the number of lines (default: 20)")
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more lines")
    add_gateway(parser)
    add_key(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.lines < 0:
        raise GatewayError("-n must be 0 or more")
    found = find_gateway(arguments)
    file = _log_file(found, arguments)
    lines = _of_file(file, arguments, found.run) if file else _of_ring(found, arguments)
    try:
        for line in lines:
            print(escape(line), flush=arguments.follow)
    except KeyboardInterrupt:
        return 0
    return 0


def _log_file(found: Found, arguments: argparse.Namespace) -> Path | None:
    """The file; None: the gateway has its last lines in memory."""
    from gateway.bundles.disk import data_folder

    if found.run:
        return Path(found.run.log_file) if found.run.log_file else None
    if arguments.url:
        return None
    file = data_folder() / "logs" / "gateway.log"
    if not file.is_file():
        raise NotFound("No gateway runs, and none has written a log file; start one with `npu-gateway serve`.")
    print(f"npu-gateway: no gateway runs; these are lines of {file}", file=sys.stderr)
    return file


def _of_file(file: Path, arguments: argparse.Namespace, run: RunFile | None) -> Iterator[str]:
    """The last lines of the file, and with `follow` those that are written, until the gateway ends."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise GatewayError(f"{file} cannot be read: {error.strerror or error}") from None
    end = data.rfind(b"\n") + 1 if arguments.follow else len(data)
    lines = data[:end].decode("utf-8", "replace").splitlines()
    yield from lines[max(0, len(lines) - arguments.lines) :]
    while arguments.follow and run is not None:
        alive = is_alive(run)  # before the read, so that its last lines are read
        lines, end = _since(file, end)
        yield from lines
        if not alive:
            print(_ENDED, file=sys.stderr)
            return
        time.sleep(_POLL_S)


def _since(file: Path, end: int) -> tuple[list[str], int]:
    """The whole lines after the byte `end`, and where they end. A file that is shorter than that has started again."""
    try:
        if file.stat().st_size < end:
            end = 0
        with file.open("rb") as log:
            log.seek(end)
            data = log.read()
    except OSError:  # it is renamed now
        return [], end
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode("utf-8", "replace").splitlines(), end + len(whole)


def _of_ring(found: Found, arguments: argparse.Namespace) -> Iterator[str]:
    """The same from the memory of a gateway that writes no file."""
    lines = call(found, "GET", "/gateway/log", _Lines).lines
    yield from map(_text, lines[max(0, len(lines) - arguments.lines) :])
    while arguments.follow:
        time.sleep(_POLL_S)
        last = lines[-1].n if lines else 0
        try:
            more = call(found, "GET", f"/gateway/log?after={last}", _Lines).lines
        except UpstreamFailed:
            print(_ENDED, file=sys.stderr)
            return
        yield from map(_text, more)
        lines = more or lines


def _text(line: _Line) -> str:
    at = datetime.fromtimestamp(line.time).astimezone().isoformat(timespec="seconds")
    return f"{at} {line.level} {line.text}"

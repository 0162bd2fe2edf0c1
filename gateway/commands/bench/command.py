"""`npu-gateway bench`: measure one model through a gateway that this command starts, or through one that runs.

start to ready      from the start of the process until the model is ready
first run           a new question: its time to first token has the whole prompt
second run          the same question again: the prefix cache has the prompt
prompt, new         time to first token of a long prompt that no cache has
limit               what the circuit breaker allows this answer
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.commands.running.find import add_options
from gateway.errors import ConfigError, GatewayError
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.commands.bench.measure import Plan
    from gateway.commands.bench.report import Report
    from gateway.commands.bench.requests import Target
    from gateway.config.tables import Config

_TEXT = """\
Measure one model: answers of 8 to 128 tokens, long prompts with and without the prefix cache, constrained decoding and
memory, and whether the circuit breaker would open. The command starts a gateway for it and stops it, or measures the
one that runs (--running). Ctrl-C prints what is measured so far."""
_STDOUT = "-"


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("bench", help="measure speed and memory", description=_TEXT)
    add_options(parser)
    parser.add_argument("--running", action="store_true", help="measure the gateway that runs; --url implies it")
    parser.add_argument("--api-key", help="key to send (default: the first one in the configuration)")
    options.add_model(parser, "model or alias (default: default_model, else the first one)")
    options.add_provider(parser)
    parser.add_argument(
        "--runs", type=options.positive, default=2, help="how many times each request is sent (default: 2)"
    )
    parser.add_argument("--max-tokens", type=options.positive, default=128, help="longest answer (default: 128)")
    parser.add_argument("--prompt-tokens", type=options.positive, default=1024, help="longest prompt (default: 1024)")
    parser.add_argument("--seconds", type=options.positive, default=300, help="limit for the requests (default: 300)")
    parser.add_argument("--json", nargs="?", const=_STDOUT, metavar="FILE", help="write JSON to FILE, or print it")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the tables")
    parser.add_argument("--calibrate", action="store_true", help="propose a [breaker] table for config.toml")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="compare two files of --json, measure nothing",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        from gateway.commands.bench.compare import compare

        compare(*arguments.compare)
        return 0
    _check_files(arguments)
    from gateway.commands.bench.measure import Measurement

    config = options.load(arguments, may_be_empty=bool(arguments.url or arguments.running))
    with _measured(arguments, config) as (target, report):
        measurement = Measurement(target, report, _plan(arguments), _progress)
        try:
            measurement.run()
        except KeyboardInterrupt:
            report.stopped = "interrupted"
        except GatewayError as error:
            if not any(answers.runs for answers in report.answers):
                raise
            report.stopped = error.message
        finally:
            _progress("")
    _write(arguments, report, config)
    return 0 if not report.stopped else 130 if report.stopped == "interrupted" else 1


def _check_files(arguments: argparse.Namespace) -> None:
    """Before minutes of measurement. Raises ConfigError for a file that cannot be written at its end."""
    if arguments.plot and arguments.plot.suffix.lower() != ".svg":
        raise ConfigError(f"--plot: {str(arguments.plot)[:100]!r} does not end in .svg; only SVG is written")
    for option, name in (("--plot", arguments.plot), ("--json", arguments.json)):
        if name and name != _STDOUT and (Path(name).is_dir() or not Path(name).absolute().parent.is_dir()):
            raise ConfigError(f"{option}: {str(name)[:100]!r} is a folder, or in a folder that does not exist")


@contextmanager
def _measured(arguments: argparse.Namespace, config: Config) -> Iterator[tuple[Target, Report]]:
    """The model that is measured, and its report with all that is known before the first request."""
    with _running(arguments, config) if arguments.url or arguments.running else _own(arguments, config) as found:
        yield found


@contextmanager
def _running(arguments: argparse.Namespace, config: Config) -> Iterator[tuple[Target, Report]]:
    from openai import APIError

    from gateway.commands.bench.memory import MemoryWatch
    from gateway.commands.bench.requests import Target
    from gateway.commands.chat.command import chosen
    from gateway.commands.client import gateway_error, models_of, openai_client
    from gateway.commands.running.find import find_gateway

    found = find_gateway(arguments, config)
    with openai_client(found.api_url, found.key, retries=0) as client:
        try:
            model = chosen(models_of(client), arguments.model, config.default_model)
        except APIError as error:
            raise gateway_error(error) from None
        target = Target(client, found.url, model)
        report = _new_report(target, found.run.version if found.run else "")
        report.gateway = found.url
        report.budget, report.passes = target.limits()
        watch = MemoryWatch(found.run.pid) if found.run else nullcontext()
        with watch as memory:
            yield target, report
        report.memory = memory.memory if memory else None


@contextmanager
def _own(arguments: argparse.Namespace, config: Config) -> Iterator[tuple[Target, Report]]:
    from gateway import __version__
    from gateway.commands.bench.memory import MemoryWatch
    from gateway.commands.bench.own_gateway import own_gateway
    from gateway.commands.models.prepare import prepare
    from gateway.commands.running.run_file import running_gateways
    from gateway.lanes.breaker import Budget

    for other in running_gateways():
        print(
            f"npu-gateway: a gateway runs at {other.url} and may slow this measurement; --running measures that one",
            file=sys.stderr,
        )
    prepare(config)  # a build is not part of the measurement
    model = arguments.model or config.default_model or next(iter(config.models))
    with own_gateway(arguments, config, model) as gateway, MemoryWatch(gateway.process.pid) as watch:
        _progress("loading the model")
        try:
            ready_s = gateway.wait_until_ready()
        finally:
            _progress("")
        report = _new_report(gateway.target, __version__)
        report.start_to_ready_s = ready_s
        breaker = _breaker_of(config, gateway.target.card().get("root") or model)
        _, report.passes = gateway.target.limits()
        report.budget = Budget.of(breaker, report.passes) if breaker.enabled else None
        yield gateway.target, report
        report.memory = watch.memory


def _new_report(target: Target, version: str) -> Report:
    from gateway.commands.bench.machine import machine_facts
    from gateway.commands.bench.report import Report

    card = target.card()
    return Report(
        model=target.model,
        taken_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        machine=machine_facts(),
        device=card.get("device") or "",
        runtime=card.get("runtime") or "",
        context_length=card.get("context_length") or 0,
        published_tokens_per_s=card.get("published_tokens_per_s"),
        gateway_version=version,
    )


def _breaker_of(config: Config, model: str) -> Any:
    from gateway.config.tables import BreakerConfig

    table = config.models.get(model)
    own = table.breaker if table else None
    return own or config.breaker if table else BreakerConfig()


def _plan(arguments: argparse.Namespace) -> Plan:
    from gateway.commands.bench.measure import LENGTHS, SIZES, Plan

    sizes = [size for size in SIZES if size < arguments.max_tokens]
    lengths = [length for length in LENGTHS if length < arguments.prompt_tokens]
    return Plan(
        sizes=[*sizes, arguments.max_tokens],
        lengths=[*lengths, arguments.prompt_tokens],
        runs=arguments.runs,
        limit_s=arguments.seconds,
    )


def _write(arguments: argparse.Namespace, report: Report, config: Config) -> None:
    from gateway.commands.bench.plot import plot
    from gateway.commands.bench.report import encode
    from gateway.commands.bench.show import say, show
    from gateway.commands.bench.verdict import proposal

    if arguments.json == _STDOUT:
        print(encode(report), end="")
    else:
        show(report, _breaker_of(config, report.model))
        if arguments.calibrate:
            table, text = proposal(report)
            print("", table, "", sep="\n")
            say(text)
    if arguments.json and arguments.json != _STDOUT:
        _save(Path(arguments.json), encode(report))
    if arguments.plot:
        _save(arguments.plot, plot(report))
    if report.stopped:
        print(f"npu-gateway: not complete: {escape(report.stopped)}", file=sys.stderr)


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GatewayError(f"{path}: cannot be written: {error.strerror}") from None


def _progress(text: str) -> None:
    """One line on stderr that the next one replaces; nothing if that is no terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        import shutil

        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)

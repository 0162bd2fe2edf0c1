"""`npu-gateway usage`: requests and tokens of the last days, from the database that the gateways of this user write."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.errors import ConfigError, quote

if TYPE_CHECKING:
    from gateway.monitoring.usage.report import Usage, UsageRow

_NAMES = {"day": "", "model": "(unknown model)", "key": "(no key)"}


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "Show requests, tokens and latency of the last days. No gateway needs to run. One that runs writes its numbers "
        "every 30 seconds."
    )
    parser = subparsers.add_parser("usage", help="requests and tokens of the last days", description=text)
    options.add_config(parser)
    parser.add_argument("--days", type=int, default=7, help="the last days, with today (default: 7)")
    parser.add_argument(
        "--by", metavar="day,model,key", default="day", help="one row for each, or for each of several together"
    )
    parser.add_argument("--model", metavar="NAME", help="only requests of this model")
    parser.add_argument("--key", metavar="NAME", help="only requests of the API key with this name")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON, as GET /gateway/usage does")
    parser.add_argument("--csv", action="store_true", help="print the rows as CSV with a heading")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from gateway.monitoring.usage.report import MAX_DAYS, Selection, first_hour, report_of
    from gateway.monitoring.usage.store import UsageStore

    if not 1 <= arguments.days <= MAX_DAYS:
        raise ConfigError(f"--days must be from 1 to {MAX_DAYS}, not {arguments.days}")
    now, by = time.time(), _dimensions(arguments.by)
    with options.state_of(options.load(arguments, may_be_empty=True)) as database:
        rows = UsageStore(database, arguments.days).rows(first_hour(arguments.days, now))
    report = report_of(rows, arguments.days, now, Selection(by, arguments.model, arguments.key))
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif arguments.csv:
        _print_csv(report.rows, by)
    elif not report.rows:
        where = f"{database.label}. A running gateway writes them every 30 s."
        print(f"There are no requests since {report.since} in {where}", file=sys.stderr)
    else:
        _print(report.rows, by)
        if sys.stdout.isatty():
            _print_total(report.total, report.since)
    return 0


def _dimensions(text: str) -> tuple[str, ...]:
    from gateway.monitoring.usage.report import DIMENSIONS, dimensions_of

    try:
        return dimensions_of(text)
    except ValueError as error:
        raise ConfigError(f"--by must be of {', '.join(DIMENSIONS)}, with commas, not {quote(str(error))}") from None


def _print_csv(rows: list[UsageRow], by: tuple[str, ...]) -> None:
    """Without the endings, whose names are not the same in each row."""
    import csv

    from gateway.monitoring.usage.report import DIMENSIONS, UsageRow

    numbers = [name for name in UsageRow.__struct_fields__ if name not in ("name", "endings", *DIMENSIONS)]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*by, *numbers])
    writer.writerows([getattr(row, name) for name in (*by, *numbers)] for row in rows)


def _print(rows: list[UsageRow], by: tuple[str, ...]) -> None:
    from gateway.commands.tables import Column, write_table

    def number(title: str) -> Column:
        return Column(title, right=True, shown="{:,}".format)

    def time_ms(title: str) -> Column:
        return Column(title, right=True, shown="{:,.0f}".format)

    columns = [
        *map(Column, by),
        number("requests"),
        number("refused"),
        number("failed"),
        number("prompt"),
        number("cached"),
        number("new"),
        time_ms("TTFT"),
        time_ms("p95"),
        time_ms("token"),
        time_ms("p95"),
    ]
    write_table([_fields(row, by) for row in rows], columns)


def _fields(row: UsageRow, by: tuple[str, ...]) -> tuple[object, ...]:
    return (
        *(getattr(row, name) or _NAMES[name] for name in by),
        row.requests,
        row.refused,
        row.failed,
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        row.ttft_p50_ms,
        row.ttft_p95_ms,
        row.per_token_p50_ms,
        row.per_token_p95_ms,
    )


def _print_total(total: Usage, since: str) -> None:
    from gateway.commands.tables import wrapped
    from gateway.monitoring.output import escape

    lines = [
        "",
        "prompt, cached, new: tokens. TTFT: ms to the first token, token: ms for each more; of half of the answers, "
        "and p95: of 95 %.",
        f"{total.requests:,} requests since {since}, {total.completion_tokens:,} new tokens",
    ]
    errors = {name: number for name, number in total.endings.items() if name not in ("stop", "length", "tool_calls")}
    if errors:
        worst = sorted(errors.items(), key=lambda item: -item[1])
        lines.append("not answered: " + ", ".join(f"{number:,} {escape(name)}" for name, number in worst))
    width = shutil.get_terminal_size().columns
    for line in lines:
        print("\n".join(wrapped(line, width) or [""]))

"""`npu-gateway usage`: requests and tokens of the last days, from the file that the gateways of this user write."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from gateway.monitoring.usage.report import Usage

_NAMES = {"day": "no requests", "model": "(unknown model)", "key": "(no key)"}


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "Show requests, tokens and latency of the last days. No gateway needs to run. One that runs writes its numbers "
        "every 30 seconds."
    )
    parser = subparsers.add_parser("usage", help="requests and tokens of the last days", description=text)
    options.add_config(parser)
    parser.add_argument("--days", type=int, default=7, help="the last days, with today (default: 7)")
    parser.add_argument("--by", choices=tuple(_NAMES), default="day", help="one row for each (default: day)")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON, as GET /gateway/usage does")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import msgspec

    from gateway.monitoring.usage.report import MAX_DAYS, first_hour, report_of
    from gateway.monitoring.usage.store import UsageStore

    if not 1 <= arguments.days <= MAX_DAYS:
        raise ConfigError(f"--days must be from 1 to {MAX_DAYS}, not {arguments.days}")
    now = time.time()
    with options.state_of(options.load(arguments, may_be_empty=True)) as database:
        rows = UsageStore(database, arguments.days).rows(first_hour(arguments.days, now))
    report = report_of(rows, arguments.days, now)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif not rows:
        where = f"{database.label}. A running gateway writes them every 30 s."
        print(f"There are no requests since {report.since} in {where}", file=sys.stderr)
    else:
        _print({"day": report.by_day, "model": report.by_model, "key": report.by_key}[arguments.by], arguments.by)
        if sys.stdout.isatty():
            _print_total(report.total, report.since)
    return 0


def _print(rows: list[Usage], by: str) -> None:
    from gateway.commands.tables import Column, write_table

    def number(title: str) -> Column:
        return Column(title, right=True, shown="{:,}".format)

    def time_ms(title: str) -> Column:
        return Column(title, right=True, shown="{:,.0f}".format)

    columns = [
        Column(by),
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


def _fields(row: Usage, by: str) -> tuple[object, ...]:
    return (
        row.name or _NAMES[by],
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

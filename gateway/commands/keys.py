"""`npu-gateway keys add|list|revoke`: API keys in the database that gateways share."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from gateway.commands import options
from gateway.errors import ConfigError, NotFound, quote
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from gateway.config.tables import Config

_LONGEST_NAME = 100
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


def add_parser(subparsers: options.Subparsers) -> None:
    text = (
        "Make, list and revoke API keys in the database of [state]. All gateways that use it accept them, with "
        "`[state] keys = true` in their configuration."
    )
    parser = subparsers.add_parser("keys", help="make, list and revoke API keys", description=text)
    commands = parser.add_subparsers(metavar="add|list|revoke", required=True)

    text = "Make a key and print it. It is shown only now: the database has a hash of it."
    add = commands.add_parser("add", help="make a key and print it", description=text)
    add.add_argument("name", metavar="NAME", help="who uses it: the name is in the log, the metrics and the usage")
    for limit in _LIMITS:
        add.add_argument(f"--{limit.replace('_', '-')}", type=options.positive, metavar="N", help="default: [limits]")
    add.add_argument("--models", metavar="NAME,...", help="the models that it may use (default: [limits])")
    add.set_defaults(run=run_add)

    listing = commands.add_parser(
        "list", help="list the keys", description="List the keys, without the keys themselves."
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)

    text = "Refuse a key from now on: every gateway that can read the database does it within seconds."
    revoke = commands.add_parser("revoke", help="refuse a key from now on", description=text)
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(run=run_revoke)
    for command in (add, listing, revoke):
        options.add_config(command)


def run_add(arguments: argparse.Namespace) -> int:
    from gateway.state.keys import add_key

    config = options.load(arguments, may_be_empty=True)
    name = _checked_name(arguments.name, config)
    with options.state_of(config) as database:
        key = add_key(database, name, _limits(arguments, config))
    if key is None:
        raise ConfigError(f"There is a key with the name {quote(name)} already. Revoke it first, or use another name.")
    print(key)
    if not config.state.keys:
        print("No gateway accepts it yet: write `keys = true` into [state] of the configuration.", file=sys.stderr)
    elif sys.stdout.isatty():
        print("It is shown only now.", file=sys.stderr)
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    import msgspec

    from gateway.commands.tables import Column, write_table
    from gateway.state.keys import list_keys

    with options.state_of(options.load(arguments, may_be_empty=True)) as database:
        keys = list_keys(database)
    if arguments.json:
        shown = [{name: value for name, value in msgspec.to_builtins(key).items() if name != "hash"} for key in keys]
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    elif keys:
        rows = [
            (key.name, _day(key.created), "revoked" if key.revoked else "", _limits_text(key.limits)) for key in keys
        ]
        write_table(rows, [Column("name"), Column("made"), Column("state"), Column("limits")])
    else:
        print("There are no keys. `npu-gateway keys add NAME` makes one.", file=sys.stderr)
    return 0


def run_revoke(arguments: argparse.Namespace) -> int:
    from gateway.state.keys import revoke_key

    with options.state_of(options.load(arguments, may_be_empty=True)) as database:
        is_revoked = revoke_key(database, arguments.name)
    if not is_revoked:
        raise NotFound(f"No key in use has the name {quote(arguments.name)}. `npu-gateway keys list` shows all.")
    print(f"{arguments.name} is revoked. Gateways that run refuse it within seconds.")
    return 0


def _checked_name(name: str, config: Config) -> str:
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ConfigError(f"NAME must be printable, not empty, and have at most {_LONGEST_NAME} characters")
    if name in config.server.api_keys:
        raise ConfigError(f"[server] has a key with the name {quote(name)} already. Use another name.")
    return name


def _limits(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    limits = {name: value for name in _LIMITS if (value := getattr(arguments, name)) is not None}
    if arguments.models is not None:
        limits["models"] = [model.strip() for model in arguments.models.split(",") if model.strip()]
        for model in limits["models"]:
            if model not in ("*", *config.models):
                print(f"note: the configuration here has no model {escape(quote(model))}", file=sys.stderr)
    return limits


def _limits_text(limits: dict[str, Any]) -> str:
    texts = [f"{name.replace('_', ' ')} {limits[name]}" for name in _LIMITS if name in limits]
    if "models" in limits:
        texts.append(f"models {', '.join(limits['models']) or 'none'}")
    return "; ".join(texts)


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))

"""`npu-gateway verify [MODEL]`: what works with this model on the running gateway."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from gateway.commands import options
from gateway.commands.client import gateway_error, models_of, openai_client
from gateway.commands.running.find import find_gateway
from gateway.errors import GatewayError, NotFound, quote
from gateway.monitoring.output import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai import OpenAI

    from gateway.commands.verify.check import Check
    from gateway.commands.verify.outcome import Result
    from gateway.commands.verify.peer import Peer

_TEXT = """\
Try what coding agents and other clients need with a model on the running gateway: tool calls, JSON, stop strings,
usage, reasoning, long prompts, cancelled streams, and recorded requests of real clients. It takes minutes. Of a model
for embeddings: vectors, base64, dimensions and rankings. Exit code 0 if the gateway did its part everywhere; wrong
answers of the model do not count."""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("verify", help="try what works with a model", description=_TEXT)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model or alias (default: the first of the gateway)")
    options.add_config(parser)
    parser.add_argument("--url", help="the gateway (default: the one that runs)")
    parser.add_argument("--api-key", help="key to send (default: the first one in the gateway's configuration)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from openai import APIError

    from gateway.commands.verify.check import results
    from gateway.commands.verify.report import as_dict, is_kept, lines

    gateway = find_gateway(arguments, options.load(arguments, may_be_empty=True))
    url = gateway.api_url
    found: list[Result] = []
    stopped: GatewayError | None = None
    with openai_client(url, gateway.key, retries=0) as client:
        try:
            peer = _peer(client, arguments.model)
            if peer.makes_text:
                peer.find_spare()
            found.extend(_shown(results(all_checks(peer), peer)))
        except APIError as error:
            stopped = gateway_error(error)
    if stopped and not found:
        raise stopped
    reason = stopped.message if stopped else ""
    if arguments.json:
        print(json.dumps(as_dict(peer.model, url, found, reason), indent=2))
    else:
        print(f"{escape(peer.model)} at {url}", *map(escape, lines(found, reason)), sep="\n")
    return 0 if is_kept(found) and not stopped else 1


def all_checks(peer: Peer) -> Iterator[Check]:
    """Those of what the model can do."""
    from gateway.commands.verify import accounts, answers, sessions, structured, tools, vectors

    if not peer.makes_text:
        yield from vectors.checks(peer.capabilities or ())
        return
    for part in (tools, structured, answers, accounts, sessions):
        yield from part.checks()


def _peer(client: OpenAI, name: str | None) -> Peer:
    """The model of that name, or the first. Raises NotFound."""
    from gateway.commands.verify.peer import Peer

    models = models_of(client)
    card = next((model for model in models if name in (None, model["id"])), None)
    if card is None:
        names = ", ".join(model["id"] for model in models[:10])
        raise NotFound(f"The gateway has no model {quote(name or '')}. It has: {names or 'none'}.")
    abilities = card.get("capabilities")
    context = card.get("context_length") or 0
    return Peer(client, card["id"], context=context, capabilities=None if abilities is None else tuple(abilities))


def _shown(results: Iterator[Result]) -> Iterator[Result]:
    """The results, with a line for each on a terminal while they come."""
    for result in results:
        if sys.stderr.isatty():
            print(f"{result.outcome:<8} {result.group}: {escape(result.name)}", file=sys.stderr, flush=True)
        yield result

"""`npu-gateway load NAME` and `unload NAME`: put a model into memory, and free the memory of one."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from urllib.parse import quote

from gateway.commands import options
from gateway.commands.running.api import ModelStatus, Readiness, call
from gateway.commands.running.find import Found, add_gateway, add_key, find_gateway
from gateway.monitoring.output import escape

_LOAD = "Load a model of a running gateway, and wait until it is ready."
_UNLOAD = """\
Unload a model of a running gateway when its requests have ended. All of its memory is free then. The next request for
it loads it again."""


def add_parser(subparsers: options.Subparsers) -> None:
    for verb, text, short in (("load", _LOAD, "put a model into memory"), ("unload", _UNLOAD, "free a model's memory")):
        parser = subparsers.add_parser(verb, help=short, description=text)
        parser.add_argument("model", metavar="NAME", help="model or alias")
        add_gateway(parser)
        add_key(parser)
        parser.set_defaults(run=partial(run, verb))


def _say_who_is_first(found: Found, name: str, verb: str) -> None:
    """An unload waits for requests, which may take minutes."""
    models = call(found, "GET", "/readyz", Readiness, accepts=(503,)).models if verb == "unload" else []
    if count := sum(model.running + model.waiting for model in models if model.model == name):
        print(f"waiting for the end of {count} request{'s' if count > 1 else ''}", file=sys.stderr, flush=True)


def _memory(status: ModelStatus) -> str:
    from gateway.bundles.disk import megabytes

    memory = status.memory
    if not memory.need or memory.budget is None:
        return ""
    return f"; it needs {megabytes(memory.need)} of {megabytes(memory.budget)} for all models"


def run(verb: str, arguments: argparse.Namespace) -> int:
    found = find_gateway(arguments)
    _say_who_is_first(found, arguments.model, verb)
    path = f"/v1/models/{quote(arguments.model, safe='')}/{verb}"
    status = call(found, "POST", path, ModelStatus, limit_s=None)
    engine = status.engine
    if verb == "load":
        print(escape(f"{status.model} is ready on {engine.device}, loaded in {engine.load_s:.1f} s{_memory(status)}"))
    else:
        print(escape(f"{status.model} is {engine.state}; the next request for it loads it"))
    return 0

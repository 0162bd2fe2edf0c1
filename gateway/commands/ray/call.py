"""One HTTP request on its way through a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.engines.upstream.prefixes import BLOCK_CHARACTERS, MOST_BLOCKS

_PLAIN = ("type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server")


@dataclass(frozen=True)
class Call:
    """What a replica needs to answer. It is pickled.

    Args:
        scope: of ASGI, without what belongs to one process.
    """

    scope: Mapping[str, Any]
    body: bytes

    @property
    def prompt(self) -> str:
        """The text by which a request router compares requests: the start of the body, as far as one reads it. Those of
        a conversation begin alike.

        Ray's own `PrefixCacheAffinityRouter` reads a property of this name.
        """
        return self.body[: MOST_BLOCKS * BLOCK_CHARACTERS].decode("latin-1")


def portable(scope: Mapping[str, Any]) -> dict[str, Any]:
    """The scope for another process. Its path begins after the `route_prefix` of the application."""
    prefix = str(scope.get("root_path", ""))
    path = str(scope["path"])
    raw_path = bytes(scope.get("raw_path") or path.encode())
    return {
        **{name: scope[name] for name in _PLAIN if name in scope},
        "path": path.removeprefix(prefix) or "/",
        "raw_path": raw_path.removeprefix(prefix.encode()) or b"/",
        "root_path": "",
    }

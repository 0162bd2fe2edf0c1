"""Which client a request is from, so that clients share queue, device and memory fairly.

With API keys a client is a key. Without keys it is what a program shows of itself: its host, the key that it sends
although none is needed, its `User-Agent` and its web origin. This is not a security boundary: a program can change what
it shows, and two programs that show the same are one client.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import cast

from litestar.types import Scope

_SHOWN = (b"authorization", b"x-api-key", b"user-agent", b"origin")
_SALT = secrets.token_bytes(16)  # a hash of a key is of no use outside this process
_HASH_BYTES = 8


def client_of(scope: Scope) -> str:
    """16 hexadecimal digits that are the same for all requests of one client. Call it after the guards."""
    state = scope["state"]
    if "client" not in state:
        state["client"] = _identify(scope)
    return cast(str, state["client"])


def _identify(scope: Scope) -> str:
    if owner := scope["state"].get("owner"):
        return _hash("key", owner)
    host, _port = scope["client"] or ("", 0)
    headers = dict(scope["headers"])
    return _hash("shown", host, *(headers.get(name, b"").decode("latin-1") for name in _SHOWN))


def _hash(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=_HASH_BYTES, key=_SALT).hexdigest()

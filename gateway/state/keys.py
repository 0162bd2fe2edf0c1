"""API keys in the database: made, listed and revoked by `npu-gateway keys`, read by every gateway.

Only a hash of a key is stored. A key has 256 random bits, so nothing can be learned from a hash without a salt.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from gateway.state.database import Database, Execute

_PREFIX = "npu-"  # programs that search for leaked keys find it

# SQLite takes any value in any column, and other programs can write to the file.
_KEYS = """
SELECT CAST(name AS TEXT), CAST(hash AS TEXT), CAST(coalesce(limits, '') AS TEXT),
    CAST(coalesce(created, 0) AS BIGINT) AS made, CAST(revoked AS BIGINT)
FROM npu_keys WHERE name IS NOT NULL AND hash IS NOT NULL ORDER BY made, name
"""

_json = msgspec.json.Encoder()


class KeyInfo(Struct, frozen=True, kw_only=True):
    """One key of the database. Times in seconds since 1970.

    Args:
        limits: by the names of [limits.keys.NAME].
        revoked: None: it counts.
    """

    name: str
    hash: str
    limits: dict[str, Any]
    created: int
    revoked: int | None


def hash_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def add_key(database: Database, name: str, limits: Mapping[str, Any]) -> str | None:
    """The new key, which is stored nowhere. None: the name is in use. Raises StateError."""
    key = _PREFIX + secrets.token_urlsafe(32)

    def write(execute: Execute) -> bool:
        execute("DELETE FROM npu_keys WHERE name = ? AND revoked IS NOT NULL", (name,))
        sql = """
        INSERT INTO npu_keys (name, hash, limits, created) VALUES (?, ?, ?, ?)
        ON CONFLICT (name) DO NOTHING RETURNING name
        """
        return bool(execute(sql, (name, hash_of(key.encode()), _json.encode(limits).decode(), int(time.time()))))

    return key if database.write(write) else None


def revoke_key(database: Database, name: str) -> bool:
    """False: no key with this name counts. Raises StateError."""

    def write(execute: Execute) -> bool:
        if not execute("SELECT name FROM npu_keys WHERE name = ? AND revoked IS NULL", (name,)):
            return False
        execute("UPDATE npu_keys SET revoked = ? WHERE name = ?", (int(time.time()), name))
        return True

    return database.write(write)


def list_keys(database: Database) -> list[KeyInfo]:
    """In the order in which they were made, with those that are revoked. Raises StateError."""
    rows = database.read(_KEYS)
    return [
        KeyInfo(name=name, hash=hash, limits=_limits(limits), created=created, revoked=revoked)
        for name, hash, limits, created, revoked in rows
    ]


def _limits(text: str) -> dict[str, Any]:
    """Of a text that is damaged, a limit that no version has: its key may use nothing, and the others count."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        return {"damaged": True}

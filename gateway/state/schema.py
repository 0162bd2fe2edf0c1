"""The tables, the same in SQLite and PostgreSQL. Names begin with `npu_`: a database can have other tables too."""

from __future__ import annotations

#: Of the tables. A gateway leaves a database with a higher version alone.
VERSION = 1

TABLES = (
    """
    CREATE TABLE npu_usage (
        hour BIGINT NOT NULL, model TEXT NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, number BIGINT NOT NULL,
        PRIMARY KEY (hour, model, key, name)
    )
    """,
    # The order in which days were last written: the oldest goes first, whatever a clock that was set wrongly says.
    "CREATE TABLE npu_days (day BIGINT PRIMARY KEY, written BIGINT)",
    "CREATE TABLE npu_keys (name TEXT PRIMARY KEY, hash TEXT UNIQUE, limits TEXT, created BIGINT, revoked BIGINT)",
    # What keys have used of their limits, and the requests in progress of each gateway.
    """
    CREATE TABLE npu_limits (
        key TEXT PRIMARY KEY, requests DOUBLE PRECISION, tokens DOUBLE PRECISION, at DOUBLE PRECISION
    )
    """,
    """
    CREATE TABLE npu_running (
        key TEXT, gateway TEXT, running BIGINT, at DOUBLE PRECISION, PRIMARY KEY (key, gateway)
    )
    """,
    # Ids and names of clients are digests here: a client chooses them, of any length and with any character.
    "CREATE TABLE npu_responses (id TEXT PRIMARY KEY, owner TEXT, stored BIGINT, size BIGINT, body BYTEA)",
    "CREATE INDEX npu_responses_by_owner ON npu_responses (owner, stored)",
    "CREATE INDEX npu_responses_by_age ON npu_responses (stored)",
    "CREATE TABLE npu_items (item TEXT, response TEXT, PRIMARY KEY (item, response))",
    "CREATE INDEX npu_items_by_response ON npu_items (response)",
)
#: Takes over the usage history of an older version, which had its own file; `old` is that file.
FROM_USAGE_FILE = (
    """
    INSERT INTO npu_usage
    SELECT CAST(hour AS BIGINT), CAST(model AS TEXT), CAST(key AS TEXT), CAST(name AS TEXT), CAST(number AS BIGINT)
    FROM old.usage
    """,
    "INSERT INTO npu_days SELECT day, written FROM old.days",
)

"""The table [limits]."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from gateway.config.tables.scalars import Count

Allowance = Count | Literal["unlimited"]


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits of one API key, by its name: `[limits.keys.laptop]`. A key of the table that is not set has the value
    of `[limits]`.
    """

    requests_per_minute: Allowance | None = None  # as in [limits]
    tokens_per_minute: Allowance | None = None  # as in [limits]
    concurrent_requests: Allowance | None = None  # as in [limits]
    models: tuple[str, ...] | None = None  # as in [limits]


class LimitsConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What each API key may use: the same limits for every key, and each key is counted alone. Without API keys, all
    requests together have these limits. [operate.md](operate.md#limits-for-each-api-key) says how they are counted.
    """

    requests_per_minute: Allowance = "unlimited"  # more requests get 429 with `Retry-After`
    #: Tokens of prompts and answers. A request first takes its prompt and its `max_tokens`; at its end it gets back
    #: what it did not use.
    tokens_per_minute: Allowance = "unlimited"
    concurrent_requests: Allowance = "unlimited"  # requests in progress at the same time
    #: The models that a key may use, with all their names. The others do not exist for it. `"*"`: every model. An empty
    #: list: none.
    models: tuple[str, ...] = ("*",)
    keys: dict[str, KeyLimits] = field(default_factory=dict)  # other limits for one API key: a table for each name

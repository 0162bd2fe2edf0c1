"""Finds the running gateway and its model, as `chat` does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gateway.commands.client import listed_models
from gateway.commands.launch.client import Client, Target
from gateway.config.value import nearest
from gateway.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from gateway.commands.running.find import Found
    from gateway.config.tables import Config

_LEAST_ANSWER = 512  # tokens that must fit behind a client's own prompt


def find_target(config: Config, gateway: Found, model: str | None) -> Target:
    """Ask the gateway for its models. Raises ConfigError, UpstreamFailed and Unavailable."""
    models = {str(each["id"]): each for each in listed_models(f"{gateway.url}/v1", gateway.key)}
    name = model or (config.default_model if config.default_model in models else next(iter(models), ""))
    if name not in models:
        raise ConfigError(f"the gateway has no model {name[:100]!r}{nearest(name, models) or '.'}")
    return Target(url=gateway.url, key=gateway.key, model=name, context=_context(name, models[name]))


def _context(name: str, model: dict[str, Any]) -> int:
    if (state := model.get("state", "ready")) not in ("ready", "unloaded"):  # a request loads it
        hint = model.get("detail") or "wait until `npu-gateway serve` reports it"
        raise Unavailable(f"{name} is not ready ({state}): {hint}")
    context = model.get("context_length")
    if not isinstance(context, int) or context < 1:
        raise ConfigError(f"the context length of {name} is not known; set context_length in its table of config.toml")
    return context


def warnings(client: Client, target: Target, config: Config) -> Iterator[str]:
    """What will not work with this model, one sentence each."""
    needed = client.prompt_tokens + _LEAST_ANSWER
    if needed > target.context:
        yield (
            f"{client.title} sends about {client.prompt_tokens} tokens before your text, and {target.model} has a "
            f"context of {target.context}. Use a model with more, or see docs/clients/{client.name}.md."
        )
    if not client.sends_limit and (limit := _limit(config, target.model)):
        yield (
            f"{client.title} sends no token limit, so answers end after {limit} tokens. "
            f'Set max_tokens = "context" in the table of {target.model} in config.toml.'
        )


def _limit(config: Config, name: str) -> int:
    """The number of tokens that [defaults] or the model's table gives; 0: none, or the model is not configured here."""
    names = [each for each, model in config.models.items() if name in (each, *model.aliases)]
    limit = config.defaults_for(names[0], alias=name).max_tokens if names else "context"
    return limit if isinstance(limit, int) else 0

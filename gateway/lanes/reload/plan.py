"""Compares the configuration that runs with a new one: which models come, go, or are loaded again, and what stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.config.check import TABLES, fields_of
from gateway.config.effects import effect, keys_at_once
from gateway.config.tables import Config, ModelConfig
from gateway.config.value import Table, quoted


class Reloaded(Struct, frozen=True, kw_only=True):
    """What a reload has done. Keys are written as "server.timeout_s" and "models.NAME.aliases"."""

    added: list[str] = field(default_factory=list)  # names of models
    removed: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)  # models that are loaded again, and the keys why
    applied: list[str] = field(default_factory=list)  # keys that count from now on
    restart: list[str] = field(default_factory=list)  # keys that count after a restart

    @property
    def lines(self) -> list[str]:
        """For a person."""
        found = {
            "added": self.added,
            "removed": self.removed,
            "loaded again": [f"{name} ({', '.join(keys)})" for name, keys in self.changed.items()],
            "applied": self.applied,
            "needs a restart": self.restart,
        }
        return [f"{what}: {', '.join(names)}" for what, names in found.items() if names] or ["nothing has changed"]


class Plan(Struct, frozen=True, kw_only=True):
    """What a reload will do.

    Args:
        config: what runs after it: the new one, but the old values of keys that need a restart.
        lanes: the models that need a new lane.
    """

    config: Config
    lanes: dict[str, ModelConfig]
    report: Reloaded


def make_plan(running: Config, fresh: Config) -> Plan:
    """From the configuration that runs to a new one, both as a file has them."""
    keys = [*_differences(running, fresh)]
    restart = [(table, key) for table, key in keys if effect(table, key) == "restart"]
    applied = [(table, key) for table, key in keys if effect(table, key) == "at once"]
    added = {name: model for name, model in fresh.models.items() if name not in running.models}
    changed: dict[str, list[str]] = {}
    for name, model in fresh.models.items():
        found = [] if name in added else _model_differences(running.models[name], model)
        if any(effect(("models", name), key) == "new engine" for key in found):
            changed[name] = found
        else:
            applied.extend((("models", name), key) for key in found)
    report = Reloaded(
        added=[*added],
        removed=[name for name in running.models if name not in fresh.models],
        changed=changed,
        applied=[_dotted(table, key) for table, key in applied],
        restart=[_dotted(table, key) for table, key in restart],
    )
    return Plan(
        config=_with_old(fresh, running, restart),
        lanes={name: model for name, model in fresh.models.items() if name in added or name in changed},
        report=report,
    )


def with_keys_at_once(model: ModelConfig, source: ModelConfig) -> ModelConfig:
    """`model` with the keys of `source` that need no other engine. Both have the same `engine`."""
    return replace(model, **{key: getattr(source, key) for key in keys_at_once(type(model))})


def renamed(removed: Mapping[str, ModelConfig], model: ModelConfig) -> str | None:
    """The name of the removed model that has the bundle of a new one."""
    path = getattr(model, "path", "")
    return next((name for name, old in removed.items() if path and getattr(old, "path", "") == path), None)


def _differences(before: Config, after: Config) -> Iterator[tuple[Table, str]]:
    yield from (((), key) for key in fields_of(Config) if getattr(before, key) != getattr(after, key))
    for name, struct in TABLES.items():
        old, new = getattr(before, name), getattr(after, name)
        yield from (((name,), key) for key in fields_of(struct) if getattr(old, key) != getattr(new, key))


def _model_differences(before: ModelConfig, after: ModelConfig) -> list[str]:
    if type(before) is not type(after):
        return ["engine"]
    return [key for key in after.__struct_fields__ if getattr(before, key) != getattr(after, key)]


def _with_old(fresh: Config, running: Config, keys: list[tuple[Table, str]]) -> Config:
    for (table,), key in keys:
        kept = replace(getattr(fresh, table), **{key: getattr(getattr(running, table), key)})
        fresh = replace(fresh, **{table: kept})
    return fresh


def _dotted(table: Table, key: str) -> str:
    return ".".join((*map(quoted, table), key))

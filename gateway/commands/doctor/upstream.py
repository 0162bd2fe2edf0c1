"""The servers of upstream models: do they answer, take the key and have the model? One request to each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from gateway.commands.doctor.finding import Finding
from gateway.config.tables import Config, UpstreamModel
from gateway.errors import cut


def upstream(config: Config) -> Iterator[Finding]:
    from gateway.commands.greeting import silent_servers

    models = {name: model for name, model in config.models.items() if isinstance(model, UpstreamModel)}
    if models:
        yield from upstream_findings(models, asyncio.run(silent_servers(config)))


def upstream_findings(models: Mapping[str, UpstreamModel], silent: Mapping[str, str]) -> Iterator[Finding]:
    """Args:
    silent: the models whose server does not answer, or not for them -> the reason and the next step.
    """
    for name, model in models.items():
        if problem := silent.get(name):
            because, _, step = problem.partition(". ")
            step = step[:1].lower() + step[1:] or "look whether that server is busy"
            yield Finding("bad", f"model {name}", problem, "upstream", f"{name}: {because}", step)
        else:
            yield Finding("ok", f"model {name}", f"{cut(model.url, 100)} answers")

"""The servers of upstream models: do they answer, take the key and have the model? One request to each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from gateway.commands.doctor.finding import Finding
from gateway.config.tables import Config, UpstreamModel, UpstreamTarget
from gateway.config.upstream import missing_key, servers_of
from gateway.errors import cut


def upstream(config: Config) -> Iterator[Finding]:
    from gateway.commands.greeting import server_problems

    models = {name: model for name, model in config.models.items() if isinstance(model, UpstreamModel)}
    if models:
        yield from upstream_findings(models, asyncio.run(server_problems(config)))


def upstream_findings(models: Mapping[str, UpstreamModel], problems: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Args:
    problems: of each model, what is wrong with each of its servers, with the next step; "": it answers.
    """
    for name, model in models.items():
        found = list(zip(servers_of(name, model), problems[name], strict=True))
        for number, (server, problem) in enumerate(found, 1):
            what = f"model {name}" if len(found) == 1 else f"model {name}, server {number}"
            yield _finding(name, what, server, problem, is_silent=all(problems[name]))


def _finding(name: str, what: str, server: UpstreamTarget, problem: str, *, is_silent: bool) -> Finding:
    """A server that is down is bad if the model has no other one. A key that is not here may be in the gateway."""
    if not problem:
        return Finding("ok", what, f"{cut(server.url, 100)} answers")
    if not is_silent or missing_key(server):
        return Finding("note", what, problem)
    because, _, step = problem.partition(". ")
    step = step[:1].lower() + step[1:] or "look whether that server is busy"
    return Finding("bad", what, problem, "upstream", f"{name}: {because}", step)

"""Real coding agents against the gateway: none gets an API error.

With a scripted model each makes a tool call, sends its result back and shows the last answer. With the default model,
whose context is short, their own options make their prompts shorter. `python scripts/agents.py` runs all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.config.file import load_config
from gateway.config.tables import ScriptedModel
from tests.support.paths import ROOT
from tests.support.server import config_of, script_of, serving
from tests.system.agents.agents import AGENTS, NOTES, Exchange, errors, install, recorded, run

SLOW = pytest.mark.slow
GROUPS = [pytest.param(name, marks=[SLOW] if agent.group == "large" else []) for name, agent in AGENTS.items()]
LAST = "The file says that the kettle is blue."


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a group's packages, installed at its first use."""
    return cache(lambda group: install(group, tmp_path_factory.mktemp(group)))


def prompts(exchanges: list[Exchange]) -> list[Exchange]:
    return [each for each in exchanges if each.method == "POST" and not each.path.endswith("count_tokens")]


@pytest.mark.parametrize("name", GROUPS)
def test_agent_calls_a_tool_and_shows_the_answer(name: str, packages: Callable[[str], Path], tmp_path: Path) -> None:
    folder = packages(AGENTS[name].group)
    tool, arguments = AGENTS[name].tool(tmp_path / "home" / "project" / "notes.txt")
    call = f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"
    script = script_of(replies=[call, LAST], context_length=65536, prompt_tokens=20)
    config = config_of({"scripted": ScriptedModel(script=script, dialect="hermes", max_tokens=512)})
    with serving(config) as server, recorded(server) as exchanges:
        output = run(name, folder, server, "scripted", tmp_path / "home")
    assert errors(exchanges) == []
    assert LAST in output
    first, second = prompts(exchanges)[-2:]
    assert tool in json.dumps(first.body["tools"]) and NOTES not in json.dumps(first.body)
    assert NOTES in json.dumps(second.body)


#: Copilot CLI refuses to start with a context of 8192 tokens.
FITTING = [name for name in AGENTS if name != "copilot"]
REAL = [pytest.param(name, marks=[] if name == "continue" else [SLOW]) for name in FITTING]


@pytest.mark.parametrize("name", REAL)
def test_agent_gets_no_error_from_the_default_model(
    name: str, packages: Callable[[str], Path], smollm2: Path, tmp_path: Path
) -> None:
    folder = packages(AGENTS[name].group)
    own = load_config(ROOT / "config.toml", {}).models["smollm2-135m"]
    model = replace(own, path=str(smollm2), max_tokens=32)
    with serving(config_of({"smollm2-135m": model})) as server, recorded(server) as exchanges:
        run(name, folder, server, "smollm2-135m", tmp_path / "home", is_short=True)
    assert errors(exchanges) == []
    assert any(each.body.get("tools") for each in prompts(exchanges))

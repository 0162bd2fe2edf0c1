"""Conversations that a template of a family refuses: each is answered, and the prompt has every part of it.

A real gateway and real workers with a tiny model, one for each kind of template.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.hashes import HASHES_FILE
from tests.support.server import Running, config_of, serving
from tests.support.template_parts import ALTERNATE, AS_JSON, AS_TEXT, ONE_CALL, ONLY_TWO_ROLES, TOOLS, TURN, loop
from tests.system.faults.client import local_engine

TEMPLATES: dict[str, Any] = {
    "single": loop(ONE_CALL + TURN + AS_JSON, TOOLS),
    "strict": loop(ALTERNATE + ONLY_TWO_ROLES + TURN),
    "named": [
        {"name": "rag", "template": "{{ raise_exception('not for chats') }}"},
        {"name": "tool_use", "template": loop(TURN + AS_TEXT, "<tool_call>" + TOOLS)},
        {"name": "default", "template": loop(TURN)},
    ],
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def call(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": json.dumps({"id": id})}}


TWO_CALLS = [
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": None, "tool_calls": [call("c1"), call("c2")]},
    {"role": "tool", "tool_call_id": "c2", "content": "R2"},
    {"role": "tool", "tool_call_id": "c1", "content": "R1"},
]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, engines = tmp_path_factory.mktemp("models"), {}
    for name, template in TEMPLATES.items():
        bundle = Path(shutil.copytree(tiny, folder / name))
        (bundle / HASHES_FILE).unlink()
        config = bundle / "tokenizer_config.json"
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(content | {"chat_template": template}), encoding="utf-8")
        engines[name] = local_engine(name, bundle)
    with serving(config_of({name: engine._model for name, engine in engines.items()}), engines) as running:
        yield running


def prompt_of(server: Running, model: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    """The prompt of a chat that was answered."""
    with server.http() as http:
        body = {"model": model, "messages": messages, **fields}
        answered = http.post("/v1/chat/completions", json={**body, "max_tokens": 1})
        assert answered.status_code == 200, answered.text
        rendered: str = http.post("/apply-template", json=body).json()["prompt"]
    return rendered


def test_two_calls_are_two_turns_where_a_turn_has_one(server: Running) -> None:
    assert prompt_of(server, "single", TWO_CALLS) == (
        '[user]U[assistant]<f:{"id": "c1"}>[tool]R1[assistant]<f:{"id": "c2"}>[tool]R2[assistant]'
    )


def test_tools_go_to_the_first_user_turn_where_there_is_no_system_role(server: Running) -> None:
    prompt = prompt_of(server, "strict", [{"role": "user", "content": "U"}], tools=[TOOL])
    assert prompt.startswith("[user]You may call these functions") and prompt.endswith("\n\nU[assistant]")
    assert '"name": "f"' in prompt


def test_turns_of_one_role_are_one_where_roles_must_alternate(server: Running) -> None:
    messages = [
        {"role": "assistant", "content": "A"},
        {"role": "developer", "content": "S"},
        *TWO_CALLS,
        {"role": "user", "content": "V"},
    ]
    prompt = prompt_of(server, "strict", messages)
    assert prompt.startswith("[user][assistant]A[user]S\n\nU[assistant]<tool_call>\n")
    assert prompt.endswith(
        "[user]<tool_response>\nR2\n</tool_response>\n<tool_response>\nR1\n</tool_response>\n\nV[assistant]"
    )


def test_template_for_tools_gets_arguments_as_text(server: Running) -> None:
    prompt = prompt_of(server, "named", TWO_CALLS, tools=[TOOL])
    assert prompt.startswith('<tool_call>{"type": "function", "function": {"name": "f"')
    assert prompt.endswith('[user]U[assistant]<f:{"id": "c1"}><f:{"id": "c2"}>[tool]R2[tool]R1[assistant]')
    assert prompt_of(server, "named", [{"role": "user", "content": "U"}]) == "[user]U[assistant]"

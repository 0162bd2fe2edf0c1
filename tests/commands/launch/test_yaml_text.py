"""YAML text: keys and entries of a list are changed, comments stay."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gateway.commands.launch import yaml_text
from gateway.commands.launch.files import combined

MODEL = {"name": "mine", "model": "m", "roles": ["chat", "edit"], "options": {"limit": 2}}
CONTINUE = """# my models
name: Local
models:
  # the big one
  - name: big
    model: b   # 70B
    roles: [chat]
  - name: mine
    model: old
  # end of the list
rules:
  - be brief
"""


@pytest.mark.parametrize(
    "text",
    [
        CONTINUE,
        CONTINUE.replace("mine", "other"),
        "name: Local\nmodels:\n- name: a\n  model: b\n",
        "name: Local\nmodels: []\nrules: [x]\n",
        "name: Local\nmodels:\nrules: [x]\n",
        "name: Local\nmodels:\n",
        "name: Local",
        "# only a comment\n",
    ],
)
def test_entry_is_replaced_or_added(text: str) -> None:
    content = {"models": [MODEL]}
    new = yaml_text.merge(text, content, "name")
    old = yaml.safe_load(text) or {}
    assert yaml.safe_load(new) == combined({**old, "models": old.get("models") or []}, content, "name")
    for comment in ("# my models", "# the big one", "# 70B", "# end of the list", "# only a comment"):
        assert (comment in new) == (comment in text)


def test_list_at_the_top() -> None:
    text = "# llm\n- model_id: a\n  model_name: b\n"
    new = yaml_text.merge(text, [{"model_id": "c", "model_name": "d"}], "model_id")
    assert yaml.safe_load(new) == [*yaml.safe_load(text), {"model_id": "c", "model_name": "d"}]
    assert new.startswith(text.rstrip("\n"))


@pytest.mark.parametrize("value", [1, "x: y", ["a"], {"b": 1}])
def test_scalar_is_replaced(value: Any) -> None:
    new = yaml_text.merge("a: 1 # one\nkey: old # why\nlast: 2\n", {"key": value}, "")
    assert yaml.safe_load(new) == {"a": 1, "key": value, "last": 2} and "# one" in new

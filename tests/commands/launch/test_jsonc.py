"""JSON with comments: what is changed, and that every other byte stays."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands.launch import jsonc
from gateway.commands.launch.files import combined

ZED = """// the settings of Zed
{
  "theme": "One Dark", // dark
  /* fonts, and a "string" */
  "url": "http://x//y",
  "language_models": {
    "openai_compatible": {
      "other": { "api_url": "http://o", "available_models": [] },
    },
  },
}
"""


def test_comments_and_trailing_commas_are_read() -> None:
    assert jsonc.parse(ZED)["url"] == "http://x//y"


def test_nested_key_is_added_and_the_rest_stays() -> None:
    content = {"language_models": {"openai_compatible": {"mine": {"api_url": "http://m"}}}}
    new = jsonc.merge(ZED, content, "name")
    assert jsonc.parse(new) == combined(jsonc.parse(ZED), content, "name")
    at = new.index('\n      "mine"')
    assert new[:at] + new[new.index("}", at) + 1 :] == ZED


def test_value_is_replaced_in_place() -> None:
    text = '{\r\n\t"a": 1, // one\r\n\t"b": [1, 2]\r\n}\r\n'
    assert jsonc.merge(text, {"a": 2}, "") == text.replace("1, //", "2, //")
    assert jsonc.merge(text, {"a": 1}, "") == text


@pytest.mark.parametrize("text", ["{}", "{ }", "{\n  // nothing yet\n}\n", '{"a": {}}', "[]"])
def test_empty_object_gets_its_first_key(text: str) -> None:
    content = {"a": {"b": 1}}
    assert jsonc.parse(jsonc.merge(text, content, "")) == content
    if "//" in text:
        assert "// nothing yet" in jsonc.merge(text, content, "")


def test_entry_of_a_list_is_replaced_by_its_name_or_added() -> None:
    text = '{"models": [\n  {"id": "a", "x": 1}, // first\n  {"id": "b"}\n]}'
    new = jsonc.merge(text, {"models": [{"id": "a", "x": 2}, {"id": "c"}]}, "id")
    assert jsonc.parse(new) == {"models": [{"id": "a", "x": 2}, {"id": "b"}, {"id": "c"}]}
    assert "// first" in new


VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), st.text(alphabet='a"\\/*,]} \n', max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@given(old=OBJECTS, new=OBJECTS, indent=st.sampled_from([None, 2, 4]))
def test_merge_gives_the_combined_value(old: dict[str, Any], new: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(old, indent=indent)
    assert jsonc.parse(jsonc.merge(text, new, "")) == combined(old, new, "")

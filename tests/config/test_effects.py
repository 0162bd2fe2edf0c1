"""What a reload does with each key."""

from __future__ import annotations

import pytest

from gateway.config.effects import effect, keys_at_once, unclassified
from gateway.config.tables import MODEL_KINDS


def test_every_key_is_in_one_list() -> None:
    assert unclassified() == [], "add these keys to a list of gateway/config/effects.py"


@pytest.mark.parametrize(
    ("table", "key", "expected"),
    [
        ((), "default_model", "at once"),
        (("server",), "port", "restart"),
        (("server",), "api_keys", "at once"),
        (("defaults",), "temperature", "at once"),
        (("models", "m"), "temperature", "at once"),
        (("models", "m"), "aliases", "at once"),
        (("models", "m"), "engine", "new engine"),
        (("models", "m"), "context_length", "new engine"),
        (("log",), "level", "at once"),
        (("log",), "file", "restart"),
    ],
)
def test_effect(table: tuple[str, ...], key: str, expected: str) -> None:
    assert effect(table, key) == expected


def test_unknown_key_names_the_file_to_change() -> None:
    with pytest.raises(KeyError, match=r"add models\.m\.ports to a list of gateway/config/effects\.py"):
        effect(("models", "m"), "ports")


@pytest.mark.parametrize("kind", MODEL_KINDS.values())
def test_keys_at_once_are_keys_of_the_table(kind: type) -> None:
    keys = keys_at_once(kind)
    assert {"aliases", "fallback", "breaker"} <= set(keys) <= set(kind.__struct_fields__)  # type: ignore[attr-defined]

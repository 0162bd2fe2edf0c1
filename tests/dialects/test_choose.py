"""Which dialect a model gets."""

from __future__ import annotations

import pytest

from gateway.dialects.choose import choose_dialect
from gateway.errors import ConfigError
from gateway.generation import Chat, Message, TextDelta

CHAT = Chat(messages=(Message(role="user", content="Hi"),))


def test_a_template_without_markup_is_plain() -> None:
    dialect = choose_dialect("", "{{ messages }}")
    assert (dialect.name, dialect.markers) == ("plain", frozenset())


def test_the_plain_dialect_leaves_everything_as_it_is() -> None:
    dialect = choose_dialect("plain", "")
    assert dialect.prepare(CHAT, "") is CHAT
    assert dialect.grammar(CHAT) is None
    parser = dialect.parser(CHAT, "", 2)
    assert [*parser.push("<think>a</think>"), *parser.push(""), *parser.finish()] == [TextDelta("<think>a</think>", 2)]


def test_an_unknown_name_is_a_config_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"klingon.*plain"):
        choose_dialect("klingon", "")

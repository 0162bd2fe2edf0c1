"""The commands of a conversation."""

from __future__ import annotations

import pytest

from gateway.commands.chat.conversation import Conversation
from gateway.commands.chat.slash import COMMANDS, execute
from tests.support.paths import ROOT

MODELS = ["big", "small"]


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(None, "big", max_tokens=5)  # type: ignore[arg-type]  # it sends nothing


def executed(line: str, conversation: Conversation) -> str:
    return "\n".join(execute(line, conversation, MODELS) or ["end"])


def test_help_lists_every_command(conversation: Conversation) -> None:
    text = executed("/help", conversation)
    assert all(name in text for name in ("/model [NAME]", "/new", "/system [TEXT]", "/exit", "Ctrl-C"))
    assert executed("/?", conversation) == text


def test_page_of_commands_has_every_command() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`{name}`" not in page and f"`{name} " not in page] == []


@pytest.mark.parametrize("line", ["/exit", "/quit", "/bye "])
def test_exit_ends(line: str, conversation: Conversation) -> None:
    assert execute(line, conversation, MODELS) is None


def test_unknown_command_gets_the_nearest_one(conversation: Conversation) -> None:
    assert executed("/exot x", conversation) == (
        "There is no command '/exot'; did you mean '/exit'? /help lists the commands."
    )


def test_model_lists_and_changes(conversation: Conversation) -> None:
    assert executed("/model", conversation) == "* big\n  small"
    assert "did you mean 'small'?" in executed("/model smal", conversation) and conversation.model == "big"
    executed("/model small", conversation)
    assert conversation.model == "small"


def test_system_sets_and_removes_and_new_clears(conversation: Conversation) -> None:
    executed("/system Be brief.", conversation)
    conversation.turns.append({"role": "user", "content": "a"})
    executed("/new", conversation)
    assert (conversation.system, conversation.turns) == ("Be brief.", [])
    executed("/system", conversation)
    assert conversation.system == ""

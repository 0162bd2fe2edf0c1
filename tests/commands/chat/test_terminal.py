"""The loop of a conversation, with lines from a list."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from gateway.commands.chat.conversation import Conversation
from gateway.commands.chat.terminal import Terminal
from tests.support.server import config_of, scripted, serving


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    models = {
        "controls": scripted("It is \x1b[2J Paris."),
        "breaks": scripted(faults=[{"error": "EngineFailed", "message": "It fell."}]),
    }
    with serving(config_of(models)) as running, running.openai() as opened:
        yield opened


def talk(client: OpenAI, model: str, *lines: str | type[BaseException]) -> tuple[int, Conversation]:
    typed = iter(lines)

    def read_line(prompt: str) -> str:
        line = next(typed, EOFError)
        if isinstance(line, str):
            return line
        raise line

    conversation = Conversation(client, model, max_tokens=50)
    return Terminal(conversation, [model], "http://here", read_line).run(), conversation


def test_answer_shows_no_control_characters_and_its_figures(client: OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = talk(client, "controls", "", "France?")
    output = capsys.readouterr().out
    assert code == 0 and "It is \\x1b[2J Paris." in output and "\x1b[2J" not in output
    assert "first token" in output and output.endswith("\n")


def test_refused_question_is_not_kept(client: OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    code, conversation = talk(client, "breaks", "a", "b", "/exit")
    assert (code, conversation.turns) == (0, []) and capsys.readouterr().out.count("It fell.") == 2


def test_lines_between_quotation_marks_are_one_question(client: OpenAI) -> None:
    _, conversation = talk(client, "controls", '"""/exit', 'two"""', " /new", KeyboardInterrupt)
    assert [turn["content"] for turn in conversation.turns[::2]] == ["/exit\ntwo", "/new"]


def test_interrupt_at_the_prompt_exits_130(client: OpenAI, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(client, "controls", KeyboardInterrupt)[0] == 130
    assert capsys.readouterr().out.endswith("\n\n")

"""The tokens that a request can need, before its prompt is tokenized."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config.limits import OPEN_ANSWER
from gateway.embedding import Inputs
from gateway.generation import UNLIMITED, Chat, Generation, Message, Text, TokenIds, Tool, ToolCall
from gateway.lanes.limits.estimate import Need, need_of


def need(prompt: Any, context_length: int = 0, **fields: Any) -> Need:
    return need_of(Generation(id="r", model="m", prompt=prompt, **{"max_tokens": 64, **fields}), context_length)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        (Text(""), 0),
        (Text("x" * 41), 11),
        (Text("x" * 20, suffix="y" * 20), 10),
        (Text("東京" * 10), 15),
        (Text("東京" * 10_000), 15_000),
        (Text("\ud800"), 1),  # half of a pair, which UTF-8 cannot write
        (TokenIds(tuple(range(100))), 100),
        (Chat(messages=(Message(role="user", content="x" * 40), Message(role="assistant", reasoning="y" * 40))), 20),
    ],
)
def test_prompt_is_estimated_by_its_bytes(prompt: Any, tokens: int) -> None:
    assert need(prompt) == Need(tokens, 64)


def test_tools_and_calls_count() -> None:
    tool = Tool(name="f", description="x" * 400)
    call = ToolCall("id", "f", "y" * 400)
    chat = Chat(messages=(Message(role="assistant", tool_calls=(call,)),), tools=(tool,))
    assert 200 < need(chat).prompt < 230


@pytest.mark.parametrize(
    ("fields", "context_length", "answer"),
    [
        ({"n": 4}, 0, 256),
        ({"max_tokens": 10**6}, 1000, 990),
        ({"max_tokens": 10**6, "n": 2}, 1000, 1980),
        ({"max_tokens": UNLIMITED}, 0, OPEN_ANSWER),
        ({"max_tokens": UNLIMITED}, 100, 90),
    ],
)
def test_answer_takes_its_limit_for_each_choice_within_the_context(
    fields: dict[str, Any], context_length: int, answer: int
) -> None:
    assert need(Text("x" * 40), context_length, **fields) == Need(10, answer)


def test_prompt_is_at_most_the_context() -> None:
    assert need(Text("x" * 40_000), 100) == Need(100, 1)


def test_embeddings_take_all_their_texts_and_no_answer() -> None:
    texts = Inputs(texts=("x" * 40, (1, 2, 3), "y" * 400))
    assert need(texts) == Need(10 + 3 + 100, 0)
    assert need(texts, 50) == Need(10 + 3 + 50, 0)
    assert need(Inputs(pairs=(("x" * 40, "y" * 40), ("x" * 40, "z" * 80)))) == Need(50, 0)

"""A chat that is too long for its context, counted with the real template and tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.bundles.bundle import load_bundle
from gateway.engines.local.prompts import setup_of
from gateway.errors import ContextLengthExceeded
from gateway.generation import Chat, Message, Tool
from gateway.prompts.encoder import PromptEncoder
from gateway.prompts.messages import Encode

CONTEXT, RESERVE = 1024, 100


@pytest.fixture
def encoder(tiny: Path) -> PromptEncoder:
    return PromptEncoder(setup_of(load_bundle(tiny), ""))


@pytest.fixture
def renders(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of messages of each prompt that is rendered."""
    template, counts = encoder._template, []
    assert template is not None
    original = template.render

    def render(chat: Chat, *arguments: object) -> str:
        counts.append(len(chat.messages))
        return original(chat, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(template, "render", render)
    return counts


def dialog(turns: int) -> Chat:
    pairs = [("user", "What is the capital of France?"), ("assistant", "Paris is the capital of France.")] * turns
    messages = [("system", "You are a helpful assistant."), *pairs, ("user", "And of Spain?")]
    tools = (Tool(name="look", description="Look it up."),)
    return Chat(messages=tuple(Message(role=role, content=text) for role, text in messages), tools=tools)  # type: ignore[arg-type]


def encode(encoder: PromptEncoder, chat: Chat, reserve: int | None = RESERVE) -> tuple[int, int]:
    """Tokens of the prompt, and messages that are left out."""
    encoded = encoder.encode(Encode(prompt=chat, context_length=CONTEXT, reserve=reserve))
    return len(encoded.ids), encoded.dropped


def test_chat_that_fits_is_rendered_once(encoder: PromptEncoder, renders: list[int]) -> None:
    tokens, dropped = encode(encoder, dialog(3))
    assert (tokens, dropped) == encode(encoder, dialog(3), None) and dropped == 0 and renders == [8, 8]


def test_kept_turns_fit_and_one_step_more_does_not(encoder: PromptEncoder, renders: list[int]) -> None:
    chat = dialog(200)
    tokens, dropped = encode(encoder, chat)
    assert tokens + RESERVE <= CONTEXT and dropped % 2 == 0 and len(renders) <= 9
    step = next(
        turns
        for turns in range(1, 99)
        if len("What is the capital of France?Paris is the capital of France.") * turns >= CONTEXT
    )
    kept = replace(chat, messages=(chat.messages[0], *chat.messages[1 + dropped - 2 * step :]))
    assert encode(encoder, kept, None)[0] + RESERVE > CONTEXT
    exact = replace(chat, messages=(chat.messages[0], *chat.messages[1 + dropped :]))
    encoded = encoder.encode(Encode(prompt=chat, context_length=CONTEXT, reserve=RESERVE))
    assert encoded.rendered == encoder.encode(Encode(prompt=exact, context_length=CONTEXT)).rendered
    assert "helpful assistant" in encoded.rendered and "Look it up." in encoded.rendered


@pytest.mark.parametrize("reserve", [0, 100, 300, 500])
def test_reserve_stays_free(encoder: PromptEncoder, reserve: int) -> None:
    tokens = [encode(encoder, dialog(turns), reserve)[0] for turns in range(10, 30)]
    assert CONTEXT - reserve - 80 <= max(tokens) <= CONTEXT - reserve


def test_shortest_history_is_returned_if_none_fits(encoder: PromptEncoder) -> None:
    chat = dialog(20)
    huge = replace(chat, messages=(*chat.messages[:-1], Message(role="user", content="word " * 300)))
    tokens, dropped = encode(encoder, huge)
    assert dropped == 40 and tokens > CONTEXT - RESERVE
    endless = replace(chat, messages=(*chat.messages[:-1], Message(role="user", content="x" * 1_000_000)))
    with pytest.raises(ContextLengthExceeded, match="your prompt has 1000"):
        encode(encoder, endless)

"""PrefixIndex and blocks_of: which target has the start of a prompt, within bounded memory and time."""

from __future__ import annotations

import pytest

from gateway.engines.upstream.prefixes import BLOCK_CHARACTERS, BLOCK_TOKENS, MOST_BLOCKS, PrefixIndex, blocks_of
from gateway.generation import Chat, Message, Text, TokenIds, Tool, ToolCall

LONG = "".join(chr(97 + i * i % 23) for i in range(10 * BLOCK_CHARACTERS))


def chat(*contents: str, tools: tuple[Tool, ...] = ()) -> Chat:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=content) for i, content in enumerate(contents))  # type: ignore[arg-type]
    return Chat(messages=messages, tools=tools)


def common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class TestIndex:
    def test_each_target_has_the_blocks_that_were_sent_to_it(self) -> None:
        index = PrefixIndex(4)
        index.note(0, [1, 2, 3])
        index.note(1, [1, 2])
        index.note(2, [1, 9])
        assert index.matches([1, 2, 3, 4]) == [3, 2, 1, 0]
        assert index.matches([1, 2, 3]) == [3, 2, 1, 0]
        assert index.matches([1]) == [1, 1, 1, 0]
        assert index.matches([7, 1]) == [0, 0, 0, 0]
        assert index.matches([]) == [0, 0, 0, 0]

    def test_memory_is_bounded_and_the_oldest_end_goes_first(self) -> None:
        index = PrefixIndex(2, size=5)
        index.note(0, [1, 2, 3])
        index.note(1, [4, 5])
        index.note(1, [6, 7])
        assert len(index) == 5
        assert index.matches([1, 2, 3]) == [1, 0]
        assert index.matches([4, 5]) == [0, 2]

    def test_prompt_that_comes_again_stays(self) -> None:
        index = PrefixIndex(1, size=4)
        for other in range(10, 50, 2):
            index.note(0, [1, 2])
            index.note(0, [other, other + 1])
        assert index.matches([1, 2]) == [2]
        assert len(index) == 4

    def test_prompt_longer_than_the_index_keeps_its_start(self) -> None:
        index = PrefixIndex(1, size=3)
        index.note(0, [1, 2, 3, 4, 5])
        assert index.matches([1, 2, 3, 4, 5]) == [3]


class TestBlocks:
    def test_next_turn_begins_with_the_blocks_of_the_last_one(self) -> None:
        first, second = blocks_of(chat(LONG)), blocks_of(chat(LONG, "An answer.", LONG))
        assert len(first) == 10
        assert len(second) == 20
        assert second[:10] == first

    def test_block_includes_all_text_before_it(self) -> None:
        assert common(blocks_of(chat(LONG)), blocks_of(chat(f"x{LONG}"))) == 0
        changed = LONG[: 5 * BLOCK_CHARACTERS] + "#" + LONG[5 * BLOCK_CHARACTERS + 1 :]
        assert common(blocks_of(chat(LONG)), blocks_of(chat(changed))) == 5

    def test_short_prompt_has_no_block(self) -> None:
        assert blocks_of(chat("Hello")) == []
        assert blocks_of(Text("Hello")) == []
        assert blocks_of(TokenIds((1, 2))) == []

    @pytest.mark.parametrize(
        "other",
        [
            chat(LONG, tools=(Tool(name="read"),)),
            chat(LONG, tools=(Tool(name="read", description="Reads."),)),
            Chat(messages=(Message(role="system", content=LONG),)),
            Chat(messages=(Message(role="assistant", tool_calls=(ToolCall(id="1", name="read", arguments=LONG),)),)),
            chat("", LONG),
        ],
    )
    def test_different_start_differs_from_the_first_block(self, other: Chat) -> None:
        assert common(blocks_of(chat(LONG)), blocks_of(other)) == 0

    def test_text_and_tokens_have_blocks(self) -> None:
        assert len(blocks_of(Text(LONG))) == 10
        ids = tuple(range(3 * BLOCK_TOKENS + 5))
        assert len(blocks_of(TokenIds(ids))) == 3
        assert blocks_of(TokenIds(ids))[:2] == blocks_of(TokenIds(ids[: 2 * BLOCK_TOKENS]))

    @pytest.mark.parametrize("prompt", [chat(LONG), Text(LONG), TokenIds(tuple(range(3 * BLOCK_TOKENS)))])
    def test_owners_have_no_block_in_common(self, prompt: Chat | Text | TokenIds) -> None:
        assert not {*blocks_of(prompt, "one")} & {*blocks_of(prompt, "other"), *blocks_of(prompt)}
        assert blocks_of(prompt, "one") == blocks_of(prompt, "one")

    def test_end_of_a_very_long_prompt_is_not_read(self) -> None:
        read: list[int] = []

        class Messages(tuple[Message, ...]):
            def __iter__(self):  # type: ignore[no-untyped-def]
                for i, message in enumerate(tuple(self[k] for k in range(len(self)))):
                    read.append(i)
                    yield message

        many = Messages(Message(role="user", content=LONG) for _ in range(1000))
        assert len(blocks_of(Chat(messages=many))) == MOST_BLOCKS
        assert len(read) <= MOST_BLOCKS // 10 + 1
        assert len(blocks_of(Text(LONG * 100))) == MOST_BLOCKS

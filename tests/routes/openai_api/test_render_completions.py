"""Events become text completions: offsets, ranking, interleaved choices."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.generation import ChoiceFinished, Event, Finished, Started, TextDelta, TokenLogprob, Usage
from gateway.routes.collect import Collected, CollectedChoice
from gateway.routes.openai_api.render_completions import CompletionRendering, CompletionShape


def scored(text: str, logprob: float = -1.0) -> TokenLogprob:
    return TokenLogprob(text, tuple(text.encode()), logprob)


def shape(*echoes: str, **fields: Any) -> CompletionShape:
    return CompletionShape(**{"id": "cmpl-1", "n": 1, "best_of": 1, "echoes": echoes or ("",), **fields})


def rendered(shape: CompletionShape, *events: Event) -> list[dict[str, Any]]:
    rendering = CompletionRendering(shape)
    frames = [piece for event in events for piece in rendering.pieces("m", event)]
    assert frames.pop() == b"data: [DONE]\n\n"
    return [msgspec.json.decode(piece.removeprefix(b"data: ")) for piece in frames]


def whole(shape: CompletionShape, prompt: tuple[TokenLogprob, ...], *choices: CollectedChoice) -> dict[str, Any]:
    reply = CompletionRendering(shape).whole("m", Collected(list(choices), [prompt]))
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(reply))
    return decoded


def test_offsets_skip_begin_token_and_sentencepiece_space() -> None:
    prompt = (scored("<s>", 0.0), scored(" Hello"), scored(" world"))
    choice = CollectedChoice(text="!", logprobs=[scored("!")])
    logprobs = whole(shape("Hello world", with_logprobs=True), prompt, choice)["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 0, 5, 11]
    assert logprobs["tokens"] == ["<s>", " Hello", " world", "!"]
    assert logprobs["token_logprobs"] == [None, -1.0, -1.0, -1.0] and logprobs["top_logprobs"][0] is None


def test_prompt_without_logprobs_is_still_echoed() -> None:
    choice = CollectedChoice(text=" b", logprobs=[scored(" b")])
    reply = whole(shape("a", with_logprobs=True), (), choice)["choices"][0]
    assert reply["text"] == "a b" and reply["logprobs"]["text_offset"] == [1]


def test_probability_zero_gets_the_floor() -> None:
    choice = CollectedChoice(text="a", logprobs=[TokenLogprob("a", (97,), float("-inf"), (scored("b", -0.5),))])
    logprobs = whole(shape(with_logprobs=True), (), choice)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-9999.0] and logprobs["top_logprobs"] == [{"b": -0.5, "a": -9999.0}]


def test_best_of_ranks_by_mean_logprob() -> None:
    choices = [
        CollectedChoice(text="long", logprobs=[scored("lo", -0.5), scored("ng", -0.5)]),
        CollectedChoice(text="short", logprobs=[scored("short", -0.6)]),
        CollectedChoice(text="", logprobs=[]),  # ended at once, without tokens
        CollectedChoice(text="best", logprobs=[scored("be", -0.1), scored("st", -0.3)]),
    ]
    ranked = whole(shape(n=3, best_of=4), (), *choices)["choices"]
    assert [(choice["index"], choice["text"]) for choice in ranked] == [(0, "best"), (1, "long"), (2, "short")]


def test_interleaved_choices_have_their_own_offsets() -> None:
    chunks = rendered(
        shape("", "x", n=2, best_of=2, with_logprobs=True),
        Started(prompt_tokens=1),
        TextDelta("ab", 0, (scored("ab"),)),
        TextDelta("c", 1, (scored("c"),)),
        TextDelta("d", 0, (scored("d"),)),
        ChoiceFinished("stop", 0),
        ChoiceFinished("length", 1),
        Started(prompt_tokens=1, prompt_logprobs=(scored("x", 0.0),)),
        TextDelta("e", 3, (scored("e"),)),
        ChoiceFinished("length", 3),
        ChoiceFinished("length", 2),
        Finished(usage=Usage()),
    )
    texts = [
        (c["index"], c["text"], (c["logprobs"] or {}).get("text_offset")) for chunk in chunks for c in chunk["choices"]
    ]
    assert texts == [
        *((0, "ab", [0]), (1, "c", [0]), (0, "d", [2]), (0, "", None), (1, "", None)),
        *((2, "x", [0]), (3, "x", [0]), (3, "e", [1]), (3, "", None), (2, "", None)),
    ]


def test_usage_is_in_the_last_chunk_and_null_before() -> None:
    chunks = rendered(
        shape(with_usage=True),
        Started(prompt_tokens=3),
        TextDelta("a"),
        ChoiceFinished("stop"),
        Finished(usage=Usage(prompt_tokens=3, completion_tokens=2)),
    )
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None, None]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] == 5

"""Log-probabilities of chats and completions, streamed and whole, compared with the model's raw logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai as sdk
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from openai.types import Completion, CompletionChoice

from gateway.bundles.bundle import load_bundle
from gateway.text.tokens import TextTokenizer
from gateway.worker.decoders.cpu import CpuDecoder
from tests.support.server import Running

FRANCE = "The capital of France is"
EMOJI = "Repeat: 東京 👩‍👩‍👧 é. Again: 東京 👩‍👩‍👧"
HELLO: Any = [{"role": "user", "content": "Say hello to 東京 🦊."}]
CLOSE = 0.01  # the last bits of float activations differ in a batch; keys in half precision make that 0.003


@pytest.fixture(scope="module")
def client(local: Running) -> Iterator[OpenAI]:
    with local.openai(timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def http(local: Running) -> Iterator[httpx.Client]:
    with local.http() as client:
        yield client


def complete(client: OpenAI, prompt: Any = FRANCE, model: str = "smollm2", **fields: Any) -> Completion:
    return client.completions.create(model=model, prompt=prompt, **{"temperature": 0, "max_tokens": 8, **fields})


def ids_of(http: httpx.Client, text: str, model: str = "smollm2") -> list[int]:
    ids: list[int] = http.post("/tokenize", json={"model": model, "content": text}).json()["tokens"]
    return ids


class Lists:
    """The logprobs of a completion; its lists must have equal lengths."""

    def __init__(self, choices: Sequence[CompletionChoice]) -> None:
        self.tokens: list[str] = []
        self.scores: list[float | None] = []
        self.tops: list[dict[str, float] | None] = []
        self.offsets: list[int] = []
        for choice in choices:
            if choice.logprobs is not None:
                self.tokens += choice.logprobs.tokens or []
                self.scores += choice.logprobs.token_logprobs or []
                self.tops += choice.logprobs.top_logprobs or []  # type: ignore[arg-type]
                self.offsets += choice.logprobs.text_offset or []
        assert len(self.tokens) == len(self.scores) == len(self.tops) == len(self.offsets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lists) and vars(self) == vars(other)


def lists_of(reply: Completion, index: int = 0) -> Lists:
    return Lists([reply.choices[index]])


def raw_logprobs(bundle: Path, ids: Sequence[int]) -> NDArray[np.float64]:
    """The log-softmax of the logits after each id, computed by this test."""
    decoder = CpuDecoder(load_bundle(bundle), slots=1)
    cache = decoder.new_cache()
    width = decoder.spec.prompt_width
    chunks = [ids[start : start + width] for start in range(0, len(ids), width)]
    logits = np.concatenate([decoder.verify(cache, chunk).astype(np.float64) for chunk in chunks])
    decoder.close()
    return (
        logits - logits.max(-1, keepdims=True) - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))[:, None]
    )


# ---- chat completions


def test_each_token_has_an_entry_and_bytes_join_to_the_content(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="smollm2", messages=HELLO, max_tokens=32, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = reply.choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None and reply.usage is not None
    entries = choice.logprobs.content
    assert len(entries) in (
        reply.usage.completion_tokens,
        reply.usage.completion_tokens - 1,
    )  # none for the end token
    joined = b"".join(bytes(entry.bytes or ()) for entry in entries).decode(errors="replace")
    assert joined.removesuffix("\ufffd") == (choice.message.content or "").removesuffix("\ufffd")
    for entry in entries:
        assert -9999 <= entry.logprob <= 0 and len(entry.top_logprobs) == 3
        assert all(top.bytes is not None and -9999 <= top.logprob <= 0 for top in entry.top_logprobs)
        best = entry.top_logprobs[0]
        assert (best.token, best.logprob, best.bytes) == (
            entry.token,
            entry.logprob,
            entry.bytes,
        )  # greedy


@pytest.mark.parametrize("fields", [{}, {"top_logprobs": 0}, {"top_logprobs": None}])
def test_no_top_logprobs_gives_an_empty_list(client: OpenAI, fields: Any) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4, logprobs=True, **fields)
    assert reply.choices[0].logprobs is not None and reply.choices[0].logprobs.content
    assert all(entry.top_logprobs == [] for entry in reply.choices[0].logprobs.content)


@pytest.mark.parametrize(
    "fields", [{"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1}]
)
def test_top_logprobs_out_of_range_is_400(client: OpenAI, fields: Any) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=HELLO, **fields)
    assert caught.value.param == "top_logprobs"
    reply = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, logprobs=True, top_logprobs=20)
    assert reply.choices[0].logprobs is not None and reply.choices[0].logprobs.content
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 20


def test_streamed_logprobs_match_the_text_of_their_chunk(client: OpenAI) -> None:
    options: Any = {"model": "smollm2", "messages": HELLO, "max_tokens": 32, "temperature": 0, "seed": 1}
    options |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0]
    streamed = []
    for chunk in client.chat.completions.create(stream=True, **options):
        choice = chunk.choices[0]
        entries = (choice.logprobs.content if choice.logprobs else None) or []
        streamed += entries
        written = b"".join(bytes(entry.bytes or ()) for entry in entries).decode(errors="ignore")
        assert written == (choice.delta.content or "")
    assert whole.logprobs is not None and whole.logprobs.content is not None
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.logprobs.content]
    for one, other in zip(streamed, whole.logprobs.content, strict=True):
        assert [top.token for top in one.top_logprobs] == [top.token for top in other.top_logprobs]
        # the number of tokens in a device call changes the last bits
        assert one.logprob == pytest.approx(other.logprob, abs=CLOSE)


# ---- exactness


@pytest.mark.parametrize("model", ["smollm2", "tiny"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 1.7, "seed": 3, "presence_penalty": 1.5, "frequency_penalty": 1.0, "top_p": 0.9},
        {
            "temperature": 0.2,
            "seed": 4,
            "logit_bias": {"40": 50},
            "extra_body": {"repetition_penalty": 1.5, "top_k": 9},
        },
    ],
)
def test_logprobs_are_the_log_softmax_of_raw_logits(
    client: OpenAI, http: httpx.Client, smollm2: Path, tiny: Path, model: str, fields: dict[str, Any]
) -> None:
    reply = complete(client, model=model, logprobs=5, **fields)
    lists = lists_of(reply)
    bundle = {"smollm2": smollm2, "tiny": tiny}[model]
    ids = ids_by_name(bundle)
    prompt, written = ids_of(http, FRANCE, model), [ids[token] for token in lists.tokens]
    expected = raw_logprobs(bundle, [*prompt, *written])
    for position, token in enumerate(written):
        row = expected[len(prompt) - 1 + position]
        score, top = lists.scores[position], lists.tops[position]
        assert score is not None and top is not None
        assert score == pytest.approx(row[token], abs=CLOSE)
        best = sorted(row, reverse=True)[:5]
        assert sorted(top.values(), reverse=True)[:5] == pytest.approx(best, abs=CLOSE)


def ids_by_name(bundle: Path) -> dict[str, int]:
    """The id of each token, by its name in a reply."""
    tokens = TextTokenizer.load(bundle / "tokenizer.json")
    names = {}
    for index in range(tokens.vocab_size):
        raw = tokens.token_bytes(index)
        try:
            names[raw.decode()] = index
        except UnicodeDecodeError:
            names["bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)] = index
    assert len(names) == tokens.vocab_size
    return names


def test_prompt_logprobs_are_the_log_softmax_of_raw_logits(client: OpenAI, http: httpx.Client, smollm2: Path) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 9  # more than one chunk of the prompt
    ids = ids_of(http, text)
    expected = raw_logprobs(smollm2, ids)
    scores = lists_of(complete(client, text, max_tokens=0, echo=True, logprobs=0)).scores
    assert len(ids) > 64 and len(scores) == len(ids) and scores[0] is None
    for position in range(1, len(ids)):
        assert scores[position] == pytest.approx(expected[position - 1][ids[position]], abs=CLOSE)


# ---- text completions


@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_completion_logprobs_have_equal_lists_with_k_entries(client: OpenAI, k: int) -> None:
    reply = complete(client, logprobs=k, temperature=1.5, seed=2)
    lists = lists_of(reply)
    assert reply.usage is not None and len(lists.tokens) == reply.usage.completion_tokens == 8
    assert "".join(lists.tokens) == reply.choices[0].text
    for token, score, top in zip(lists.tokens, lists.scores, lists.tops, strict=True):
        assert top is not None and top[token] == score and len(top) in (k, k + 1)


def test_text_offsets_point_to_the_tokens(client: OpenAI) -> None:
    for prompt, echo in ((FRANCE, False), (FRANCE, True), (EMOJI, True)):
        reply = complete(client, prompt, logprobs=0, echo=echo, max_tokens=24)
        lists, text = lists_of(reply), reply.choices[0].text
        assert lists.offsets[0] == 0 and all(a <= b for a, b in pairwise(lists.offsets))
        whole = [i for i, token in enumerate(lists.tokens) if not token.startswith("bytes:")]
        assert all(text[lists.offsets[i] :].startswith(lists.tokens[i]) for i in whole)


def test_part_of_a_character_is_shown_as_bytes(client: OpenAI) -> None:
    lists = lists_of(complete(client, EMOJI, echo=True, logprobs=0, max_tokens=0))
    raw = b"".join(
        bytes.fromhex(token[6:].replace("\\x", "")) if token.startswith("bytes:") else token.encode()
        for token in lists.tokens
    )
    assert any(token.startswith("bytes:") for token in lists.tokens) and raw.decode() == EMOJI


def test_echo_has_prompt_logprobs_from_the_second_token(client: OpenAI, http: httpx.Client) -> None:
    reply = complete(client, echo=True, logprobs=2, max_tokens=1)
    lists = lists_of(reply)
    assert reply.choices[0].text == FRANCE + " Paris"
    assert lists.tokens == ["The", " capital", " of", " France", " is", " Paris"]
    assert lists.scores[0] is None and lists.tops[0] is None
    assert all(score is not None and score < 0 for score in lists.scores[1:])
    assert all(top is not None and len(top) in (2, 3) for top in lists.tops[1:])


def test_max_tokens_0_gives_prompt_logprobs_only(client: OpenAI) -> None:
    scored = complete(client, echo=True, logprobs=1, max_tokens=0)
    with_one = complete(client, echo=True, logprobs=1, max_tokens=1)
    assert scored.choices[0].text == FRANCE and scored.usage is not None and scored.usage.completion_tokens == 0
    assert lists_of(scored).scores == pytest.approx(lists_of(with_one).scores[:-1], abs=CLOSE, nan_ok=True)


def test_echoed_logprobs_equal_generated_logprobs(client: OpenAI) -> None:
    for prompt in (FRANCE, "Once upon a time there was a fox that"):
        first = complete(client, prompt, logprobs=3, max_tokens=24)
        again = complete(client, prompt + first.choices[0].text, logprobs=3, max_tokens=0, echo=True)
        generated, echoed = lists_of(first), lists_of(again)
        count = len(generated.tokens)
        assert echoed.tokens[-count:] == generated.tokens
        assert echoed.scores[-count:] == pytest.approx(generated.scores, abs=CLOSE)
        assert [offset - len(prompt) for offset in echoed.offsets[-count:]] == generated.offsets


def test_prompt_logprobs_do_not_depend_on_the_cache(client: OpenAI) -> None:
    first = lists_of(complete(client, echo=True, logprobs=2, max_tokens=0))
    complete(client, FRANCE + " Paris and", max_tokens=4)
    assert lists_of(complete(client, echo=True, logprobs=2, max_tokens=0)) == first


SAMPLED = {"n": 2, "temperature": 1, "seed": 6}


@pytest.mark.parametrize("fields", [{}, {"echo": True}, SAMPLED, {"model": "tiny", **SAMPLED}])
@pytest.mark.parametrize("stop_length", [None, 3])
def test_streamed_logprobs_equal_whole_reply(client: OpenAI, fields: dict[str, Any], stop_length: int | None) -> None:
    """Also while the search for a stop string holds text back."""
    fields = {"model": "smollm2", "logprobs": 2, "max_tokens": 16, **fields}
    if stop_length is not None:
        begun = complete(client, EMOJI, **{**fields, "echo": False}).choices[0].text
        fields["stop"] = [begun[8 : 8 + stop_length], begun[2:5] + "\x00", begun[5:7] + "\x00"]
    whole = complete(client, EMOJI, **fields)
    chunks = list(client.completions.create(prompt=EMOJI, stream=True, **{"temperature": 0, **fields}))
    for index, choice in enumerate(whole.choices):
        own = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(c.text for c in own) == choice.text
        streamed, expected = Lists(own), lists_of(whole, index)
        assert (streamed.tokens, streamed.offsets) == (expected.tokens, expected.offsets)
        assert streamed.scores == pytest.approx(expected.scores, abs=CLOSE, nan_ok=True)


def test_hidden_token_has_no_bytes_and_no_offset(client: OpenAI, http: httpx.Client) -> None:
    """With `ignore_eos` an end-of-turn token is in the logprobs, but not in the text."""
    (end,) = ids_of(http, "<|im_end|>")
    forced: Any = {"logit_bias": {str(end): 100}, "extra_body": {"ignore_eos": True}, "max_tokens": 3}
    reply = complete(client, logprobs=0, **forced)
    lists = lists_of(reply)
    assert reply.choices[0].text == "" and lists.tokens == ["<|im_end|>"] * 3 and lists.offsets == [0, 0, 0]
    chat = client.chat.completions.create(model="smollm2", messages=HELLO, temperature=0, logprobs=True, **forced)
    assert chat.choices[0].message.content == "" and chat.choices[0].logprobs is not None
    assert [entry.bytes for entry in chat.choices[0].logprobs.content or ()] == [[], [], []]


def test_each_prompt_has_its_own_logprobs(client: OpenAI) -> None:
    prompts = [FRANCE, "One two three"]
    both = complete(client, prompts, echo=True, logprobs=1, max_tokens=2)
    for index, prompt in enumerate(prompts):
        assert (
            lists_of(both, index).tokens
            == lists_of(complete(client, prompt, echo=True, logprobs=1, max_tokens=2)).tokens
        )
    assert not any(math.isnan(score) for score in lists_of(both).scores if score is not None)

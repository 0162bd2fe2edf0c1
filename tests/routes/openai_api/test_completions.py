"""POST /v1/completions over a socket, through the official client, with local and with scripted models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import OpenAI
from openai.types import Completion

from tests.routes.conftest import FIM_TOKENS, PARIS
from tests.routes.openai_api.helpers import chunks_of, wait_until_idle
from tests.support.server import Running

FRANCE = "The capital of France is"
FOX = "Once upon a time there was a fox that"
PATHS = ("/v1/completions", "/completions")


@pytest.fixture(scope="module")
def client(local: Running) -> Iterator[OpenAI]:
    with local.openai(timeout=120) as client:
        yield client


def complete(client: OpenAI, prompt: Any = FRANCE, model: str = "smollm2", **fields: Any) -> Completion:
    return client.completions.create(model=model, prompt=prompt, **{"temperature": 0, **fields})


def texts(client: OpenAI, prompt: Any = FRANCE, **fields: Any) -> list[str]:
    return [choice.text for choice in complete(client, prompt, **fields).choices]


def streamed(client: OpenAI, prompt: Any = FRANCE, model: str = "smollm2", **fields: Any) -> list[Completion]:
    return list(client.completions.create(model=model, prompt=prompt, stream=True, **{"temperature": 0, **fields}))


def text_of(chunks: list[Completion], index: int = 0) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


def refusal(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json={"model": "paris", "prompt": FRANCE, **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


# ---- the whole reply


@pytest.mark.parametrize("path", PATHS)
def test_reply_has_every_field_a_client_reads(http: httpx.Client, path: str) -> None:
    reply = http.post(path, json={"model": "paris", "prompt": FRANCE}).json()
    assert reply["id"].startswith("cmpl-") and reply["object"] == "text_completion"
    assert abs(reply["created"] - time.time()) < 3600 and reply["model"] == "paris"
    assert reply["choices"] == [{"index": 0, "text": PARIS, "finish_reason": "stop", "logprobs": None}]
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_completion_applies_no_chat_template(local: Running, client: OpenAI) -> None:
    reply = complete(client, max_tokens=1)
    assert reply.choices[0].text == " Paris"
    with local.http() as http:
        count = http.post("/tokenize", json={"model": "smollm2", "prompt": FRANCE}).json()["count"]
    assert reply.usage is not None and reply.usage.prompt_tokens == count == 5


def test_prompt_as_text_and_as_token_ids_give_the_same_text(local: Running, client: OpenAI) -> None:
    with local.http() as http:
        ids = [
            http.post("/tokenize", json={"model": "smollm2", "prompt": prompt}).json()["tokens"]
            for prompt in (FRANCE, FOX)
        ]
    alone = [*texts(client, FRANCE, max_tokens=8), *texts(client, FOX, max_tokens=8)]
    assert texts(client, [FRANCE, FOX], max_tokens=8) == alone
    assert texts(client, ids, max_tokens=8) == alone
    assert texts(client, ids[1], max_tokens=8) == [alone[1]]
    assert texts(client, [FOX], max_tokens=8) == [alone[1]]


def test_list_of_prompts_gives_n_choices_each_and_one_usage(client: OpenAI) -> None:
    alone = [complete(client, prompt, max_tokens=4, n=2, temperature=1, seed=5) for prompt in (FRANCE, FOX)]
    both = complete(client, [FRANCE, FOX], max_tokens=4, n=2, temperature=1, seed=5)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [choice.text for reply in alone for choice in reply.choices]
    assert both.usage is not None and both.usage.completion_tokens == 16
    assert both.usage.prompt_tokens == sum(reply.usage.prompt_tokens for reply in alone if reply.usage)


@pytest.mark.parametrize(
    "prompt", [[], [[]], None, 5, {"a": 1}, [None], [[None]], [1, "a"], ["a", 1], ["a", [1]], [1.5], [[1], "a"]]
)
def test_invalid_prompt_types_are_400(http: httpx.Client, local: Running, prompt: Any) -> None:
    assert prompt == [[]] or refusal(http, prompt=prompt)["param"].startswith("prompt")
    with local.http() as real:
        assert refusal(real, model="tiny", prompt=prompt)["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", [[384], [-1], [[1], [384]], ["a", ""], ""])
def test_unknown_token_ids_and_empty_prompts_are_400(local: Running, prompt: Any, stream: bool) -> None:
    with local.http() as http:
        error = refusal(http, model="tiny", prompt=prompt, stream=stream)
    assert error["param"].startswith("prompt")


def test_prompt_over_the_context_is_400_with_openai_message(client: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="maximum context length is 512 tokens") as caught:
        complete(client, "word " * 600, model="tiny")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_unknown_model_is_404(client: OpenAI) -> None:
    for create in (complete, streamed):
        with pytest.raises(sdk.NotFoundError) as caught:
            create(client, model="gpt-9")
        assert caught.value.code == "model_not_found"


# ---- the parameters


def test_default_limit_is_16_tokens(client: OpenAI) -> None:
    reply = complete(client, FOX)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None and reply.usage.completion_tokens == 16


def test_max_tokens_0_needs_echo(client: OpenAI, http: httpx.Client) -> None:
    reply = complete(client, max_tokens=0, echo=True)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (FRANCE, "length")
    assert reply.usage is not None and reply.usage.completion_tokens == 0
    assert refusal(http, max_tokens=0)["param"] == "max_tokens"


def test_stop_string_ends_text_before_the_match(client: OpenAI) -> None:
    (free,) = texts(client, FOX, max_tokens=24)
    stop = free[10:13]
    reply = complete(client, FOX, max_tokens=24, stop=stop)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (free[: free.index(stop)], "stop")


def test_earliest_stop_string_wins(client: OpenAI) -> None:
    (free,) = texts(client, FOX, max_tokens=24)
    late, early = free[20:23], free[10:13]
    assert texts(client, FOX, max_tokens=24, stop=[late, early]) == [free[: min(free.index(late), free.index(early))]]
    at_once = complete(client, stop=[" Paris", "."])
    assert (at_once.choices[0].text, at_once.choices[0].finish_reason) == ("", "stop")


def test_same_seed_gives_same_text_and_other_seeds_differ(client: OpenAI) -> None:
    def text_with(seed: int) -> str:
        return texts(client, FOX, temperature=1, seed=seed)[0]

    assert text_with(7) == text_with(7)
    assert len({text_with(seed) for seed in range(4)}) > 1


def test_echo_returns_the_prompt_before_the_text(client: OpenAI) -> None:
    for prompt in (FRANCE, [FRANCE, FOX]):
        plain, echoed = texts(client, prompt, max_tokens=4), texts(client, prompt, max_tokens=4, echo=True)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        assert echoed == [before + after for before, after in zip(prompts, plain, strict=True)]


def test_echo_of_token_ids_returns_their_text(local: Running, client: OpenAI) -> None:
    with local.http() as http:
        ids = http.post("/tokenize", json={"model": "smollm2", "prompt": FRANCE}).json()["tokens"]
    assert texts(client, ids, max_tokens=1, echo=True) == [FRANCE + " Paris"]


def test_best_of_returns_the_most_likely_and_counts_all_tokens(client: OpenAI) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "seed": 3, "max_tokens": 8}
    all_four = complete(client, FOX, n=4, logprobs=0, **options)
    means = {}
    for choice in all_four.choices:
        assert choice.logprobs is not None
        scores = [score for score in choice.logprobs.token_logprobs or [] if score is not None]
        means[choice.text] = sum(scores) / len(scores)
    best = sorted(means, key=lambda text: means[text], reverse=True)
    reply = complete(client, FOX, n=2, best_of=4, **options)
    assert [choice.text for choice in reply.choices] == best[:2]
    assert [choice.index for choice in reply.choices] == [0, 1] and reply.choices[0].logprobs is None
    assert reply.usage is not None and all_four.usage is not None
    assert reply.usage.completion_tokens == all_four.usage.completion_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"suffix": "b", "prompt": [1, 2]}, "suffix"),
        ({"suffix": "b", "echo": True}, "suffix"),
        ({"echo": "yes"}, "echo"),
    ],
)
def test_invalid_field_is_400_with_its_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert refusal(http, **fields)["param"] == param


def test_null_equals_absent(http: httpx.Client) -> None:
    names = ("max_tokens", "suffix", "echo", "logprobs", "best_of", "n", "stop", "stream", "seed", "temperature")
    reply = http.post("/v1/completions", json={"model": "paris", "prompt": FRANCE, **dict.fromkeys(names)}).json()
    assert reply["choices"][0]["text"] == PARIS


def test_logit_bias_bans_and_forces_tokens(local: Running, client: OpenAI) -> None:
    with local.http() as http:
        (paris, london) = (
            http.post("/tokenize", json={"model": "smollm2", "content": word}).json()["tokens"][0]
            for word in (" Paris", " London")
        )
    assert texts(client, max_tokens=1) == [" Paris"]
    assert texts(client, max_tokens=1, logit_bias={str(paris): -100}) != [" Paris"]
    assert texts(client, max_tokens=3, logit_bias={str(london): 100}) == [" London London London"]


def test_choices_differ_and_the_prompt_counts_once(client: OpenAI) -> None:
    prompt = "A prompt that was never sent before, " * 8
    reply = complete(client, prompt, n=4, temperature=1, seed=11, max_tokens=8, extra_body={"ignore_eos": True})
    one = complete(client, prompt, max_tokens=8, extra_body={"ignore_eos": True})
    assert len({choice.text for choice in reply.choices}) > 1
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage is not None and one.usage is not None
    assert reply.usage.prompt_tokens == one.usage.prompt_tokens
    assert reply.usage.completion_tokens == 4 * one.usage.completion_tokens == 32
    assert texts(client, prompt, n=3, max_tokens=6) == texts(client, prompt, max_tokens=6) * 3  # greedy: all are equal


# ---- fill in the middle


def test_suffix_gives_a_fill_in_the_middle_prompt(local: Running, client: OpenAI) -> None:
    before, after = "def add(a, b):\n    return ", "\n<|fim_middle|> # plain text of the client"
    filled = complete(client, before, model="coder", suffix=after)
    with local.http() as http:

        def ids_of(text: str) -> list[int]:
            body = {"model": "coder", "content": text, "parse_special": False}
            ids: list[int] = http.post("/tokenize", json=body).json()["tokens"]
            return ids

        marks = [http.post("/tokenize", json={"model": "coder", "content": t}).json()["tokens"][0] for t in FIM_TOKENS]
        pieces = [ids_of(before), ids_of(after)]
    spelled = [marks[0], *pieces[0], marks[1], *pieces[1], marks[2]]
    assert len(set(marks)) == 3 and not set(marks) & set(pieces[1])
    assert texts(client, spelled, model="coder") == [filled.choices[0].text]
    assert filled.usage is not None and filled.usage.prompt_tokens == len(spelled)


def test_suffix_without_model_support_is_400(client: OpenAI) -> None:
    for create in (complete, streamed):
        with pytest.raises(sdk.BadRequestError, match="cannot fill in the middle") as caught:
            create(client, suffix="x")
        assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")
    assert texts(client, suffix="", max_tokens=1) == [" Paris"]  # an empty suffix counts as absent


# ---- streaming


def test_stream_chunks_share_id_object_and_model(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"model": "paris", "prompt": FRANCE, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], "text_completion", "paris")
    }
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == PARIS
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_streamed_choices_equal_whole_reply_and_finish_once(client: OpenAI) -> None:
    # not seed 4: one of its draws is so close to the border of two tokens that the last bits of the logits decide
    options: dict[str, Any] = {"n": 2, "temperature": 1, "seed": 5, "max_tokens": 8, "echo": True}
    whole = complete(client, [FRANCE, FOX], **options)
    chunks = streamed(client, [FRANCE, FOX], stream_options={"include_usage": True}, **options)
    assert [text_of(chunks, index) for index in range(4)] == [choice.text for choice in whole.choices]
    ended = [(c.index, c.finish_reason) for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(ended) == [(choice.index, choice.finish_reason) for choice in whole.choices]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_failure_in_a_stream_is_one_last_error_frame(http: httpx.Client) -> None:
    text = http.post("/v1/completions", json={"model": "breaks", "prompt": FRANCE, "stream": True}).text
    assert text.count('"error"') == 1 and "[DONE]" not in text and "The device fell over." in text


# ---- several prompts as one request


def test_list_of_prompts_uses_one_slot(http: httpx.Client) -> None:
    body = {"model": "busy", "prompt": [FRANCE] * 5, "max_tokens": 2}  # `busy` has one slot and no queue
    assert len(http.post("/v1/completions", json=body).json()["choices"]) == 5


@pytest.mark.parametrize("stream", [False, True])
def test_deadline_covers_all_prompts(http: httpx.Client, stream: bool) -> None:
    body = {"model": "endless", "prompt": [FRANCE] * 1000, "max_tokens": 2, "stream": stream}  # 20 ms each, 20 s in all
    text = http.post("/v1/completions", json=body, headers={"x-request-timeout-ms": "1000"}).text
    assert "deadline_exceeded" in text


def test_disconnect_ends_a_list_of_prompts(server: Running, openai: OpenAI) -> None:
    with openai.completions.create(model="endless", prompt=[FOX] * 1000, stream=True, max_tokens=20) as stream:
        seen = next(chunk for chunk in stream if chunk.choices[0].index == 1)  # the second prompt runs; all take 200 s
        assert seen.choices[0].text
    wait_until_idle(server, "endless")


def test_one_failed_prompt_fails_the_request(http: httpx.Client) -> None:
    body = {"model": "breaks", "prompt": [FRANCE, FOX]}
    response = http.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")

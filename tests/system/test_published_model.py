"""A Genie bundle of several parts, as AI Hub publishes them, over HTTP through our own engine, and through Genie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from openai.types import Completion, CompletionChoice
from tokenizers import Tokenizer

from gateway.config.tables import GenieModel, LocalModel
from tests.support.npu.tiny_htp_decoder import TinyDecoder
from tests.support.server import config_of, serving

TINY = TinyDecoder()
#: Tokens of prompts: below and above one window, at the end of the first context, beyond it.
LENGTHS = (2, 8, 9, 30, 56, 58, 63, 64, 90)
COUNT = 9
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "sky",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["a", "b"]}}, "required": ["at"]},
    },
}
#: The model has one likely token. With this bias, twenty others are equally likely.
SAMPLED: Any = {"temperature": 1.0, "logit_bias": {str(token): 100 for token in range(40, 60)}}
SCHEMA: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


#: A token is a character, and the context has 128. So this template writes no more of a tool than its name.
TEMPLATE = (
    "{% for tool in tools or [] %}<tool_call>{{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)


@pytest.fixture(scope="module")
def client(published_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(published_bundle, folder / "tiny")
    (folder / "tiny" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    models = {"own": LocalModel(path="tiny", provider="qnn", max_sequences=2), "genie": GenieModel(path="tiny")}
    with serving(config_of(models, models_dir=folder)) as server:
        yield server.openai()


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(5, 99, length).tolist()  # type: ignore[no-any-return]


def complete(client: OpenAI, ids: list[int], model: str = "own", **options: Any) -> Completion:
    extra = {"ignore_eos": True} if model == "own" else {}
    return client.completions.create(
        model=model,
        prompt=ids,
        **{"max_tokens": COUNT, "temperature": 0, "extra_body": extra | options.pop("extra_body", {}), **options},
    )


def choice(client: OpenAI, ids: list[int], **options: Any) -> CompletionChoice:
    return complete(client, ids, **options).choices[0]


def test_greedy_tokens_and_log_probabilities_are_those_of_the_float_model(
    client: OpenAI, published_bundle: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(published_bundle / "tokenizer.json"))
    for length in LENGTHS:
        ids, known = prompt(length), prompt(length)
        for _ in range(COUNT):
            known.append(int(TINY.logits(known)[-1].argmax()))
        answer = choice(client, ids, logprobs=1)
        assert answer.text == tokenizer.decode(known[length:]), length
        logits = TINY.logits(known)[length - 1 : -1]
        expected = logits.max(axis=1) - np.logaddexp.reduce(logits, axis=1)
        assert answer.logprobs is not None
        np.testing.assert_allclose(answer.logprobs.token_logprobs, expected, atol=0.3)
        if length in (9, 30, 64):
            assert complete(client, ids, model="genie").choices[0].text == answer.text


def test_seed_gives_the_same_answer_again(client: OpenAI) -> None:
    first, again, other = (choice(client, prompt(9), seed=seed, **SAMPLED).text for seed in (1, 1, 2))
    assert first == again != other


def test_two_choices_of_one_request(client: OpenAI) -> None:
    answer = complete(client, prompt(9), n=2, seed=3, **SAMPLED)
    assert len(answer.choices) == 2 and answer.choices[0].text != answer.choices[1].text


def test_logit_bias_excludes_a_token(client: OpenAI, published_bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(published_bundle / "tokenizer.json"))
    first = int(TINY.logits(prompt(9))[-1].argmax())
    answer = choice(client, prompt(9), logit_bias={str(first): -100}, max_tokens=1)
    assert answer.text and answer.text != tokenizer.decode([first])


def test_json_schema_holds(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model="own", messages=MESSAGES, temperature=0, max_tokens=40, response_format=form
    )
    assert isinstance(json.loads(answer.choices[0].message.content or "")["ok"], bool)


def test_forced_tool_call(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="own", messages=MESSAGES, temperature=0, max_tokens=60, tools=[WEATHER], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "sky"
    assert json.loads(call.function.arguments)["at"] in ("a", "b")


def test_prefix_cache_does_not_change_an_answer(client: OpenAI) -> None:
    ids = prompt(40)
    first, second = complete(client, ids), complete(client, ids)
    assert first.choices[0].text == second.choices[0].text
    assert second.usage is not None and second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= 32


def test_drafts_do_not_change_an_answer(client: OpenAI) -> None:
    """A request with a seed has no drafts. The others get them from the prompt, or from a prediction."""
    alone, drafted = (choice(client, prompt(12) * 3, max_tokens=20, **seed).text for seed in ({"seed": 1}, {}))
    assert alone == drafted
    chat: Any = {"model": "own", "messages": MESSAGES, "temperature": 0, "max_tokens": 20}
    plain = client.chat.completions.create(**chat, seed=1).choices[0].message.content
    prediction = {"type": "content", "content": plain}
    assert client.chat.completions.create(**chat, prediction=prediction).choices[0].message.content == plain


def test_context_is_that_of_the_longest_graphs(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="maximum context length is 127 tokens"):
        complete(client, prompt(140), max_tokens=1)

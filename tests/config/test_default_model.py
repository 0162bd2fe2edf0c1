"""config.toml's table of the default model: its greedy answers are right, and do not repeat themselves to the end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from openai import OpenAI

from gateway.config.file import load_config
from tests.support.paths import ROOT
from tests.support.server import config_of, serving
from tests.support.structured import closed

TEXT: Any = {"type": "string"}
JOKE = closed(setup=TEXT, punchline=TEXT)
#: Without the defaults, each of these repeats a phrase or a list item until `max_tokens`.
LOOPING = {
    "Give me a joke about cats.": JOKE,
    "Give me the setup to a joke about cats, no punchline.": JOKE,
    "Summarise: The cat sat on the mat because it was warm, and the dog was jealous.": closed(summary=TEXT),
}


@pytest.fixture(scope="module")
def client(smollm2: Path) -> Iterator[OpenAI]:
    table = load_config(ROOT / "config.toml", environ={}).models["smollm2-135m"]
    models = {"default": replace(table, path=smollm2.name, source="", aliases=())}
    with serving(config_of(models, models_dir=smollm2.parent)) as running, running.openai(timeout=120) as client:
        yield client


def structured(client: OpenAI, text: str) -> Any:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": LOOPING[text], "strict": True}}
    messages: Any = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(model="default", messages=messages, response_format=form, max_tokens=256)
    return answer.choices[0]


def test_structured_answers_end_also_in_a_batch(client: OpenAI) -> None:
    with ThreadPoolExecutor(len(LOOPING)) as threads:
        together = list(threads.map(lambda text: structured(client, text), LOOPING))
    for text, choice in zip(LOOPING, together, strict=True):
        assert choice.finish_reason == "stop", choice.message.content
        assert set(json.loads(choice.message.content)) == set(LOOPING[text]["properties"])
    first = next(iter(LOOPING))
    assert structured(client, first).message.content == together[0].message.content


def test_short_answers_and_calls_are_right(client: OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model="default", messages=question)
    assert "Paris" in (answer.choices[0].message.content or "") and answer.choices[0].finish_reason == "stop"
    request: Any = [{"role": "user", "content": "What is the value of magic_function(3)? Use the tool."}]
    function = {"name": "magic_function", "parameters": closed(input={"type": "integer"})}
    answer = client.chat.completions.create(
        model="default", messages=request, tools=[{"type": "function", "function": function}], tool_choice="required"
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"input": 3}  # type: ignore[union-attr]
    assert answer.choices[0].finish_reason == "tool_calls"

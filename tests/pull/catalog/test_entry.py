"""Names of the catalogue's models."""

from __future__ import annotations

import pytest

from gateway.pull.catalog.entry import parameters_of, same_key, short_name


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Llama-v3.2-3B-Instruct", "llama3.2-3b"),
        ("Llama-v3.2-3B-Instruct-SSD", "llama3.2-3b-ssd"),
        ("Llama-SEA-LION-v3.5-8B-R", "llama-sea-lion3.5-8b-r"),
        ("Llama-3.2-3B-Instruct", "llama3.2-3b"),
        ("llama_v3_2_3b_instruct", "llama3.2-3b"),
        ("Qwen3-4B", "qwen3-4b"),
        ("Qwen3-4B-Instruct-2507", "qwen3-4b-2507"),
        ("Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("Phi-3.5-Mini-Instruct", "phi3.5-mini"),
        ("Gemma-4-E4B-it", "gemma4-e4b"),
    ],
)
def test_short_name(title: str, name: str) -> None:
    assert short_name(title) == name


@pytest.mark.parametrize(
    "spelling", ["llama3.2-3b", "llama3.2:3b", "Llama-v3.2-3B-Instruct", "llama_v3_2_3b_instruct", "Llama-3.2-3B"]
)
def test_spellings_of_one_model_have_one_key(spelling: str) -> None:
    assert same_key(spelling) == same_key("llama3.2-3b")


def test_other_models_have_other_keys() -> None:
    names = ["Qwen3-4B", "Qwen3-4B-Instruct-2507", "Qwen3-VL-4B-Instruct", "Qwen3-8B", "Llama-v3.2-3B-Instruct-SSD"]
    assert len({same_key(name) for name in names}) == len(names)


@pytest.mark.parametrize(("title", "billions"), [("Qwen3-0.6B", 0.6), ("Phi-3.5-Mini", None), ("Gemma-4-E4B-it", None)])
def test_parameters_are_in_the_name(title: str, billions: float | None) -> None:
    assert parameters_of(title) == billions

"""A server of scripted models, one for the tests of each file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.config.tables import Script, ScriptedModel
from gateway.server import connections
from tests.support.server import Running, config_of, scripted, serving

MODELS = {
    "m": scripted("Hello."),
    "endless": scripted("word", repeat=True, token_s=0.01, context_length=1_000_000),
    "slow_prompt": scripted("word", repeat=True, ttft_s=600.0, token_s=0.01, context_length=1_000_000),
    "fast": scripted("word " * 50, repeat=True, context_length=100_000_000),
    "bulky": scripted("x" * 50_000, repeat=True, context_length=1_000_000),
    "single": ScriptedModel(
        max_sequences=1,
        script=Script(replies=("word",), repeat=True, token_s=0.01, context_length=1_000_000),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def open_files() -> None:
    connections.allow_open_files()  # both ends of every connection are in this process


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of(MODELS)) as running:
        yield running

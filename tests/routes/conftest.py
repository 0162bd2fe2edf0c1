"""Two servers for all tests of the routes: one with scripted models, one with local models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from gateway.config.tables import LocalModel, Script, ScriptedModel
from tests.support.server import Running, config_of, scripted, serving
from tests.support.tiny import SPECIAL_TOKENS, build_tiny

PARIS = "The capital of France is Paris."
FIM_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
MODELS = {
    "paris": ScriptedModel(aliases=("gpt-4o-mini", "org/alias:7b"), script=Script(replies=(PARIS,))),
    "café": scripted("Ça va, 東京 👩\u200d👩\u200d👧 \u2028 line\x85 end."),
    "endless": scripted("word", repeat=True, token_s=0.01, context_length=100_000),
    "narrow": scripted(PARIS, context_length=8),
    "breaks": scripted(PARIS, faults=[{"after": 3, "error": "EngineFailed", "message": "The device fell over."}]),
    "busy": ScriptedModel(
        max_sequences=1,
        queue=0,
        script=Script(replies=("word",), repeat=True, token_s=0.01, context_length=100_000),
    ),
    "vectors": scripted(kind="encoder", context_length=8),
    "scorer": scripted(kind="cross-encoder", context_length=64),
    "unloadable": scripted(PARIS, load_error="The bundle is broken."),
}


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serving(config_of(MODELS)) as running:
        yield running


@pytest.fixture(scope="session")
def local(smollm2: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with local models: SmolLM2, a tiny model, and a tiny model with fill-in-the-middle tokens."""
    coder = build_tiny(tmp_path_factory.mktemp("coder"), special_tokens=(*SPECIAL_TOKENS, *FIM_TOKENS))
    bundles = {"smollm2": smollm2, "tiny": tiny, "coder": coder}
    models = {name: LocalModel(path=str(bundle), threads=1) for name, bundle in bundles.items()}
    with serving(config_of(models)) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_openai(long_tiny: Path) -> Iterator[OpenAI]:
    """A client of the model "tiny", which has a context of 8192 tokens."""
    model = LocalModel(path=str(long_tiny), threads=1)
    with serving(config_of({"tiny": model})) as running, running.openai() as client:
        yield client


@pytest.fixture(scope="session")
def openai(server: Running) -> Iterator[OpenAI]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client

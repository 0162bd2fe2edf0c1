"""What clients get when a worker fails while it serves: it dies, hangs, or its device calls fail.

Real workers, real sockets. docs/reliability.md has the table. During each fault, a request to another model is
answered as if nothing happened.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.config.tables import BreakerConfig
from tests.support import workers
from tests.support.manual_clock import ManualClock
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until
from tests.system.faults.bundles import STARVE, starved_by_a_token
from tests.system.faults.client import (
    OTHER,
    PROMPT,
    ask,
    local_engine,
    logged_fault,
    streams,
    wait_until_restarted,
    worker_of,
)

WATCHDOG_S = 0.5


@pytest.fixture(scope="module")
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module")
def server(
    clock: ManualClock, tiny: Path, long_tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    engines = {
        OTHER: local_engine(OTHER, tiny),
        "killed": local_engine("killed", long_tiny, workers.takes_20_ms_per_step),
        "hangs": local_engine("hangs", tiny, workers.faulty, watchdog_s=WATCHDOG_S, clock=clock),
        "fails": local_engine("fails", tiny, workers.fails_every_call),
        "starves": local_engine("starves", starved_by_a_token(tiny, tmp_path_factory.mktemp("bundle") / "starves")),
    }
    with serving(config_of({name: engine._model for name, engine in engines.items()}), engines) as running:
        yield running


def test_killed_worker_ends_its_streams_with_an_error(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Each stream would take 160 s, so the worker is killed in the middle of them."""
    with streams(server, "killed", 3, max_tokens=8000) as requests:
        killed_at = time.monotonic()
        worker_of(server, "killed").kill()
        endings = [each.result(PATIENCE_S) for each in requests]
    refused = ask(server, "killed", max_tokens=8)
    for ending in endings:
        assert (ending.status, ending.error["code"]) == (200, "engine_failed") and ending.chunks > 0
        assert ending.error["message"] == "The model 'killed' failed: its worker died. Try again."
    assert (refused.status, refused.error.get("code")) in [(503, "model_not_ready"), (200, None)]
    wait_until_restarted(server, "killed")
    if sys.platform != "win32":
        assert logged_fault(caplog, "killed") == (
            "killed: its worker died (signal SIGKILL); 3 requests in progress ended with an error; something outside "
            "killed it, as systems do when memory is short; a smaller context_length or max_sequences needs less; "
            "it is loaded again in 0.5 s"
        )
    print(f"killed: {max(e.at for e in endings) - killed_at:.3f} s, again {time.monotonic() - killed_at:.1f} s")
    assert ask(server, "killed", max_tokens=8).error == {}


def test_hung_device_call_ends_with_an_error(
    server: Running, caplog: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    with streams(server, "hangs", 1, prompt=[40, workers.HANG]) as [hanging], ThreadPoolExecutor(1) as pool:
        second = pool.submit(ask, server, "hangs")
        wait_until(lambda: server.app.state.router.lanes["hangs"].queue.running == 2, "the second did not begin")

        def is_killed() -> bool:
            clock.now += WATCHDOG_S
            return hanging.done()

        wait_until(is_killed, "the watchdog did not kill the worker")
    for ending in (hanging.result(PATIENCE_S), second.result(PATIENCE_S)):
        assert ending.error["code"] == "engine_failed"
        assert ending.error["message"] == (
            "The model 'hangs' failed: a device call did not come back within 0.5 s, so its worker was killed. "
            "Try again."
        )
    wait_until_restarted(server, "hangs")
    line = logged_fault(caplog, "hangs")
    assert line.startswith("hangs: a device call did not come back within 0.5 s, so its worker was killed (")
    assert line.endswith(
        "); 2 requests in progress ended with an error; if that repeats, update the NPU's driver, or raise watchdog_s "
        "for a model whose calls take longer; it is loaded again in 0.5 s"
    )
    assert ask(server, "hangs", max_tokens=8).error == {}


def test_worker_whose_calls_all_fail_is_restarted(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    began_at = time.monotonic()
    endings = [ask(server, "fails", stream=False) for _ in range(3)]
    for ending in endings:
        assert (ending.status, ending.error["code"]) == (503, "engine_failed")
        assert ending.error["message"] == "The model failed while it ran: QNN error 14001."
    print(f"fails: {(endings[-1].at - began_at) / 3:.3f} s each")
    wait_until_restarted(server, "fails")
    line = logged_fault(caplog, "fails")
    assert line.startswith(
        "fails: the device failed 3 requests in a row: The model failed while it ran: QNN error 14001"
    )
    assert line.endswith("; `npu-gateway doctor` looks for the reason; it is loaded again in 0.5 s")
    assert ask(server, OTHER, max_tokens=8).error == {}


def test_worker_without_memory_for_a_call_is_restarted(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(server, "starves", PROMPT[:4], max_tokens=2).error == {}
    ending = ask(server, "starves", [40, STARVE], max_tokens=2, stream=False)
    assert (ending.status, ending.error["code"]) == (503, "engine_failed")
    assert ending.error["message"] == "The machine has no memory left for this model."
    wait_until_restarted(server, "starves")
    line = logged_fault(caplog, "starves")
    assert line.startswith("starves: the device failed a request: The machine has no memory left for this model (")
    assert line.endswith("; a smaller context_length or max_sequences needs less; it is loaded again in 0.5 s")
    assert ask(server, "starves", PROMPT[:4], max_tokens=2).error == {}
    assert ask(server, OTHER, max_tokens=8).error == {}


def test_hung_call_opens_the_breaker_before_it_ends(tiny: Path) -> None:
    engine = local_engine("m", tiny, workers.faulty, watchdog_s=600.0)
    breaker = BreakerConfig(latency_ms=300, min_calls=1, open_s=60)
    with (
        serving(config_of({"m": engine._model}, breaker=breaker), {"m": engine}) as server,
        ThreadPoolExecutor() as pool,
    ):
        began_at = time.monotonic()
        hanging = pool.submit(ask, server, "m", [40, workers.HANG])
        wait_until(lambda: server.app.state.router.lanes["m"].breaker.state == "open", "the breaker is not open")
        print(f"opened after {time.monotonic() - began_at:.2f} s")
        refused = ask(server, "m")
        assert refused.status == 503 and not hanging.done()
        worker_of(server, "m").kill()
        assert hanging.result(PATIENCE_S).error["code"] == "engine_failed"

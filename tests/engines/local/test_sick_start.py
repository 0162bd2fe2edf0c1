"""An NPU that is sick: all passes take longer by a constant. No real time is measured."""

from __future__ import annotations

import logging
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.config.tables import BreakerConfig, LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.sick_start import RECORDS_FOLDER, SickStart
from gateway.worker.frames import Device, PassTimes, Prefilled, Ready, Tokens
from tests.support.engines import events_of
from tests.support.local_engine import make, request, usage
from tests.support.manual_clock import ManualClock
from tests.support.server import config_of, serving, wait_until
from tests.support.sick_npu import EXTRA_S, STEP_S, WIDE_S, npu_worker, start_sick
from tests.support.workers import READY

HEALTHY = PassTimes(0.11, 0.05)
SICK = PassTimes(1.61, 1.55)


def ready(passes: PassTimes | None, soc: int = 60, device: Device = "npu") -> Ready:
    return replace(READY, device=device, soc=soc, passes=passes)


@pytest.fixture
def judged(tmp_path: Path) -> SickStart:
    return SickStart(tmp_path / "model", tmp_path, ManualClock())


@pytest.fixture
def bundle(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


class TestJudge:
    @pytest.mark.parametrize(
        ("passes", "is_sick"),
        [
            (HEALTHY, False),
            (SICK, True),
            (PassTimes(0.05, 0.05), False),  # a small model on a fast NPU
            (PassTimes(0.4, 0.2), False),  # a large model
            (PassTimes(1.5, 0.6), False),  # a very large model: its wide pass costs more than a step
            (PassTimes(0.7, 0.6), True),
        ],
    )
    def test_without_record_equal_large_costs_are_sick(
        self, judged: SickStart, passes: PassTimes, is_sick: bool
    ) -> None:
        assert bool(judged.judge(ready(passes))) == is_sick

    @pytest.mark.parametrize(
        ("passes", "is_sick"),
        [
            (PassTimes(0.3, 0.14), False),  # slow, but not by a large constant: a hot NPU
            (PassTimes(2.0, 0.06), False),  # one kind of pass only
            (PassTimes(0.1, 1.6), False),
            (PassTimes(1.2, 0.7), True),
            (SICK, True),
        ],
    )
    def test_with_record_both_costs_far_above_it_are_sick(
        self, judged: SickStart, passes: PassTimes, is_sick: bool
    ) -> None:
        assert not judged.judge(ready(HEALTHY))
        sign = judged.judge(ready(passes))
        assert bool(sign) == is_sick
        if is_sick:
            assert sign.endswith("; at the last good start 0.11 s and 0.05 s")

    def test_very_slow_model_is_compared_with_itself(self, judged: SickStart) -> None:
        slow = PassTimes(9.0, 3.0)
        assert not judged.judge(ready(slow))
        assert not judged.judge(ready(PassTimes(10.4, 4.4)))
        assert judged.judge(ready(PassTimes(21.0, 9.0)))

    def test_sick_start_is_not_recorded(self, judged: SickStart, tmp_path: Path) -> None:
        judged.judge(ready(SICK))
        assert not (tmp_path / RECORDS_FOLDER).exists()
        assert not judged.judge(ready(HEALTHY))
        judged.judge(ready(SICK))
        assert judged.judge(ready(PassTimes(1.2, 0.7))), "the record is still that of the healthy start"

    def test_accepted_start_is_the_new_comparison(self, judged: SickStart) -> None:
        judged.judge(ready(HEALTHY))
        assert judged.judge(ready(SICK))
        judged.accept(ready(SICK))
        assert not judged.judge(ready(SICK)), "the machine is slower for good"
        assert not judged.judge(ready(HEALTHY)) and judged.judge(ready(SICK)), "or it became healthy again"

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"passes": {"wide_s": "x"}}', b'{"bundle": 1}']
    )
    def test_damaged_record_is_no_comparison(self, judged: SickStart, tmp_path: Path, content: bytes) -> None:
        judged.judge(ready(HEALTHY))
        [record] = (tmp_path / RECORDS_FOLDER).iterdir()
        record.write_bytes(content)
        assert not judged.judge(ready(PassTimes(1.2, 0.7)))
        assert judged.judge(ready(PassTimes(3.5, 3.0))), "the start after the damage was recorded"

    def test_record_of_other_bundle_device_or_version_is_no_comparison(
        self, judged: SickStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        far = ready(PassTimes(1.2, 0.7))
        judged.judge(ready(HEALTHY))
        assert not SickStart(tmp_path / "other", tmp_path, ManualClock()).judge(far)
        assert not judged.judge(replace(far, soc=88))
        judged.judge(ready(HEALTHY))
        monkeypatch.setattr("gateway.engines.local.sick_start._provider", lambda: "99.0")
        assert not judged.judge(far)

    def test_folder_that_cannot_be_written_is_no_fault(self, tmp_path: Path) -> None:
        (tmp_path / "models").write_bytes(b"")
        judged = SickStart(tmp_path / "model", tmp_path / "models", ManualClock())
        assert not judged.judge(ready(HEALTHY))
        assert judged.judge(ready(SICK))


class TestBecameSick:
    """While the model is served."""

    def serve(self, judged: SickStart, prompt_s: float, *steps_s: float) -> None:
        judged.note(Prefilled(1, prompt_s))
        for step_s in steps_s:
            judged.note(Tokens(id=1, ids=[5], device_s=step_s))

    @pytest.mark.parametrize(
        ("prompt_s", "steps_s", "is_sick"),
        [
            (1.6, (1.55, 1.56, 1.55), True),
            (1.6, (0.05, 0.05, 1.55, 1.55, 1.55), True),
            (1.6, (1.55, 1.55), False),  # too few
            (1.6, (1.55, 0.05, 1.55), False),
            (0.11, (1.55, 1.55, 1.55), False),  # the prompt was fast
            (1.6, (0.6, 1.9, 5.0), False),  # no constant
            (0.9, (0.4, 0.4, 0.4), False),  # slow, but not by a large constant
        ],
    )
    def test_slow_by_a_constant_is_sick(
        self, judged: SickStart, prompt_s: float, steps_s: tuple[float, ...], is_sick: bool
    ) -> None:
        judged.judge(ready(HEALTHY))
        self.serve(judged, prompt_s, *steps_s)
        assert bool(judged.became_sick()) == is_sick

    def test_drafts_are_no_steps(self, judged: SickStart) -> None:
        judged.judge(ready(HEALTHY))
        self.serve(judged, 1.6)
        for _ in range(9):
            judged.note(Tokens(id=1, ids=[5, 6], device_s=1.55))
            judged.note(Tokens(id=1, ids=[5], device_s=1.55, source="lookup", drafted=2))
            judged.note(Tokens(id=1, ids=[5], device_s=0.0))
        assert not judged.became_sick()

    def test_worker_is_replaced_once_an_hour(self, tmp_path: Path) -> None:
        clock = ManualClock()
        judged = SickStart(tmp_path / "model", tmp_path, clock)
        for seconds, is_replaced in ((0, True), (600, False), (3000, True)):
            clock.now += seconds
            judged.judge(ready(HEALTHY))
            assert not judged.became_sick(), "a new worker has no past"
            self.serve(judged, 1.6, 1.55, 1.55, 1.55)
            assert bool(judged.became_sick()) == is_replaced

    def test_other_devices_are_never_sick(self, judged: SickStart) -> None:
        assert not judged.judge(ready(None, device="cpu"))
        self.serve(judged, 90.0, 60.0, 60.0, 60.0)
        assert not judged.became_sick()


@pytest.mark.parametrize("starts", [0, 1, 2])
async def test_sick_worker_is_replaced_before_ready(
    bundle: Path, starts: int, caplog: pytest.LogCaptureFixture
) -> None:
    start_sick(bundle, starts)
    async with aclosing(make(bundle, npu_worker, ManualClock())) as engine:
        with caplog.at_level(logging.WARNING):
            await engine.start()
        assert (engine.status.state, engine.status.device, engine.status.detail) == ("ready", "npu", "")
        assert engine.status.mode_refusal == "error 1010"  # what the worker reports comes to the status
        assert engine.status.restarts == 0
        lines = [record.getMessage() for record in caplog.records]
        figures = f"a wide pass takes {WIDE_S + EXTRA_S:.3g} s and a step {STEP_S + EXTRA_S:.3g} s"
        replaced = "m: the NPU started sick, so its worker is replaced"
        assert [line.startswith(replaced) for line in lines] == [True] * starts
        assert all(f"({number} of 2): {figures}" in line for number, line in enumerate(lines, 1))
        assert usage(await events_of(engine, request())).completion_tokens == 24
        assert len(list((bundle.parent / RECORDS_FOLDER).iterdir())) == 1


async def test_third_sick_worker_serves_with_a_warning(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    start_sick(bundle, 3)
    async with aclosing(make(bundle, npu_worker, ManualClock())) as engine:
        with caplog.at_level(logging.WARNING):
            await engine.start()
        assert engine.status.state == "ready"
        assert "the NPU is slow: a wide pass takes 1.6 s and a step 1.55 s" in engine.status.detail
        assert "restart the machine" in engine.status.detail
        assert len(caplog.records) == 3 and "2 new workers did not help" in caplog.records[-1].getMessage()
        assert usage(await events_of(engine, request())).completion_tokens == 24
        engine._supervisor.discard("a test")
        await engine.lost()
        start_sick(bundle, 3)
        await engine.start()
        assert (engine.status.state, engine.status.detail) == ("ready", "")
        assert (bundle.parent / "sick_starts").read_text(encoding="utf-8") == "2", "it loaded once, not three times"


async def test_sick_restart_is_judged_too(bundle: Path) -> None:
    async with aclosing(make(bundle, npu_worker, ManualClock())) as engine:
        await engine.start()
        engine._supervisor.discard("a test")
        await engine.lost()
        start_sick(bundle, 1)
        await engine.start()
        assert (engine.status.state, engine.status.detail, engine.status.restarts) == ("ready", "", 1)
        assert (bundle.parent / "sick_starts").read_text(encoding="utf-8") == "-1", "two workers were started"


async def test_worker_on_the_cpu_is_not_judged(tiny: Path, tmp_path: Path) -> None:
    async with aclosing(LocalEngine("m", LocalModel(path=str(tiny)), tmp_path)) as engine:
        engine._sick_start._passes = HEALTHY  # of an earlier worker, on an NPU
        await engine.start()
        assert engine._supervisor.ready is not None and engine._supervisor.ready.passes is not None
        assert engine._sick_start._passes is None
        assert not (tmp_path / RECORDS_FOLDER).exists()


def test_npu_that_becomes_sick_gets_a_new_worker(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The breaker opens, the worker is replaced, the gateway's own probes close the breaker."""
    clock, sick_now = ManualClock(), bundle.parent / "sick_now"
    engine = make(bundle, npu_worker, clock)
    breaker = BreakerConfig(latency_ms=1000, token_ms=200, min_calls=1, open_s=0.1)
    model = LocalModel(path="unused", threads=1)
    with serving(config_of({"m": model}, breaker=breaker), {"m": engine}) as server, server.openai() as client:
        client.completions.create(model="m", prompt=[40, 41, 42], max_tokens=8)
        sick_now.touch()
        client.completions.create(model="m", prompt=[50, 51, 52], max_tokens=8)
        wait_until(lambda: engine.status.state != "ready", "the worker is not replaced")
        sick_now.unlink()
        with server.http() as http:
            wait_until(lambda: http.get("/readyz").json()["ready"], "the breaker stays open")
        assert engine.status.restarts == 1
        client.completions.create(model="m", prompt=[40, 41, 42], max_tokens=8)
    assert "the NPU became sick: each pass takes about 1.5 s more than at its start (0.05 s for a step)" in caplog.text

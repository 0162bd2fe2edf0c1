"""One answer, judged. `test_command.py` has real answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.commands.doctor.finding import Finding
from gateway.commands.doctor.gateway_state import read_state
from gateway.commands.doctor.speed import Speed, ask, chosen, of_engine, of_gateway, speed_findings
from gateway.commands.doctor.verdict import verdict
from gateway.commands.running.find import Found
from gateway.config.tables import Config, LimitsConfig, LocalModel, ScriptedModel, ServerConfig
from gateway.errors import GatewayError
from tests.support.processes import free_port
from tests.support.server import config_of, scripted, serving


def speed(tokens_per_s: float, limit_s: float | None = None, device: str = "cpu") -> Speed:
    total_s = 0.1 + 15 / tokens_per_s
    return Speed(device=device, ttft_s=0.1, total_s=total_s, tokens=16, threads=2, limit_s=limit_s)


@pytest.mark.parametrize(
    ("measured", "published", "level", "symptom"),
    [
        (speed(35), None, "ok", None),
        (speed(35, limit_s=1.0), None, "ok", None),
        (speed(35, limit_s=0.5), None, "note", "slow"),  # the breaker opens if it repeats
        (speed(5), None, "note", "slow"),
        (speed(19, device="npu"), 21.2, "ok", None),
        (speed(10.5, device="npu"), 21.2, "note", "slow"),
    ],
)
def test_answer_is_compared_with_limit_reader_and_publisher(
    measured: Speed, published: float | None, level: str, symptom: str | None
) -> None:
    [found] = speed_findings("m", measured, published)
    assert (found.level, found.symptom) == (level, symptom)
    assert found.cause == ("device" if symptom else "")


def test_verdict_has_device_threads_and_rate() -> None:
    found = verdict(list(speed_findings("m", speed(5))))
    assert str(found).startswith("Slow because: CPU, 2 threads, 5 tokens/s, first token after 100 ms. Next step: ")
    good = verdict(list(speed_findings("m", speed(35))))
    assert str(good) == "Nothing is wrong: m answers: CPU, 2 threads, 35 tokens/s, first token after 100 ms."


def test_first_cause_of_a_slow_answer_is_the_setting() -> None:
    threads = Finding("note", "settings of m", "m uses 1 of 8 threads", "threads", "", "remove `threads`")
    assert verdict([*speed_findings("m", speed(5)), threads]).cause == "threads"


def test_one_token_has_no_rate() -> None:
    assert "tokens/s" not in str(Speed(device="npu", ttft_s=0.1, total_s=0.1, tokens=1))


def test_default_model_is_measured_if_it_is_here() -> None:
    models = {"a": ScriptedModel(), "b": ScriptedModel()}
    assert chosen(Config(models=dict(models), default_model="b"), ["a", "b"]) == "b"
    assert chosen(Config(models=dict(models), default_model="b"), ["a"]) == "a"
    assert chosen(Config(models=dict(models)), []) is None


def test_silent_gateway_is_an_error() -> None:
    with pytest.raises(GatewayError, match="did not answer"):
        ask(Found(url=f"http://127.0.0.1:{free_port()}"), "m", 60)


def test_model_that_cannot_load_is_explained(tmp_path: Path) -> None:
    model = LocalModel(path=str(tmp_path / "gone"), provider="cpu")
    [found] = of_engine("gone", Config(models={"gone": model}, models_dir=tmp_path), 60)
    assert (found.level, found.cause) == ("bad", "load") and "gone" in found.detail


def test_model_that_does_not_answer_in_time_is_explained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*arguments: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr("gateway.lanes.lane.Lane.load", hang)
    model = LocalModel(path=str(tiny), provider="cpu")
    [found] = of_engine("m", Config(models={"m": model}, models_dir=tiny.parent), 0.01)
    assert (found.level, found.cause) == ("bad", "load") and "did not load and answer within" in found.detail


def test_gateway_whose_key_is_not_known_is_not_measured() -> None:
    config = config_of({"m": scripted("word")}, ServerConfig(api_keys={"laptop": "k" * 32}))
    with serving(config) as server:
        found = Found(url=server.url)
        state = read_state(found)
        assert state is not None
        [finding] = of_gateway(found, state.models[0], config, 60.0)
    assert (finding.level, finding.because) == ("note", "") and "--api-key KEY" in finding.detail


@pytest.mark.parametrize("limits", [LimitsConfig(models=()), LimitsConfig(tokens_per_minute=1)])
def test_key_that_may_not_use_a_model_is_no_fault_of_the_model(limits: LimitsConfig) -> None:
    config = config_of({"m": scripted("word")}, limits=limits)
    with serving(config) as server:
        found = Found(url=server.url)
        state = read_state(found)
        assert state is not None
        [finding] = of_gateway(found, state.models[0], config, 60.0)
    assert finding.level == "note" and "[limits]" in finding.detail

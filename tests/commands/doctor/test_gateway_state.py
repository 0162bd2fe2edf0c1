"""What `doctor` makes of /readyz."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.commands.doctor import gateway_state
from gateway.commands.doctor.gateway_state import (
    Answer,
    KeyUse,
    ModelState,
    Readiness,
    answer_findings,
    limit_findings,
    model_findings,
    read_live,
    read_state,
    state_findings,
)
from gateway.commands.doctor.verdict import verdict
from gateway.commands.running.find import Found
from gateway.commands.running.run_file import RunFile
from gateway.config.file import load_config
from tests.support.processes import SCRIPTED
from tests.support.server import serving

BUDGET = {"latency_ms": 1000.0, "prompt_token_ms": 10.0, "token_ms": 100.0}
PASSES = {"wide_s": 0.3, "step_s": 0.025}


def model(engine: dict[str, Any] | None = None, breaker: dict[str, Any] | None = None, **fields: Any) -> ModelState:
    content = {
        "model": "m",
        "engine": {"state": "ready", "device": "npu", "passes": PASSES} | (engine or {}),
        "breaker": {"state": "closed", "budget": BUDGET} | (breaker or {}),
    }
    return msgspec.convert(content | fields, ModelState)


def test_ready_model_shows_device_speed_and_limit() -> None:
    mode, found = model_findings(model(speed="19.7 tokens/s"))
    assert (mode.level, mode.detail) == ("ok", "accepted by the driver")
    assert (found.level, found.detail) == ("ok", "ready on npu, 19.7 tokens/s, limit 1000 ms + 100 ms a token")


def test_refused_burst_mode_and_nodes_on_the_cpu_are_causes() -> None:
    mode, nodes, _ = model_findings(model({"mode_refusal": "error 1010"}, cpu_nodes=2))
    assert (mode.level, mode.cause) == ("note", "burst") and "error 1010" in mode.because
    assert (nodes.level, nodes.cause) == (
        "note",
        "partly on the CPU",
    ) and nodes.because == "2 nodes of m run on the CPU"


@pytest.mark.parametrize("state", ["loading", "unloaded"])
def test_model_that_loads_is_a_note(state: str) -> None:
    [found] = model_findings(model({"state": state, "detail": "warming up"}))
    assert (found.level, found.detail) == ("note", f"{state} warming up")


def test_driver_code_of_a_failed_model_is_explained() -> None:
    [found] = model_findings(model({"state": "failed", "detail": "cannot open: QNN error code 5005"}))
    assert (found.level, found.cause) == ("bad", "load") and "compares it with this machine" in found.step
    [unknown] = model_findings(model({"state": "failed", "detail": "it broke"}))
    assert unknown.detail == "m failed: it broke" and unknown.step


def test_open_breaker_refuses_with_reason_and_time() -> None:
    breaker = {"state": "half_open", "reason": "5 of its last 5 answers were slow or failed", "retry_after_s": 7.4}
    found = verdict(list(model_findings(model(breaker=breaker))))
    assert (found.symptom, found.cause) == ("refused", "breaker")
    assert "half open: 5 of its last 5 answers" in found.because and "7 s" in found.step


@pytest.mark.parametrize(
    ("budget", "passes", "text"),
    [
        ({"latency_ms": 1000.0, "prompt_token_ms": 0.0, "token_ms": 0.0}, PASSES, "m needs 25 ms a token"),
        ({"latency_ms": 200.0, "prompt_token_ms": 9.0, "token_ms": 99.0}, PASSES, "one pass of m takes 300 ms"),
        (BUDGET, PASSES, ""),
        (BUDGET, None, ""),
        ({**BUDGET, "latency_ms": 1.0, "is_measured": True}, PASSES, ""),
    ],
)
def test_configured_limit_below_the_machine_is_the_cause(
    budget: dict[str, Any], passes: dict[str, Any] | None, text: str
) -> None:
    breaker = {"state": "open", "reason": "slow", "retry_after_s": 3.0, "budget": budget}
    found = verdict(list(model_findings(model({"passes": passes}, breaker))))
    assert found.cause == ("budget" if text else "breaker") and text in found.because
    assert not text or "remove latency_ms" in found.step


def test_waiting_requests_make_it_slow() -> None:
    found = verdict(list(model_findings(model(running=4, waiting=3))))
    assert (found.symptom, found.cause) == ("slow", "busy") and "4 running and 3 waiting requests" in found.because


def test_gateway_that_does_not_answer_is_bad_if_it_runs() -> None:
    run = RunFile(url="http://127.0.0.1:1", host="127.0.0.1", port=1, pid=7)
    [dead] = state_findings(Found(url=run.url, run=run), None)
    assert dead.level == "bad" and "(pid 7) runs and does not answer" in dead.detail and "npu-gateway stop" in dead.step
    [none] = state_findings(Found(url=run.url), None)
    assert none.level == "note" and "npu-gateway serve" in none.detail
    [named] = state_findings(Found(url=run.url), None, is_named=True)
    assert named.level == "bad" and "no gateway answers at http://127.0.0.1:1" in named.detail


def test_running_gateway_is_named() -> None:
    run = RunFile(url="http://127.0.0.1:1", host="127.0.0.1", port=1, pid=7)
    first, *_, last = state_findings(Found(url=run.url, run=run), Readiness(models=[model()]))
    assert "pid 7 answers at http://127.0.0.1:1" in first.detail and last.what == "gateway: m"


def test_other_version_and_configuration_of_the_gateway_are_notes() -> None:
    url = "http://127.0.0.1:1"
    run = RunFile(url=url, host="127.0.0.1", port=1, pid=7, version="0.0.1", config_file="/a/config.toml")
    found = Found(url=url, run=run)
    _, version, config = state_findings(found, Readiness(), config_file="/b/config.toml")
    assert "0.0.1, and" in version.detail and "restart it" in version.detail
    assert config.detail == "it uses /a/config.toml, and these checks /b/config.toml"
    assert len(list(state_findings(found, Readiness(), config_file="/a/config.toml"))) == 2


def test_long_prompt_that_made_an_answer_slow_is_the_cause() -> None:
    slow = Answer(model="m", prompt_tokens=6000, cached_tokens=500, ttft_ms=12_300.0, slow_cause="prompt")
    found = verdict(list(answer_findings([slow, Answer(model="m")])))
    assert (found.symptom, found.cause) == ("slow", "context")
    assert found.because == "m needed 12.3 s for 5500 new tokens of a prompt of 6000"
    assert list(answer_findings([Answer(model="m", prompt_tokens=50, slow_cause="prompt")])) == []


def test_request_that_waited_for_others_is_the_cause() -> None:
    found = verdict(list(answer_findings([Answer(model="m", queue_ms=4200.0, slow_cause="queue")])))
    assert (found.cause, found.because) == ("busy", "a request of m waited 4.2 s for others")


def test_last_error_and_cut_answers_are_notes() -> None:
    answers = [
        Answer(model="m", status=503, error="it loads"),
        Answer(model="m", ending="length", has_default_limit=True),
    ]
    error, cut = answer_findings(answers)
    assert error.detail == "m: 503 it loads"
    assert cut.detail == "1 of the last 2 were cut at the default limit: set max_tokens in the client"


def test_key_at_its_limit_is_a_note() -> None:
    below = KeyUse(key="anna", requests=58.9, requests_per_minute=60, tokens=1e6, running=3, concurrent_requests=4)
    at = KeyUse(key="ben", requests=59.1, requests_per_minute=60, running=4, concurrent_requests=4)
    rate, concurrent = limit_findings([below, at])
    assert rate.detail == (
        "the API key ben is at its limit of 60 (requests_per_minute): more gets 429; wait, or raise "
        "requests_per_minute in [limits.keys.ben]"
    )
    assert "limit of 4 (concurrent_requests)" in concurrent.detail


def test_answers_of_a_running_gateway_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "_ANSWER_S", 60.0)
    (tmp_path / "config.toml").write_text(SCRIPTED, encoding="utf-8")
    with serving(load_config(tmp_path / "config.toml", {})) as server:
        server.openai().completions.create(model="paris", prompt="x", max_tokens=2)
        found = Found(url=server.url)
        state = read_state(found)
        assert state is not None and str(state.models[0]).startswith("ready on simulated")
        [answer] = read_live(found).answers
    assert (answer.model, answer.status, answer.ending) == ("paris", 200, "length")
    assert read_live(found).answers == [] and read_state(found) is None


def test_model_on_another_server_is_not_called_ready() -> None:
    """The gateway asks that server only when a request comes."""
    assert str(model({"state": "ready", "device": "remote"})) == "on another server"

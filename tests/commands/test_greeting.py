"""The lines of the greeting: NPU, limit of answers, other machines, requests to try."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.commands import greeting as module
from gateway.commands.doctor.interpreter import Interpreter
from gateway.commands.greeting import greeting, limit_line, npu_line, request_lines
from gateway.config.tables import Config, Defaults, GenieModel, LocalModel, ServerConfig, UpstreamModel
from gateway.engines.base import EngineStatus
from gateway.lanes.breaker import BreakerStatus
from gateway.lanes.lane import LaneStatus
from gateway.lanes.router import ModelInfo

ARM = Interpreter(version="3.12.1", bits=64, built_for="win-arm64", host="ARM64", path="python")
X64 = Interpreter(version="3.12.1", bits=64, built_for="win-amd64", host="ARM64", path="python")
LINUX = Interpreter(version="3.12.1", bits=64, built_for="linux-x86_64", host="x86_64", path="python")
URL = "http://127.0.0.1:8000/v1"


def info(name: str = "m", **engine: Any) -> ModelInfo:
    breaker = BreakerStatus(state="closed", reason="", retry_after_s=0, bad=0, judged=0, budget=None)
    status = EngineStatus(**({"state": "ready"} | engine))
    lane = LaneStatus(model=name, engine=status, breaker=breaker, running=0, waiting=0, expected_wait_s=0)
    return ModelInfo(name=name, aliases=(), status=lane)


AUTO, CPU = LocalModel(path="m"), LocalModel(path="m", provider="cpu")
EMULATED = 'NPU: none; m runs on the slow emulator. `provider = "auto"` takes the CPU'
SAVING = LocalModel(path="m", provider_options={"htp_performance_mode": "balanced"})


@pytest.mark.parametrize(
    ("model", "engine", "interpreter", "line"),
    [
        (AUTO, {"device": "npu", "soc": 60}, ARM, "NPU: Hexagon v73, burst, for m"),
        (GenieModel(path="m"), {"device": "npu", "soc": 60}, ARM, "NPU: Hexagon v73, burst, for m"),
        (
            AUTO,
            {"device": "npu", "mode_refusal": "error 1010"},
            ARM,
            "NPU: Hexagon, burst mode refused by the driver (error 1010), for m",
        ),
        (SAVING, {"device": "npu"}, ARM, "NPU: Hexagon, balanced, for m"),
        (AUTO, {}, X64, f"NPU: {X64.problem}"),
        (CPU, {}, X64, f"NPU: {X64.problem}"),
        (
            AUTO,
            {"device": "emulated"},
            LINUX,
            'NPU: none; m runs on the slow emulator. `provider = "auto"` takes the CPU',
        ),
        (CPU, {}, ARM, 'NPU: not used, because the configuration has provider = "cpu"'),
        (AUTO, {}, ARM, "NPU: not used; `npu-gateway doctor` looks for the reason"),
        (AUTO, {"state": "unloaded"}, ARM, "NPU: not known before a model is loaded"),
        (AUTO, {"state": "failed"}, ARM, "NPU: not used; `npu-gateway doctor` looks for the reason"),
        (AUTO, {}, LINUX, "NPU: none found; models run on the CPU"),
        (UpstreamModel(url=URL), {"device": "remote"}, ARM, ""),
    ],
)
def test_npu_line_has_the_first_reason(model: Any, engine: dict[str, Any], interpreter: Interpreter, line: str) -> None:
    assert "".join(npu_line(Config(models={"m": model}), [info(**engine)], interpreter)) == line


def test_limited_context_is_shown() -> None:
    model = info(context_length=512, context_note="context 512 of 1024: memory")
    config = Config(models={"m": LocalModel(path="m", provider="cpu")})
    assert "  context 512 of 1024: memory\n" in greeting(config, [model], {"m": Defaults()}, 1, {})


def test_x64_python_on_arm_gets_the_address_of_the_right_one() -> None:
    assert "https://www.python.org/downloads/windows/" in X64.problem
    assert ARM.problem == LINUX.problem == ""


def test_limit_of_answers_is_shown_unless_it_is_the_context() -> None:
    models = [info("a"), info("b")]
    short, long, none = Defaults(max_tokens=64), Defaults(max_tokens=512), Defaults(max_tokens="context")
    assert "Answers end after 64 tokens unless" in "".join(limit_line(models, {"a": short, "b": short}))
    assert "Answers end after 64 or 512 tokens" in "".join(limit_line(models, {"a": short, "b": long}))
    assert "Answers of a end after 64 tokens" in "".join(limit_line(models, {"a": short, "b": none}))
    assert list(limit_line(models, {"a": none, "b": none})) == []


def test_request_lines_fit_the_shells_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    chat, irm = request_lines(URL, "it's", True, "win32")
    assert chat == 'npu-gateway chat "What is the capital of France?"'
    assert irm.startswith(f"(irm {URL}/chat/completions -Method Post") and "\\" not in irm
    assert "-Headers @{Authorization='Bearer YOUR-KEY'}" in irm and '"model": "it\'\'s"' in irm
    assert "Headers" not in list(request_lines(URL, "m", False, "win32"))[1]


def test_request_lines_fit_the_shells_of_linux() -> None:
    _, curl = request_lines(URL, "it's", True, "linux")
    words = shlex.split(curl)
    assert words[:2] == ["curl", f"{URL}/chat/completions"]
    assert "Authorization: Bearer YOUR-KEY" in words and '"model": "it\'s"' in words[-1]
    assert "Authorization" not in list(request_lines(URL, "m", False, "linux"))[1]


def test_model_of_a_silent_server_is_not_ready_and_not_tried() -> None:
    config = Config(models={"down": UpstreamModel(url=URL), "m": AUTO})
    models, defaults = [info("down", device="remote"), info()], {"down": Defaults(), "m": Defaults()}
    text = greeting(config, models, defaults, 8000, {"down": "http://h/v1 does not answer"})
    assert "  down  not ready: http://h/v1 does not answer" in text
    assert "  m  ready on cpu" in text and '"model": "m"' in text
    assert "Open http://127.0.0.1:8000/ in a browser" in text
    text = greeting(config, models[:1], defaults, 8000, {"down": "http://h/v1 does not answer"})
    assert "Open " not in text and text.endswith("\nNo model is ready. `npu-gateway doctor` looks for the reason.\n")


def test_gateway_that_was_stopped_while_it_loaded_prints_no_greeting(capsys: pytest.CaptureFixture[str]) -> None:
    class Stopped:
        async def tried(self) -> None: ...

        def models(self) -> list[ModelInfo]:
            return [info(state="closed")]

    asyncio.run(module.greet(Config(models={"m": AUTO}), Stopped(), 8000))  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_server_for_other_machines_shows_address_and_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "own_addresses", lambda: ["10.0.0.7"])
    server = ServerConfig(host="0.0.0.0", insecure=True)
    text = greeting(Config(server=server, models={"m": AUTO}), [info()], {"m": Defaults()}, 8000, {})
    assert "for other machines: http://10.0.0.7:8000/v1" in text and "WARNING: there are no API keys" in text


def test_control_characters_of_a_model_name_are_escaped() -> None:
    text = greeting(
        Config(models={"m": AUTO}), [info("m", state="failed", detail="\x1b[31m")], {"m": Defaults()}, 1, {}
    )
    assert "\x1b" not in text


def test_encoder_and_model_that_waits_for_a_request_are_shown_as_such() -> None:
    def text(*models: ModelInfo) -> str:
        config = Config(models={model.name: CPU for model in models})
        return greeting(config, list(models), {model.name: Defaults() for model in models}, 8000, {})

    encoder = info("vectors", capabilities=("embeddings",))
    note = "context 6144 of 8192: the memory"
    status = replace(info("later", state="unloaded", detail="x", context_note=note).status, loads_on_demand=True)
    later = ModelInfo(name="later", aliases=("all-minilm",), status=status)
    both = text(encoder, later)
    assert f"  later  loaded by its first request  also as all-minilm\n    {note}\n" in both
    assert both.count("defaults:") == 0 and '"model": "later"' in both
    assert "or try:" not in text(encoder) and "No model is ready" not in text(encoder)
    assert "No model is ready" in text(info("broken", state="failed"))

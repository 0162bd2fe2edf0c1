"""`npu-gateway bench`: its arithmetic, and the command as a process with a scripted model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.commands.bench import Gateway, Sample, measure
from gateway.commands.client import openai_client
from gateway.errors import EngineFailed, InvalidRequest
from tests.support.processes import free_port, gateway

FIRST_S = 0.2
MODEL = f"""
[server]
api_keys = {{ me = "secret" }}
[breaker]
latency_ms = 1
min_calls = 1
[models.known]
engine = "scripted"
aliases = ["alias"]
script = {{ replies = ["word"], repeat = true, ttft_s = {FIRST_S}, token_s = 0.02 }}
"""


class RecordedGateway:
    """Returns samples with known times: 0.1 s to the first token of short prompts, then 20 tokens/s."""

    def __init__(self, *, supports_grammars: bool = True, decode_s: float = 0.75) -> None:
        self.memory = SimpleNamespace(peak=123)
        self._supports_grammars = supports_grammars
        self._decode_s = decode_s

    def device(self, model: str) -> str:
        return "device"

    def sample(self, model: str, text: str, max_tokens: int, guided_grammar: str = "") -> Sample:
        if guided_grammar and not self._supports_grammars:
            raise InvalidRequest("This model does not support grammars.")
        is_long = max_tokens == 1
        return Sample(
            computed_tokens=300 if is_long else 10,
            completion_tokens=max_tokens,
            first_token_s=2.0 if is_long else 0.1,
            decode_s=0.0 if is_long else self._decode_s * (2 if guided_grammar else 1),
        )


def measured(recorded: RecordedGateway) -> Any:
    arguments = argparse.Namespace(runs=3, max_tokens=16, prompt_words=200)
    return measure(recorded, "m", arguments, ready_s=4.0)  # type: ignore[arg-type]


def test_measure_computes_speeds_from_samples() -> None:
    result = measured(RecordedGateway())
    assert (result.model, result.device, result.start_to_ready_s, result.peak_memory_bytes) == ("m", "device", 4.0, 123)
    assert result.first_token_s == 0.1
    assert (result.prefill_tokens, result.prefill_tokens_per_s) == (300, 150.0)
    assert (result.decode_tokens, result.decode_tokens_per_s) == (48, 20.0)
    assert result.grammar_tokens_per_s == 10.0


def test_measure_without_grammar_support_leaves_speed_out() -> None:
    assert measured(RecordedGateway(supports_grammars=False)).grammar_tokens_per_s is None


def test_measure_of_single_piece_answers_fails() -> None:
    with pytest.raises(EngineFailed, match="--max-tokens"):
        measured(RecordedGateway(decode_s=0.0))


def test_bench_measures_scripted_model(folder: Path) -> None:
    """The script's pauses bound the times from below; how busy the machine is does not matter."""
    (folder / "config.toml").write_text(MODEL, encoding="utf-8")
    arguments = ("--runs", 3, "--max-tokens", 16, "--prompt-words", 200, "--model", "alias")
    done = gateway("bench", "--json", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["device"] == "simulated"
    assert result["first_token_s"] > 0.9 * FIRST_S
    assert result["prefill_tokens"] > 200
    assert result["prefill_tokens_per_s"] < result["prefill_tokens"] / (0.9 * FIRST_S)
    assert result["decode_tokens"] == 3 * 16
    assert result["decode_tokens_per_s"] > 0
    assert result["grammar_tokens_per_s"] > 0
    assert result["start_to_ready_s"] > 0
    assert 20e6 < result["peak_memory_bytes"] < 1e9


def test_bench_prints_table(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL, encoding="utf-8")
    done = gateway("bench", "--runs", 1, "--max-tokens", 4, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert rows == ["known", "start", "first", "prefill", "decode", "with", "peak"]


def test_bench_of_model_that_does_not_load_prints_one_line(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL.replace("replies", 'load_error = "It is broken.", replies'), "utf-8")
    done = gateway("bench", cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "It is broken" in done.stderr and len(done.stderr.splitlines()) == 1


def test_bench_with_config_mistake_prints_one_line(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL.replace("repeat", "repeet"), encoding="utf-8")
    done = gateway("bench", cwd=folder)
    assert done.returncode == 2
    assert "repeet" in done.stderr and len(done.stderr.splitlines()) == 1


def test_wait_until_ready_reports_last_log_line_of_ended_gateway() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('first line\\nlast line')"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stderr=log) as process,
        openai_client(f"http://127.0.0.1:{free_port()}/v1", "", retries=0) as client,
        closing(Gateway(process, client, log)) as ended,
    ):
        process.wait()
        with pytest.raises(EngineFailed, match="ended before the model was ready: last line"):
            ended.wait_until_ready("m")

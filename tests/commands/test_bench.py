"""`npu-gateway bench` measures a model whose speed is known, because it is scripted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import gateway

FIRST_S = 0.2
TOKEN_S = 0.02
MODEL = f"""
[server]
api_keys = {{ me = "secret" }}
[breaker]
latency_ms = 1
min_calls = 1
[models.known]
engine = "scripted"
aliases = ["alias"]
script = {{ replies = ["word"], repeat = true, ttft_s = {FIRST_S}, token_s = {TOKEN_S} }}
"""


def test_it_finds_the_speed_that_was_scripted(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL, encoding="utf-8")
    arguments = ("--runs", 3, "--max-tokens", 16, "--prompt-words", 200, "--model", "alias")
    done = gateway("bench", "--json", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["device"] == "simulated"
    assert result["first_token_s"] == pytest.approx(FIRST_S, rel=0.5)
    assert result["prefill_tokens"] > 200
    assert result["prefill_tokens_per_s"] == pytest.approx(result["prefill_tokens"] / FIRST_S, rel=0.5)
    assert result["decode_tokens"] == 3 * 16
    assert result["decode_tokens_per_s"] == pytest.approx(1 / TOKEN_S, rel=0.3)
    assert result["grammar_tokens_per_s"] == pytest.approx(1 / TOKEN_S, rel=0.3)
    assert 0.1 < result["start_to_ready_s"] < 30
    assert 20e6 < result["peak_memory_bytes"] < 1e9


def test_the_table_is_for_people(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL, encoding="utf-8")
    done = gateway("bench", "--runs", 1, "--max-tokens", 4, cwd=folder)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert rows == ["known", "start", "first", "prefill", "decode", "with", "peak"]


def test_a_model_that_does_not_load_is_one_line(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL.replace("replies", 'load_error = "It is broken.", replies'), "utf-8")
    done = gateway("bench", cwd=folder)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "It is broken" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_gateway_that_does_not_start_is_one_line(folder: Path) -> None:
    (folder / "config.toml").write_text(MODEL.replace("repeat", "repeet"), encoding="utf-8")
    done = gateway("bench", cwd=folder)
    assert done.returncode == 1
    assert "repeet" in done.stderr and len(done.stderr.splitlines()) == 1

"""`npu-gateway bench`: of a running gateway in this process, and once with a gateway that it starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway import cli
from gateway.commands.bench.report import read
from gateway.commands.completion.candidates import candidates
from gateway.config.tables import BreakerConfig, ServerConfig
from tests.support.paths import ROOT
from tests.support.processes import gateway
from tests.support.server import Running, config_of, scripted, serving

KEY = "secret"
FIRST_S = 0.1
OWN = f"""
[server]
api_keys = {{ me = "{KEY}" }}
[limits]
requests_per_minute = 1
models = []
[limits.keys.me]
tokens_per_minute = 1
[breaker]
latency_ms = 1
min_calls = 1
[models."known.model"]
engine = "scripted"
aliases = ["alias"]
script = {{ replies = ["word"], repeat = true, ttft_s = {FIRST_S}, token_s = 0.01 }}
[models."known.model".breaker]
enabled = true
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    quick = replace(
        scripted("word", repeat=True, token_s=0.001), breaker=BreakerConfig(latency_ms=60_000, token_ms=100)
    )
    models = {
        "quick": quick,
        "slow": scripted("word", repeat=True, ttft_s=0.02),
        "hangs": scripted("word", repeat=True, faults=[{"requests": [3], "stall_s": float("inf")}]),
        "breaks": scripted(faults=[{"error": "EngineFailed", "message": "It fell."}]),
    }
    breaker = BreakerConfig(latency_ms=10, token_ms=100, min_calls=3, open_s=3600)
    with serving(config_of(models, ServerConfig(api_keys={"me": KEY}), breaker=breaker)) as running:
        yield running


@pytest.fixture
def bench(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "config.toml").write_text(f'[server]\nport = {server.port}\napi_keys = {{ me = "{KEY}" }}\n', "utf-8")
    monkeypatch.chdir(tmp_path)

    def run(model: str, *arguments: str) -> tuple[int, str, str]:
        sizes = ("--max-tokens", "8", "--prompt-tokens", "64")
        code = cli.main(["bench", "--url", server.url, "--model", model, *sizes, *arguments])
        return code, *capsys.readouterr()

    return run


def test_running_gateway_is_measured_into_files(bench: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, output, errors = bench("quick", "--json", "a.json", "--plot", "a.svg", "--calibrate")
    assert (code, errors) == (0, "")
    report = read(tmp_path / "a.json")
    assert [answers.new_tokens for answers in report.answers] == [8]
    assert len(report.answers[0].runs) == 2 and report.answers[0].runs[0].tokens == 8
    assert report.budget and report.budget.latency_ms == 60_000 and report.gateway.startswith("http://")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").endswith("</svg>\n")
    assert "verdict\t8 tokens took" in output and "[breaker]\nlatency_ms = 1000\n" in output
    assert bench("quick", "--compare", "a.json", "a.json")[0] == 0


def test_breaker_that_opens_is_a_sentence_and_keeps_the_figures(bench: Callable[..., tuple[int, str, str]]) -> None:
    code, output, errors = bench("slow", "--json", "--seconds", "60")
    report = json.loads(output)
    assert code == 1 and len(report["answers"][0]["runs"]) == 2
    assert errors.startswith("npu-gateway: not complete: The circuit breaker refuses requests: slow is too slow now")
    assert len(errors.splitlines()) == 1


def test_failure_of_the_first_request_is_one_line(bench: Callable[..., tuple[int, str, str]]) -> None:
    assert bench("breaks") == (1, "", "npu-gateway: It fell.\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "a.png"), "--plot: 'a.png' does not end in .svg"),
        (("--json", "none/a.json"), "--json: 'none/a.json' is a folder, or in a folder that does not exist"),
        (("--compare", "none.json", "none.json"), "none.json: cannot be read"),
    ],
)
def test_mistake_is_found_before_the_measurement(
    bench: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], words: str
) -> None:
    code, output, errors = bench("quick", *arguments)
    assert (code, output) == (2, "") and words in errors


@pytest.mark.skipif(sys.platform == "win32", reason="a console of Windows is no pseudo terminal")
def test_interrupt_prints_what_is_measured(server: Running, tmp_path: Path) -> None:
    from tests.support.pseudo_terminal import pseudo_terminal

    (tmp_path / "config.toml").write_text(f'[server]\napi_keys = {{ me = "{KEY}" }}\n', encoding="utf-8")
    arguments = ("--url", server.url, "--api-key", KEY, "--model", "hangs", "--max-tokens", "16")
    with pseudo_terminal("bench", *arguments, cwd=tmp_path, columns=50) as terminal:
        terminal.read_until("4 of ")
        assert terminal.wait(key="\x03") == 130
    lines = terminal.output.replace("^C", "").splitlines()  # the terminal repeats the keys that come after the end
    assert lines[-1] == "npu-gateway: not complete: interrupted"
    assert any(line.lstrip().startswith("16 ") for line in lines) and "Traceback" not in terminal.output


def test_own_gateway_is_measured_without_its_breaker_and_its_limits(folder: Path) -> None:
    """The script's pauses bound the times from below; how busy the machine is does not matter."""
    (folder / "config.toml").write_text(OWN, encoding="utf-8")
    sizes = ("--max-tokens", 8, "--prompt-tokens", 64, "--runs", 2)
    done = gateway("bench", "--json", "--model", "alias", *sizes, cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    runs = report["answers"][0]["runs"]
    assert [run["tokens"] for run in runs] == [8, 8] and all(run["first_s"] > 0.9 * FIRST_S for run in runs)
    assert report["device"] == "simulated" and report["budget"]["latency_ms"] == 1 and report["stopped"] == ""
    assert report["start_to_ready_s"] > 0 and report["memory"]["gateway_bytes"] > 20e6
    assert report["machine"]["cores"] > 0 and report["grammar"]["constrained"]


def test_page_of_commands_has_every_option() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").partition("## bench")[2].partition("\n## ")[0]
    common = {"--help", "--config", "--model", "--provider", "--api-key"}
    options = {option for option, _ in candidates(cli.make_parser(), ["bench"], "--")} - common
    assert len(options) > 5 and [option for option in options if option not in page] == []

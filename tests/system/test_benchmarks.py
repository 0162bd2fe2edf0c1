"""Every benchmark runs in its quick form and writes its section. The figures of a quick run are not checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peer.install import check_llama_server
from benchmarks.processes import running
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return Path(shutil.copy(PAGE, tmp_path))


def run(name: str, page: Path, *options: str, section: str = "") -> str:
    """Run the benchmark; return its section of the page. Its name is that of the benchmark, unless it is given."""
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", "--write", str(page), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr
    name = section or name
    text = page.read_text(encoding="utf-8").split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    assert f"![{name}](benchmarks-{name}.svg)" in text
    assert page.with_name(f"benchmarks-{name}.svg").read_text(encoding="utf-8").endswith("</svg>\n")
    return text


def test_npu_model_reports_gain_of_prefix_cache(page: Path) -> None:
    section = run("npu_model", page)
    assert section.startswith("\n**Simulated**")
    assert "| x2-elite | first token of a second turn (1064 + 30 tokens): prefix cache | 0.576 s | 0.064 s |" in section


def test_memory_budget_answers_every_request_with_models_that_do_not_fit_together(page: Path) -> None:
    assert "| requests, each with the right answer | 4 of 4 |" in run("memory_budget", page)


def test_overhead_reports_cost_of_a_chunk(page: Path) -> None:
    assert "**a streamed chunk minus the bare engine, CPU time**" in run("overhead", page)


def test_proxy_reports_what_each_chunk_waits(page: Path) -> None:
    section = run("proxy", page, "--only", "latency", section="proxy-latency")
    assert "| ms | directly | npu-gateway adds |" in section and "| a chunk of 2 streams, p99 | " in section


@pytest.mark.slow
def test_proxy_reports_each_number_of_targets(page: Path) -> None:
    assert "\n| 4 | " in run("proxy", page, "--only", "targets", section="proxy-targets")


@pytest.mark.slow
def test_proxy_reports_a_flood_with_and_without_limits(page: Path) -> None:
    section = run("proxy", page, "--only", "flood", section="proxy-flood")
    assert "\n| unlimited | " in section and "\n| 1 | " in section


@pytest.mark.slow
def test_host_cost_reports_each_part_of_a_step(page: Path, smollm2: Path) -> None:
    section = run("host_cost", page)
    assert "| cache write-back |" in section and "| temperature, top_p; flat |" in section


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_start_reports_each_process(page: Path, smollm2: Path) -> None:
    section = run("start", page)
    assert "| npu-gateway | all | " in section and "|  |  | worker | " in section


@pytest.mark.slow
def test_prediction_gives_same_tokens_in_every_way(page: Path, smollm2: Path) -> None:
    assert "Every way gave the same tokens." in run("prediction", page)


@pytest.mark.slow
def test_speculation_compares_ways_on_real_texts(page: Path, smollm2: Path) -> None:
    assert "| chat (16 tokens) | lookup | " in run("speculation", page)


@pytest.mark.slow
def test_forecast_compares_predicted_and_measured_ttft(page: Path, smollm2: Path) -> None:
    assert "| prompt | predicted TTFT, ms | measured TTFT, ms | ratio |" in run("forecast", page)


@pytest.mark.slow
def test_threads_reports_each_call(page: Path, smollm2: Path) -> None:
    assert "| smollm2-135m | step of 4 | " in run("threads", page, "--threads", "1,2")


@pytest.mark.slow
def test_peers_leaves_out_a_server_that_is_not_installed(page: Path, smollm2: Path, tmp_path: Path) -> None:
    section = run("peers", page, "--peers", str(tmp_path / "none"), section="peers-135m")
    assert "|  | npu-gateway | calm pairs |\n" in section


def test_second_run_replaces_only_its_own_section(page: Path) -> None:
    before = page.read_text(encoding="utf-8")
    for _ in range(2):
        run("npu_model", page)
    after = page.read_text(encoding="utf-8")
    assert after.count("<!-- npu_model -->") == after.count("![npu_model]") == 1
    assert after.partition("<!-- npu_model -->")[0] == before.partition("<!-- npu_model -->")[0]
    assert after.partition("<!-- /npu_model -->")[2] == before.partition("<!-- /npu_model -->")[2]


def test_server_that_ends_early_shows_its_error_output() -> None:
    program = "import sys; sys.exit('libllama.so.0: cannot open shared object file')"
    with running([sys.executable, "-c", program]) as server:
        server.process.wait()
        with pytest.raises(SystemExit, match=r"exit code 1(?s:.)*libllama.so.0: cannot open shared object file"):
            server.wait_until_ready(1, "/health")


@pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")
def test_install_reports_the_loaders_message(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    server.write_text(
        "#!/bin/sh\necho 'libllama.so.0: cannot open shared object file' >&2\nexit 127\n", encoding="utf-8"
    )
    server.chmod(0o755)
    with pytest.raises(SystemExit, match=r"does not start:\nlibllama.so.0: cannot open shared object file"):
        check_llama_server(tmp_path)

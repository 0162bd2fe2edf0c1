"""`npu-gateway ps`: what it shows of each gateway."""

from __future__ import annotations

import json
import os

import pytest

from gateway.commands.running.ps import duration
from gateway.commands.running.run_file import RunFile, announced
from tests.commands.running.conftest import Command
from tests.support.processes import free_port


def test_ps_lists_models_of_every_gateway(found: RunFile, command: Command) -> None:
    code, output, errors = command("ps")
    assert (code, errors) == (0, "")
    paris, rome = (line.split("\t") for line in output.splitlines())
    assert paris[:3] == ["paris", "ready", "simulated"] and rome[:2] == ["rome", "failed"]
    assert paris[4:6] == ["0", "closed"] and paris[6].endswith(" s")
    assert paris[7] == f"{found.url} (pid {os.getpid()})"


def test_ps_json_has_everything_but_the_token(found: RunFile, command: Command) -> None:
    code, output, _ = command("ps", "--json", "--port", found.port)
    [gateway] = json.loads(output)
    assert code == 0 and found.token not in output and "token" not in gateway
    assert (gateway["pid"], gateway["port"], gateway["error"]) == (os.getpid(), found.port, "")
    assert gateway["memory_bytes"] > 1e7 and gateway["uptime_s"] >= 0
    assert [model["engine"]["state"] for model in gateway["models"]] == ["ready", "failed"]


def test_gateway_that_does_not_answer_is_a_row(command: Command) -> None:
    port = free_port()
    with announced(RunFile(url=f"http://127.0.0.1:{port}", host="127.0.0.1", port=port)):
        code, output, _ = command("ps")
    assert code == 0 and len(output.splitlines()) == 1
    assert output.startswith(f"-\tno server answers at http://127.0.0.1:{port}; start one with `npu-gateway serve`\t")


def test_ps_without_a_gateway_names_the_next_step(command: Command) -> None:
    assert command("ps") == (0, "", "No gateway runs; start one with `npu-gateway serve`.\n")
    assert command("ps", "--json")[1] == "[]\n"


def test_ps_of_another_server_says_that_it_is_none(command: Command, found: RunFile) -> None:
    code, output, _ = command("ps", "--url", f"{found.url}/nowhere")
    assert code == 0 and "Unknown path" in output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (62, "1 min 2 s"), (3600, "1 h 0 min"), (90061, "1 d 1 h"), (8_640_000, "100 d 0 h")],
)
def test_duration_has_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text

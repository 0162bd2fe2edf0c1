"""`npu-gateway chat` against a real gateway, typed to as a person would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config import ScriptedModel, ServerConfig
from tests.support.processes import free_port, gateway
from tests.support.server import Running, config_of, scripted, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {
        "first": scripted("It is Paris.", "It is Rome."),
        "breaks": ScriptedModel(script={"faults": [{"error": "EngineFailed", "message": "It fell."}]}),
    }
    with serving(config_of(models, ServerConfig(api_keys={"me": "secret"}))) as running:
        yield running


def chat(server: Running, folder: Path, typed: str, *arguments: str, key: str = "secret") -> tuple[int, str, str]:
    url = f"{server.url}/v1"
    done = gateway("chat", "--url", url, "--api-key", key, *arguments, cwd=folder, stdin=typed)
    return done.returncode, done.stdout, done.stderr


def test_a_conversation(server: Running, folder: Path) -> None:
    code, said, errors = chat(server, folder, "France?\n\nItaly?\n/new\nFrance?\n/exit\nnever read\n")
    assert (code, errors) == (0, "")
    assert said.startswith(f"first at {server.url}/v1")
    assert said.count("It is Paris.") == 2 and said.count("It is Rome.") == 1
    assert said.count(" tokens in ") == 3


def test_the_end_of_input_ends_it(server: Running, folder: Path) -> None:
    assert chat(server, folder, "", "--system", "Be brief.", "--max-tokens", "5")[0] == 0


def test_a_refused_question_does_not_end_it(server: Running, folder: Path) -> None:
    code, said, errors = chat(server, folder, "a\nb\n", "--model", "breaks")
    assert (code, errors) == (0, "")
    assert said.count("It fell.") == 2


def test_a_wrong_key_is_one_line_in_the_gateways_words(server: Running, folder: Path) -> None:
    code, _, errors = chat(server, folder, "", key="wrong")
    assert code == 1
    assert errors.startswith("npu-gateway: ") and len(errors.splitlines()) == 1 and "key" in errors


def test_nobody_there(folder: Path) -> None:
    done = gateway("chat", cwd=folder, variables={"NPU_GATEWAY_SERVER_PORT": str(free_port())})
    assert done.returncode == 1
    assert "nobody answers at http://127.0.0.1:" in done.stderr and "npu-gateway serve" in done.stderr

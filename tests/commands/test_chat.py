"""`npu-gateway chat` as a process, with its input on stdin, against a gateway over a socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.config.tables import ServerConfig
from tests.support.processes import free_port, gateway
from tests.support.server import Running, config_of, scripted, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {
        "first": scripted("It is Paris.", "It is Rome."),
        "breaks": scripted(faults=[{"error": "EngineFailed", "message": "It fell."}]),
    }
    with serving(config_of(models, ServerConfig(api_keys={"me": "secret"}))) as running:
        yield running


def chat(server: Running, folder: Path, lines: str, *arguments: str, key: str = "secret") -> tuple[int, str, str]:
    url = f"{server.url}/v1"
    done = gateway("chat", "--url", url, "--api-key", key, *arguments, cwd=folder, stdin=lines)
    return done.returncode, done.stdout, done.stderr


def test_chat_keeps_messages_until_new(server: Running, folder: Path) -> None:
    code, output, errors = chat(server, folder, "France?\n\nItaly?\n/new\nFrance?\n/exit\nnever read\n")
    assert (code, errors) == (0, "")
    assert output.startswith(f"first at {server.url}/v1")
    assert output.count("It is Paris.") == 2 and output.count("It is Rome.") == 1
    assert output.count(" tokens in ") == 3


def test_chat_ends_at_end_of_input(server: Running, folder: Path) -> None:
    assert chat(server, folder, "", "--system", "Be brief.", "--max-tokens", "5")[0] == 0


def test_chat_continues_after_refused_question(server: Running, folder: Path) -> None:
    code, output, errors = chat(server, folder, "a\nb\n", "--model", "breaks")
    assert (code, errors) == (0, "")
    assert output.count("It fell.") == 2


def test_chat_with_wrong_key_prints_one_line(server: Running, folder: Path) -> None:
    code, _, errors = chat(server, folder, "", key="wrong")
    assert code == 1
    assert errors.startswith("npu-gateway: ") and len(errors.splitlines()) == 1 and "key" in errors


def test_chat_without_gateway_prints_its_address(folder: Path) -> None:
    done = gateway("chat", cwd=folder, variables={"NPU_GATEWAY_SERVER_PORT": str(free_port())})
    assert done.returncode == 1
    assert "no server answers at http://127.0.0.1:" in done.stderr and "npu-gateway serve" in done.stderr

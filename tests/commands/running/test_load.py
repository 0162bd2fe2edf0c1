"""`npu-gateway load` and `unload`."""

from __future__ import annotations

from gateway.commands.running.run_file import RunFile
from tests.commands.running.conftest import Command
from tests.support.server import Running


def test_unload_and_load(found: RunFile, server: Running, command: Command) -> None:
    assert command("unload", "paris") == (0, "paris is unloaded; the next request for it loads it\n", "")
    assert command("ps")[1].startswith("paris\tunloaded\tsimulated\t")
    with server.http() as http:
        assert http.get("/readyz").json()["ready"]
    code, output, _ = command("load", "PARIS:latest", "--port", found.port)
    assert code == 0 and output.startswith("paris is ready on simulated, loaded in ")


def test_refusals_are_one_line(found: RunFile, command: Command) -> None:
    code, output, errors = command("unload", "pariss")
    assert (code, output) == (1, "")
    assert errors == "npu-gateway: The model 'pariss' does not exist; did you mean 'paris'?\n"
    code, _, errors = command("load", "rome")
    assert code == 1 and errors == "npu-gateway: rome could not be loaded: no file\n"
    code, _, errors = command("load", "../a b/ü")
    assert code == 1 and "The model '../a b/ü' does not exist" in errors


def test_load_without_a_gateway_names_the_next_step(command: Command) -> None:
    code, _, errors = command("load", "paris")
    assert code == 1 and "start one with `npu-gateway serve`" in errors

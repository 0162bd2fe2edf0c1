from __future__ import annotations

import errno
import os
import socket
from contextlib import closing

import psutil
import pytest

from gateway.commands.doctor import port as module
from gateway.commands.doctor.port import Holder, bind_error, holder_of, port, port_finding
from gateway.commands.running.run_file import RunFile
from gateway.config.tables import ServerConfig

RUN = RunFile(url="http://127.0.0.1:8000", host="127.0.0.1", port=8000, pid=77)
IN_USE = OSError(errno.EADDRINUSE, "in use")


@pytest.mark.parametrize(
    ("number", "gateways", "fault", "holder", "level", "text"),
    [
        (8000, [], None, None, "ok", "8000 is free"),
        (8000, [RUN], IN_USE, None, "ok", "port 8000 is held by npu-gateway"),
        (8000, [], IN_USE, Holder(pid=5, name="python"), "bad", "port 8000 is held by python (pid 5)"),
        (8000, [], IN_USE, Holder(), "bad", "port 8000 is held by a program that only an administrator can see"),
        (9000, [RUN], IN_USE, Holder(pid=5), "note", "port 9000 is held by a program (pid 5)"),
        (80, [], OSError(errno.EACCES, "no"), None, "bad", "this user may not listen on port 80"),
        (8000, [], OSError(errno.EADDRNOTAVAIL, "no address"), None, "bad", "cannot listen on port 8000: no address"),
    ],
)
def test_port_is_explained(
    number: int, gateways: list[RunFile], fault: OSError | None, holder: Holder | None, level: str, text: str
) -> None:
    found = port_finding(number, gateways, fault, holder)
    assert found.level == level and text in found.detail
    assert fault is None or (found.cause == "port" and "--port" in found.step)


def test_program_that_holds_the_port_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "running_gateways", list)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        number = taken.getsockname()[1]
        assert holder_of(number).pid == os.getpid()
        [found] = port(ServerConfig(port=number))
    assert f"(pid {os.getpid()})" in found.detail
    assert bind_error("127.0.0.1", 0) is None


def test_missing_rights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr("psutil.net_connections", refuse)
    assert str(holder_of(8000)) == "a program that only an administrator can see"

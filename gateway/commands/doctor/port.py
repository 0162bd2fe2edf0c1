"""Whether the configured port is free, and which program holds it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import psutil
from msgspec import Struct

from gateway.commands.doctor.finding import Finding
from gateway.commands.running.run_file import RunFile, running_gateways
from gateway.config.tables import ServerConfig


class Holder(Struct, frozen=True, kw_only=True):
    """Who listens on a port. `pid`: None if it cannot be seen."""

    pid: int | None = None
    name: str = ""

    def __str__(self) -> str:
        if self.pid is None:
            return "a program that only an administrator can see"
        return f"{self.name or 'a program'} (pid {self.pid})"


def port(server: ServerConfig) -> Iterator[Finding]:
    fault = bind_error(server.host, server.port)
    yield port_finding(server.port, running_gateways(), fault, holder_of(server.port) if fault else None)


def port_finding(number: int, gateways: list[RunFile], fault: OSError | None, holder: Holder | None) -> Finding:
    """Args:
    gateways: those that run.
    fault: why the gateway could not listen now; None: it can.
    holder: who listens on it.
    """
    own = next((run for run in gateways if run.port == number), None)
    if own:
        because, step = f"port {number} is held by npu-gateway {own.version} (pid {own.pid})", "`npu-gateway stop`"
        return Finding("ok", "port", because, "port", because, f"{step}, or `npu-gateway serve --port {number + 1}`")
    if fault is None:
        return Finding("ok", "port", f"{number} is free")
    if fault.errno in (errno.EACCES, errno.EPERM):
        because = f"this user may not listen on port {number}"
    elif fault.errno == errno.EADDRINUSE:
        because = f"port {number} is held by {holder or Holder()}"
    else:
        because = f"the gateway cannot listen on port {number}: {fault.strerror or fault}"
    elsewhere = number + 1 if number > 1023 else 8000
    step = f"end that program, or start with `npu-gateway serve --port {elsewhere}`"
    return Finding("note" if gateways else "bad", "port", because, "port", because, step)


def bind_error(host: str, number: int) -> OSError | None:
    """Why a server cannot listen there now."""
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    try:
        with closing(socket.create_server((bare, number), family=family)):
            return None
    except OSError as error:
        if error.errno is None:
            return OSError(errno.EADDRNOTAVAIL, str(error))
        return error


def holder_of(number: int) -> Holder:
    """The program that listens on the port, as far as this user can see it."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # macOS shows them to an administrator only
        return Holder()
    for each in connections:
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == number and each.pid:
            name = ""
            with suppress(psutil.Error):
                name = psutil.Process(each.pid).name()
            return Holder(pid=each.pid, name=name)
    return Holder()

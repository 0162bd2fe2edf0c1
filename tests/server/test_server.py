"""The listening socket, signals and shutdown."""

from __future__ import annotations

import asyncio
import errno
import inspect
import math
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import httpx
import pytest

from gateway.app import create_app
from gateway.config.tables import ModelConfig, ServerConfig
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import ConfigError
from gateway.server.server import Server, bind, other_loopback
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, environment
from tests.support.reloading import File
from tests.support.routing import model
from tests.support.server import Running, config_of, scripted, serving, wait_until
from tests.support.stepped_device import SteppedDevice
from tests.support.virtual_time import Inline, VirtualLoop, in_virtual_time

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_bind_to_an_occupied_port_is_a_config_error() -> None:
    with bind(ServerConfig(port=0)) as taken, pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1"):
        bind(ServerConfig(port=taken.getsockname()[1]))


def test_accepted_connections_send_small_frames_at_once(server: Running, http: httpx.Client) -> None:
    http.get("/healthz")
    sockets = [c.transport.get_extra_info("socket") for c in server.server.server_state.connections]
    assert sockets and all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for s in sockets)


#: Prints the port when the main loop waits: `call_soon` runs after the code that follows `on_started` up to its wait.
SERVE = """
import asyncio
from gateway.app import create_app
from gateway.config.tables import BreakerConfig, Config, Script, ScriptedModel, ServerConfig
from gateway.server import server
from gateway.server.server import bind, serve
server._TICK_S = 3600.0  # only the signal can end the wait between two ticks
model = ScriptedModel(script=Script(replies=("a b c d e f g h",), token_s=0.1))
config = Config(server=ServerConfig(port=0), breaker=BreakerConfig(enabled=False), models={"m": model})
with bind(config.server) as listener:
    port = listener.getsockname()[1]
    print_port = lambda: asyncio.get_running_loop().call_soon(lambda: print(port, flush=True))
    serve(create_app(config), config.server, listener=listener, on_started=print_port)
print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send a signal to a process with a separate console")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_stream_finish_and_exits_with_success(sig: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200, "the model is not ready")
            with http.stream("POST", PATH, json={**CHAT, "stream": True}) as response:
                text = response.iter_text()
                received = next(text)
                process.send_signal(sig)
                received += "".join(text)
        assert received.endswith("data: [DONE]\n\n")
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            pass
        assert process.wait(60) == 0
        assert process.stdout.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send a signal to a process with a separate console")
def test_signal_stops_an_idle_server() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVE], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            process.send_signal(signal.SIGHUP)  # the terminal is closed
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_draining_gateway_is_not_ready_and_still_answers() -> None:
    device = SteppedDevice()
    config = config_of({"m": scripted("a b c")}, ServerConfig(drain_s=3600))
    engine = ScriptedEngine("m", scripted("a b c"), clock=device.clock, sleep=device.sleep)
    with (
        serving(config, {"m": engine}) as server,
        server.http() as running,
        server.http() as kept,
        ThreadPoolExecutor(1) as pool,
    ):
        assert "connection" not in kept.get("/readyz").headers
        device.allowed = device.calls + 1
        begun = pool.submit(running.post, PATH, json=CHAT)
        wait_until(lambda: device.calls > device.allowed, "the answer did not begin")
        server.stop()
        wait_until(lambda: server.app.state.is_stopping, "the signal had no effect")
        unready = kept.get("/readyz")
        assert (unready.status_code, unready.json()["ready"], unready.headers["connection"]) == (503, False, "close")
        assert kept.get("/healthz").status_code == 200
        device.allowed = math.inf
        for reply in (kept.post(PATH, json=CHAT), begun.result(PATIENCE_S)):
            assert (reply.status_code, reply.headers["connection"]) == (200, "close")
        assert server.server._loop is not None
        asyncio.run_coroutine_threadsafe(server.server.on_tick(0), server.server._loop).result(PATIENCE_S)
        assert kept.get("/healthz").headers["connection"] == "close"
        assert not server.server.should_exit  # the second signal, at the end of `serving`, ends it


@in_virtual_time
async def test_drain_ends_after_its_time() -> None:
    config = config_of({"m": model()}, ServerConfig(drain_s=20))
    loop = asyncio.get_running_loop()
    with bind(config.server) as listener:
        server = Server(create_app(config), config.server)
        serving = asyncio.create_task(server.serve([listener]))
        await asyncio.sleep(60)
        server.handle_exit(signal.SIGTERM, None)
        begun = loop.time()
        await serving
    assert 20 <= loop.time() - begun < 22


async def test_request_that_waits_in_the_socket_at_the_signal_is_answered() -> None:
    config = config_of({"m": model()})
    with bind(config.server) as listener:
        started = asyncio.Event()
        server = Server(create_app(config), config.server, started.set)
        serving = asyncio.create_task(server.serve([listener]))
        await started.wait()
        with socket.create_connection(listener.getsockname()[:2], PATIENCE_S) as connection:  # the system accepts
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.handle_exit(signal.SIGTERM, None)
            await serving
            received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200") and b"connection: close\r\n" in received


def test_hangup_during_the_start_does_not_stop_the_server() -> None:
    config = config_of({"m": model()})
    seen: list[bool] = []

    def started() -> None:
        server._hung_up(1, None)
        seen.append(server.should_exit)
        server.handle_exit(signal.SIGTERM, None)

    with bind(config.server) as listener:
        server = Server(create_app(config, source=File(config)), config.server, started)
        server.run([listener])
    assert seen == [False]


def test_delay_of_the_event_loop_is_measured_each_second(server: Running, http: httpx.Client) -> None:
    def count() -> float:
        text = http.get("/metrics").text
        [line] = [line for line in text.splitlines() if line.startswith("gateway_event_loop_delay_seconds_count ")]
        return float(line.split()[1])

    before = count()
    wait_until(lambda: count() >= before + 2, "the event loop has not been measured")


#: A callback of the gateway that uses the processor for 100 ms, then the stop.
BLOCKED = """
import asyncio, logging, time
logging.basicConfig()
from gateway.app import create_app
from gateway.config.tables import Config, ScriptedModel, ServerConfig
from gateway.server.server import Server, bind

def block():
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    server.handle_exit(15, None)

config = Config(server=ServerConfig(port=0), models={"m": ScriptedModel()})
with bind(config.server) as listener:
    server = Server(create_app(config), config.server, lambda: asyncio.get_running_loop().call_soon(block))
    server.run(sockets=[listener])
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_blocked_event_loop_is_logged_in_debug_mode(debug: str) -> None:
    variables = environment(PYTHONASYNCIODEBUG=debug)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0
    assert ("blocked the event loop: " in done.stderr and "block()" in done.stderr) == (debug == "1"), done.stderr


def test_both_loopback_addresses_are_served(server: Running) -> None:
    for host in ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",):
        with socket.create_connection((host, server.port), timeout=PATIENCE_S) as connection:
            name = f"[{host}]" if ":" in host else host
            connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_second_loopback_socket_has_the_same_port(host: str) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with bind(ServerConfig(host=host, port=0)) as listener:
        [other] = other_loopback(listener)
        with other:
            assert other.getsockname()[:2] == ("::1", listener.getsockname()[1])
            assert other_loopback(listener) == []  # the port is taken
            assert other_loopback(other) == []


def test_machine_without_ipv6_has_one_loopback_socket(caplog: pytest.LogCaptureFixture) -> None:
    def listen(_host: str, _port: int) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    with bind(ServerConfig(port=0)) as listener:
        assert other_loopback(listener, listen) == []
    assert caplog.records == []


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


async def test_second_interrupt_that_comes_just_before_the_wait_for_it_is_seen() -> None:
    server = Server(create_app(config_of({"m": model()})), ServerConfig())
    server._loop = asyncio.get_running_loop()

    class Interrupted(asyncio.Event):
        def _get_loop(self) -> asyncio.AbstractEventLoop:  # `wait` calls it after its look at the flag
            server.handle_exit(signal.SIGINT, None)
            return asyncio.get_running_loop()

    server._no_grace = Interrupted()
    server.handle_exit(signal.SIGINT, None)
    async with asyncio.timeout(PATIENCE_S):
        await server._no_grace.wait()
    assert not server.force_exit


async def test_client_that_comes_while_the_listener_closes_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """In debug mode asyncio reports a connection that has no transport yet when its server is closed."""
    message = "Error on transport creation for incoming connection"
    assert message in inspect.getsource(asyncio.selector_events)
    loop, server = asyncio.get_running_loop(), Server(create_app(config_of({"m": model()})), ServerConfig())
    for stops in (False, True):
        server.should_exit = stops
        caplog.clear()
        server._loop_failed(loop, {"message": message, "exception": AssertionError()})
        assert (message in caplog.text) is not stops


class NoBundles:
    """BetterBundles without work."""

    def next(self, served: Mapping[str, ModelConfig]) -> str | None:
        return None

    def advance(self, name: str, report: Callable[[str], None]) -> ModelConfig | None: ...

    def moved(self, name: str) -> None: ...

    def failed(self, name: str, reason: str) -> None: ...

    def stop(self) -> None: ...


@in_virtual_time
async def test_without_a_connection_no_timer_wakes_the_gateway() -> None:
    config = config_of({"m": model("hi", memory_mb=10)})
    app = create_app(config, source=File(config), better_bundles=NoBundles())
    loop = cast(VirtualLoop, asyncio.get_running_loop())
    loop.set_default_executor(Inline())
    with bind(config.server) as listener:
        server = Server(app, config.server)
        serving = asyncio.create_task(server.serve([listener]))
        await asyncio.sleep(60)  # it starts, and the model loads
        before = loop.wake_ups
        await asyncio.sleep(1000)
        wake_ups = loop.wake_ups - before - 1  # the test's own
        server.handle_exit(signal.SIGTERM, None)
        await serving
    assert wake_ups <= 2, "the memory manager may look at an idle model each ten minutes"

"""Two gateways behind a third one are restarted in turn, as after an upgrade, while clients send requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from gateway.app import create_app
from gateway.config.tables import ServerConfig
from gateway.server.server import Server, bind
from tests.support.server import PATIENCE_S, config_of, scripted, serving, wait_until
from tests.system.targets.backends import targets_of

REPLY = "one two three four five six seven eight"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Count."}], "max_tokens": 20}
PATH = "/v1/chat/completions"


class Restarted:
    """A gateway in a thread. `restart` ends it with SIGTERM and starts it again on the same port."""

    def __init__(self) -> None:
        self.port = 0
        self._start()

    def restart(self) -> None:
        self.stop()
        self._start()

    def stop(self) -> None:
        self._server.handle_exit(15, None)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the gateway did not stop"

    def _start(self) -> None:
        model = scripted(REPLY, token_s=0.002)
        config = config_of({"m": model}, ServerConfig(shutdown_grace_s=PATIENCE_S))
        listener = bind(ServerConfig(port=self.port))
        self.port = listener.getsockname()[1]
        started = threading.Event()
        self._server = Server(create_app(config), config.server, started.set)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        assert started.wait(PATIENCE_S)
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=PATIENCE_S) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200, "the gateway is not ready")


@contextmanager
def restarted(count: int) -> Iterator[list[Restarted]]:
    running: list[Restarted] = []
    try:
        running += [Restarted() for _ in range(count)]
        yield running
    finally:
        for each in running:
            each.stop()


def test_restart_of_one_gateway_after_the_other_fails_no_request() -> None:
    done: list[str] = []
    is_over = threading.Event()

    def client(number: int) -> list[str]:
        failures = []
        with front.http() as http:  # it keeps its connection
            while not is_over.is_set():
                stream = number % 2 == 0
                reply = http.post(PATH, json={**CHAT, "stream": stream})
                is_whole = "[DONE]" in reply.text if stream else REPLY in reply.text
                if reply.status_code != 200 or not is_whole or '"error"' in reply.text:
                    failures.append(f"{reply.status_code} {reply.text[-300:]}")
                done.append(reply.headers.get("x-gateway-route", ""))
        return failures

    with restarted(2) as backends:
        model = targets_of(*(f"http://127.0.0.1:{each.port}/v1" for each in backends))
        with serving(config_of({"m": model})) as front, ThreadPoolExecutor(6) as pool:
            clients = [pool.submit(client, number) for number in range(6)]
            try:
                for each in backends:
                    before = len(done)
                    wait_until(lambda before=before: len(done) >= before + 20, "requests do not end")  # type: ignore[misc]
                    each.restart()
                before = len(done)
                wait_until(lambda: len(done) >= before + 20, "requests do not end")
            finally:
                is_over.set()
            failures = [failure for each in clients for failure in each.result(PATIENCE_S)]
    assert failures == []
    assert {route.partition(";")[0] for route in done} == {f"127.0.0.1:{each.port}" for each in backends}

"""A gateway process of the same configuration that is measured and stopped, without its circuit breaker."""

from __future__ import annotations

import argparse
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import IO, TYPE_CHECKING

from gateway.commands.bench.requests import Target
from gateway.commands.client import openai_client
from gateway.errors import EngineFailed

if TYPE_CHECKING:
    from gateway.config.tables import Config

LONGEST_S = 900.0  # for loading, and for one request: a first start compiles for minutes
_POLL_S = 0.05
_RATES = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


class OwnGateway:
    """The process, which `close` ends, and its model."""

    def __init__(self, process: subprocess.Popen[bytes], target: Target, log: IO[bytes]) -> None:
        self.target = target
        self.process = process
        self._started_at = time.monotonic()
        self._log = log

    def close(self) -> None:
        self.process.terminate()

    def wait_until_ready(self) -> float:
        """Seconds from the start of the process until the model is ready. Raises EngineFailed."""
        from openai import APIConnectionError

        while True:
            waited_s = time.monotonic() - self._started_at
            if self.process.poll() is not None:
                raise EngineFailed(f"The gateway ended before the model was ready: {self._last_log_line()}")
            if waited_s > LONGEST_S:
                raise EngineFailed(f"The model was not ready after {waited_s:.0f} s: {self._last_log_line()}")
            with suppress(APIConnectionError):
                if self._is_ready():
                    return time.monotonic() - self._started_at
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        state = self.target.card()["state"]
        if state == "failed":
            raise EngineFailed(f"The model did not load: {self._last_log_line()}")
        return bool(state == "ready")

    def _last_log_line(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"


@contextmanager
def own_gateway(arguments: argparse.Namespace, config: Config, model: str) -> Iterator[OwnGateway]:
    """`npu-gateway serve MODEL` as a process on a free port of loopback; stopped at the end."""
    from gateway.config.file import UNLISTED, environment_with
    from gateway.config.tables import LimitsConfig
    from gateway.config.value import upper

    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    key, no_limits = next(iter(config.server.api_keys.values()), ""), dict[str, str]()
    if config.state.keys or config.limits != LimitsConfig():  # a key without limits, in place of the configured ones
        key = secrets.token_hex(16)
        no_limits = {f"LIMITS_{upper(name)}": "unlimited" for name in _RATES} | {"LIMITS_MODELS": "*", "API_KEY": key}
    url = f"http://127.0.0.1:{port}"
    client = openai_client(f"{url}/v1", key, timeout_s=LONGEST_S, retries=0)
    command = [sys.executable, "-m", "gateway", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--config", str(arguments.config)] if arguments.config else []
    command += ["--provider", arguments.provider] if arguments.provider else []
    own = {f"MODELS_{upper(name)}_BREAKER_ENABLED": "false" for name, table in config.models.items() if table.breaker}
    environment = {**environment_with(BREAKER_ENABLED="false", **own, **no_limits), UNLISTED: "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment) as process,
        closing(OwnGateway(process, Target(client, url, model), log)) as gateway,
        client,
    ):
        yield gateway

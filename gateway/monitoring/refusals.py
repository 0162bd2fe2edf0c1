"""What the log says about requests that no model gets: a wrong key, host, path, body, or protocol.

    12:00:00 WARNING 403 GET /v1/models from 172.17.0.2: The host name 'x' is not allowed. Add it to config.toml: ...

One line for each cause in a minute. The line never has a key or a prompt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gateway.errors import BodyTimeout, GatewayError, InvalidRequest, Unauthorized
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.output import escape
from gateway.monitoring.request_line import error_text, printable
from gateway.monitoring.throttle import Throttle

NO_REQUEST = "(no request)"  # in place of a path, for bytes that are not HTTP
_HINTS: dict[type[GatewayError], str] = {
    Unauthorized: "; the keys are in [server] api_keys of config.toml, and those of [state] in `npu-gateway keys list`"
}
_TLS_HANDSHAKE = b"\x16\x03"

_log = logging.getLogger(__name__)


class RefusalLog:
    """Logs refusals and counts replies. One for each gateway.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._throttle = Throttle(clock)

    def refused(self, method: str, path: str, client: tuple[str, int] | None, error: GatewayError) -> None:
        """Write the line of a request that no model got."""
        request = f"{printable(method)} {printable(path)} from {_host(client)}"
        has_prompt = isinstance(error, InvalidRequest)  # the others quote names and addresses
        text = error_text(error.message) if has_prompt else escape(error.message).rstrip(".")
        self._write(f"{error.status} {request}: {text}{_HINTS.get(type(error), '')}")

    def no_request(self, client: tuple[str, int] | None, data: bytes, error: GatewayError) -> None:
        """Write the line of bytes that are no complete HTTP request, and count the reply. `data`: the first bytes."""
        self._metrics.http_response(NO_REQUEST, error.status)
        if isinstance(error, BodyTimeout):
            self._write(f"{_host(client)}: {error.message.rstrip('.')}")
        elif data.startswith(_TLS_HANDSHAKE):
            self._write(f"{_host(client)} spoke HTTPS to this HTTP port; use http:// in its address of the gateway")
        else:
            self._write(f"{_host(client)} sent something that is not HTTP/1.1")

    def connection_closed(self, client: tuple[str, int] | None, reason: str) -> None:
        """Write why the gateway closed a connection without a reply."""
        self._write(f"the connection of {_host(client)} was closed: {reason}")

    def no_connection(self, error: OSError) -> None:
        """Write that the system accepts no more connections. asyncio tries again, hundreds of times a second."""
        self._write(f"the system allows no more open files, so new connections wait: {error.strerror}")

    def _write(self, line: str) -> None:
        suffix = self._throttle.suffix(line)
        if suffix is not None:
            _log.warning("%s%s", line, suffix)


def _host(client: tuple[str, int] | None) -> str:
    return client[0] if client else "an unknown address"


def is_no_refusal(record: logging.LogRecord) -> bool:
    """False for uvicorn's lines about bytes that are not HTTP, and about a reply that its client does not read.
    RefusalLog and server/sse.py write better ones.
    """
    return record.msg not in ("Invalid HTTP request received.", "ASGI callable returned without completing response.")

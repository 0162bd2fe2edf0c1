"""One server with a scripted model and a small limit on bodies."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from gateway.config.tables import ServerConfig
from tests.support.server import Running, config_of, scripted, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    config = config_of({"m": scripted("Hello.")}, ServerConfig(max_body_bytes=100_000))
    with serving(config) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client

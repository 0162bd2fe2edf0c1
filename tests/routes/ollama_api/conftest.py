"""Ollama's official client for the scripted models and for the local ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ollama import Client

from tests.support.server import Running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def real(local: Running) -> Iterator[Client]:
    with Client(local.url) as client:
        yield client

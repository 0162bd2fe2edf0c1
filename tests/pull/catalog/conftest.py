"""A server that plays AI Hub's bucket and the Hub."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.pull.catalog.fetch import Reader
from tests.support.model_server import ModelServer, serve_models


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serve_models() as server:
        yield server


@pytest.fixture
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader

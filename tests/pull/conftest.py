from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.model_server import ModelServer, serve_models


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serve_models() as models:
        yield models

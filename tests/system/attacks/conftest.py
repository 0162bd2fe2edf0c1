"""A hostile upstream server, one for the tests of each file. Some files have another `server`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.hostile import Hostile, hostile


@pytest.fixture(scope="module")
def server() -> Iterator[Hostile]:
    with hostile() as running:
        yield running

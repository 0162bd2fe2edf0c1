from __future__ import annotations

from typing import Any, cast

import pytest

from gateway.server.request import ClientLeft, HttpRequest, while_connected


class Gone:
    """A request whose client has left."""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.disconnect"}


async def test_no_work_begins_for_a_client_that_has_left_already() -> None:
    begun = False

    async def work() -> None:
        nonlocal begun
        begun = True

    with pytest.raises(ClientLeft):
        await while_connected(cast(HttpRequest, Gone()), work())
    assert not begun

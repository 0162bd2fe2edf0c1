"""GET and HEAD /."""

from __future__ import annotations

import httpx


def test_root_answers_get_and_head(http: httpx.Client) -> None:
    assert "npu-gateway" in http.get("/").text
    knock = http.head("/")
    assert (knock.status_code, knock.content) == (200, b"")

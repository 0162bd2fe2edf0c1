"""Every exception becomes an error reply."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from litestar import Request, exceptions, get

from gateway.routes.error_handler import as_gateway_error
from tests.support.server import config_of, error_of, scripted, serving

PATH = "/v1/chat/completions"


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/nowhere", "/v1/chat", "/../etc/passwd", "/%00"])
def test_unknown_path_is_404_json(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("DELETE", PATH), ("POST", "/v1/models"), ("PUT", "/")])
def test_wrong_method_is_405_json(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert "allow" in response.headers


def test_unexpected_exception_is_500_with_details_only_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    @get("/broken")
    async def broken() -> None:
        raise OSError("/secret/path")

    with serving(config_of({"m": scripted("Hello.")})) as server, server.http() as http:
        server.app.register(broken)
        response = http.get("/broken")
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "secret" not in response.text and "Traceback" not in response.text
    assert "/secret/path" in caplog.text
    assert response.headers["x-request-id"].removeprefix("req_") in caplog.text


def test_every_litestar_exception_keeps_its_status() -> None:
    kinds = [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, exceptions.HTTPException)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        if kind.status_code < 500:
            assert as_gateway_error(_request(), kind("words")).status == kind.status_code, kind


def _request() -> Any:
    return Request({"type": "http", "method": "GET", "path": "/x", "headers": [], "state": {}})  # type: ignore[typeddict-item]

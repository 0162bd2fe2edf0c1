"""The application from `create_app`."""

from __future__ import annotations

from typing import Any

from gateway.app import create_app
from gateway.config.tables import Config, ServerConfig
from tests.support.server import config_of, error_of, scripted, serving

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_app_without_models_is_not_ready_and_knows_no_model() -> None:
    with serving(Config(server=ServerConfig(port=0))) as server, server.http() as http:
        assert http.get("/v1/models").json() == {"object": "list", "data": []}
        assert http.get("/readyz").status_code == 503
        assert error_of(http.post(PATH, json=CHAT))["code"] == "model_not_found"


def test_create_app_does_not_load_models() -> None:
    create_app(config_of({"m": scripted("Hi", load_error="started")}))

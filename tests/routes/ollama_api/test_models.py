"""Ollama's model list, details and version."""

from __future__ import annotations

import httpx
from ollama import Client

from tests.routes.conftest import PARIS
from tests.routes.ollama_api.helpers import FRANCE
from tests.support.server import Running


def test_listed_models_have_a_tag(client: Client) -> None:
    assert {"paris:latest", "gpt-4o-mini:latest", "org/alias:7b"} <= {model.model for model in client.list().models}


def test_running_models_are_the_loaded_ones_without_aliases(client: Client, http: httpx.Client) -> None:
    running = [model.model for model in client.ps().models]
    assert "paris:latest" in running
    assert not {"gpt-4o-mini:latest", "org/alias:7b", "unloadable:latest"} & set(running)
    assert http.post("/v1/models/paris/unload").json()["engine"]["state"] == "unloaded"
    assert [model.model for model in client.ps().models] == [name for name in running if name != "paris:latest"]
    assert "paris:latest" in {model.model for model in client.list().models}
    assert http.post("/v1/models/paris/load").json()["engine"]["state"] == "ready"
    assert [model.model for model in client.ps().models] == running


def test_every_listed_name_is_accepted(client: Client) -> None:
    for name in ("paris:latest", "gpt-4o-mini:latest", "org/alias:7b", "paris"):
        assert client.chat(name, FRANCE).message.content == PARIS


def test_show_has_context_length_and_capabilities(real: Client, local: Running) -> None:
    shown = real.show("smollm2:latest")
    assert shown.modelinfo is not None and shown.capabilities is not None
    architecture = shown.modelinfo["general.architecture"]
    with local.http() as http:
        card = http.get("/v1/models/smollm2").json()
    assert shown.modelinfo[f"{architecture}.context_length"] == card["context_length"] > 1000
    assert shown.capabilities == ["completion", "tools"]


def test_show_says_what_an_encoder_can_do(client: Client) -> None:
    assert client.show("vectors").capabilities == ["embedding"]
    assert client.show("scorer").capabilities == ["rerank"]


def test_show_accepts_the_older_name_field(http: httpx.Client) -> None:
    assert http.post("/api/show", json={"name": "paris"}).json()["modelfile"] == "FROM paris\n"
    assert "model" in http.post("/api/show", json={}).json()["error"]


def test_version_and_head_root_are_answered(http: httpx.Client) -> None:
    major, minor, _ = http.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 6)  # the minimum that editors require
    assert http.head("/").status_code == 200

"""Ollama's model list: GET /api/tags, /api/ps and /api/version, POST /api/show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
from litestar import get, post
from litestar.types import ASGIApp

from gateway.engines.base import Capability
from gateway.errors import ModelNotFound
from gateway.lanes.router import LATEST, ModelInfo, Router
from gateway.lanes.status import ModelMemory
from gateway.routes.ollama_api.wire import (
    ApiVersion,
    ModelDetails,
    OllamaModel,
    OllamaModels,
    RunningModel,
    RunningModels,
    ShownModel,
    ShowRequest,
)
from gateway.routes.parse import required
from gateway.routes.respond import json_response
from gateway.sampling import configured
from gateway.server.body import read_json
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of

#: The Ollama release whose API this is. Editors require a minimum.
API_VERSION = "0.12.11"
FOREVER = "9999-12-31T23:59:59Z"
#: Ollama's names of what a model can do; it has none for `rerank`.
_CAPABILITIES: dict[Capability, str] = {
    "chat": "completion",
    "tools": "tools",
    "embeddings": "embedding",
    "rerank": "rerank",
}

_decoder = msgspec.json.Decoder(ShowRequest)
_SHOW = openapi_opt("Get the details of a model (Ollama)", body=ShowRequest, reply=ShownModel, raises=(ModelNotFound,))


@get("/api/version", opt=openapi_opt("Get the Ollama release whose API this is", reply=ApiVersion))
async def version() -> ASGIApp:
    return json_response(ApiVersion(version=API_VERSION))


@get("/api/tags", opt=openapi_opt("List the models (Ollama)", reply=OllamaModels))
async def tags(request: HttpRequest) -> ASGIApp:
    loaded_at = _started_at(request)
    rows = [
        OllamaModel(
            name=name,
            model=name,
            modified_at=loaded_at,
            size=model.status.engine.peak_bytes,
            digest=_digest(model),
            details=ModelDetails(),
        )
        for name, model in _named(router_of(request))
    ]
    return json_response(OllamaModels(models=rows))


@get("/api/ps", opt=openapi_opt("List the models that are loaded (Ollama)", reply=RunningModels))
async def running(request: HttpRequest) -> ASGIApp:
    """Once for each model, without its aliases. A model on another server is not in the memory of this one."""
    models = [model for model in router_of(request).models() if model.status.engine.runtime != "upstream"]
    rows = [_running(_tagged(model.name), model) for model in models if model.status.engine.state == "ready"]
    return json_response(RunningModels(models=rows))


@post("/api/show", status_code=200, opt=_SHOW)
async def show(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _decoder)
    name = required(body.model or body.name or None, "model")
    router = router_of(request)
    model = router.model(name)
    return json_response(_shown(model, router, _started_at(request)))


def _named(router: Router) -> Iterator[tuple[str, ModelInfo]]:
    for model in router.models():
        for name in (model.name, *model.aliases):
            yield _tagged(name), model


def _tagged(name: str) -> str:
    return name if ":" in name else name + LATEST


def _running(name: str, model: ModelInfo) -> RunningModel:
    engine, memory = model.status.engine, model.status.memory
    size = memory.need if memory.is_measured else engine.peak_bytes
    return RunningModel(
        name=name,
        model=name,
        size=size,
        digest=_digest(model),
        details=ModelDetails(),
        expires_at=_expires_at(memory),
        size_vram=size,
        context_length=engine.context_length,
    )


def _expires_at(memory: ModelMemory) -> str:
    """While requests run: as if they ended now."""
    if memory.keep_alive_s < 0 or memory.is_pinned:
        return FOREVER
    left_s = memory.keep_alive_s if memory.expires_s is None else memory.expires_s
    try:
        return (datetime.now(UTC) + timedelta(seconds=left_s)).isoformat()
    except OverflowError:
        return FOREVER


def _shown(model: ModelInfo, router: Router, modified_at: str) -> ShownModel:
    defaults = router.defaults_for(model.name)
    options = {"num_predict": defaults.max_tokens, **configured("ollama", defaults)}
    return ShownModel(
        modelfile=f"FROM {model.name}\n",
        parameters="\n".join(f"{option} {value}" for option, value in options.items()),
        template="{{ .Prompt }}",
        details=ModelDetails(),
        model_info={
            "general.architecture": "onnx",
            "general.basename": model.name,
            "onnx.context_length": model.status.engine.context_length,
        },
        capabilities=[name for each, name in _CAPABILITIES.items() if each in model.status.engine.capabilities],
        modified_at=modified_at,
    )


def _digest(model: ModelInfo) -> str:
    return sha256(model.name.encode()).hexdigest()


def _started_at(request: HttpRequest) -> str:
    return datetime.fromtimestamp(request.app.state.started_at, UTC).isoformat()

"""GET /v1/models and /v1/models/{id}: every name and alias, with the properties that editors read."""

from __future__ import annotations

from typing import Literal

from litestar import get
from litestar.params import FromPath
from litestar.types import ASGIApp
from msgspec import UNSET, Struct, UnsetType

from gateway.errors import ModelNotFound
from gateway.lanes.router import ModelInfo
from gateway.routes.respond import json_response
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of


class ModelCard(Struct, kw_only=True):
    """One entry of /v1/models. The fields after `owned_by` are not OpenAI's; editors read the context length."""

    id: str
    created: int
    owned_by: str
    context_length: int
    runtime: str
    device: str
    state: str
    capabilities: tuple[str, ...]
    object: Literal["model"] = "model"
    root: str | UnsetType = UNSET  # only for an alias: the model's name
    context_note: str | UnsetType = UNSET  # only if the context is limited for the memory: one sentence
    detail: str | UnsetType = UNSET  # only if the model is not ready, or slow for a known reason: one line
    cpu_nodes: int | UnsetType = UNSET  # the nodes of the graphs that run on the CPU; only if the model is loaded
    tokens_per_s: float | UnsetType = UNSET  # in recent answers, of device time; only if it is measured
    published_tokens_per_s: float | UnsetType = UNSET  # of this model on this machine's NPU; only if it is known
    speed: str | UnsetType = UNSET  # both for a person: "19.7 tokens/s, 93 % of 21.2"


class ModelList(Struct, kw_only=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


@get(["/v1/models", "/models"], opt=openapi_opt("List the models and their aliases", reply=ModelList))
async def list_models(request: HttpRequest) -> ASGIApp:
    created = request.app.state.started_at
    cards = [
        _card(name, model, created) for model in router_of(request).models() for name in (model.name, *model.aliases)
    ]
    return json_response(ModelList(data=cards))


@get(
    ["/v1/models/{model_id:path}", "/models/{model_id:path}"],
    opt=openapi_opt("Get a model by name or alias", reply=ModelCard, raises=(ModelNotFound,)),
)
async def get_model(request: HttpRequest, model_id: FromPath[str]) -> ASGIApp:
    name = model_id.removeprefix("/")  # Litestar's `path` includes the leading slash
    router = router_of(request)
    return json_response(_card(router.lookup(name).name, router.model(name), request.app.state.started_at))


def _card(name: str, model: ModelInfo, created: int) -> ModelCard:
    engine = model.status.engine
    card = ModelCard(
        id=name,
        created=created,
        owned_by="npu-gateway",
        context_length=engine.context_length,
        runtime=engine.runtime,
        device=engine.device,
        state=engine.state,
        capabilities=engine.capabilities,
    )
    if engine.context_note:
        card.context_note = engine.context_note
    if engine.detail:
        card.detail = engine.detail
    if engine.placement:
        card.cpu_nodes = model.status.cpu_nodes
    if model.status.tokens_per_s is not None:
        card.tokens_per_s = round(model.status.tokens_per_s, 1)
    if engine.published_tokens_per_s is not None:
        card.published_tokens_per_s = engine.published_tokens_per_s
    if model.status.speed:
        card.speed = model.status.speed
    if name != model.name:
        card.root = model.name
    return card

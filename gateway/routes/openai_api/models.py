"""GET /v1/models and /v1/models/{id}: every name and alias, with the properties that editors read."""

from __future__ import annotations

from litestar import get
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.errors import ModelNotFound
from gateway.lanes.router import ModelInfo
from gateway.routes.openai_api.wire import ModelCard, ModelList
from gateway.routes.respond import json_response
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of


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

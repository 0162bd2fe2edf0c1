"""POST /api/chat and /api/generate: Ollama's API. Streamed unless `stream` is false.

A request without a prompt loads the model; with `keep_alive` 0 it unloads it, when its requests have ended.
"""

from __future__ import annotations

from typing import cast

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.generation import Prompt
from gateway.lanes.memory.residency import Residency
from gateway.routes.ollama_api.keep_alive import keep_alive_s
from gateway.routes.ollama_api.parse import chat_of, generation_of, prompt_of
from gateway.routes.ollama_api.render import MEDIA_TYPE, Kind, OllamaRendering, reply_of
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest, OllamaReply, OllamaRequest
from gateway.routes.respond import answer, generation_opt, json_response
from gateway.server.body import by_size, read_json
from gateway.server.openapi_operation import Stream
from gateway.server.request import HttpRequest, request_number, router_of, while_connected

_chat_decoder = msgspec.json.Decoder(OllamaChatRequest)
_generate_decoder = msgspec.json.Decoder(OllamaGenerateRequest)
_LINES = Stream(OllamaReply, MEDIA_TYPE)
_CHAT = generation_opt("Answer a chat (Ollama)", OllamaChatRequest, OllamaReply, _LINES)
_GENERATE = generation_opt("Answer a prompt (Ollama)", OllamaGenerateRequest, OllamaReply, _LINES)


@post("/api/chat", status_code=200, opt=_CHAT)
async def chat(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _chat_decoder)
    if not body.messages:
        return await _load(request, body, "chat")
    return await _answer(request, body, "chat", await by_size(request, chat_of, body))


@post("/api/generate", status_code=200, opt=_GENERATE)
async def generate(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _generate_decoder)
    prompt = await by_size(request, prompt_of, body)
    if not (body.prompt or body.suffix):
        return await _load(request, body, "generate")
    return await _answer(request, body, "generate", prompt)


async def _answer(request: HttpRequest, body: OllamaRequest, kind: Kind, prompt: Prompt) -> ASGIApp:
    router = router_of(request)
    defaults = router.defaults_for(body.model)
    id = f"ollama-{request_number(request.scope)}"
    generation = await by_size(request, generation_of, body, prompt, defaults, id=id)
    return await answer(request, generation, OllamaRendering(kind, generation), stream=body.stream is not False)


async def _load(request: HttpRequest, body: OllamaRequest, kind: Kind) -> ASGIApp:
    """The reply to a request without a prompt: the client wants the model to be loaded or unloaded."""
    model, residency = router_of(request).lookup(body.model).model, cast(Residency, request.app.state.residency)
    kept_s = keep_alive_s(body.keep_alive)
    if kept_s != 0:
        await while_connected(request, residency.load(model))
    if kept_s is not None:
        residency.keep_alive(model, kept_s)
    reply = reply_of(kind, model)
    reply.done, reply.done_reason = True, "unload" if kept_s == 0 else "load"
    return json_response(reply)

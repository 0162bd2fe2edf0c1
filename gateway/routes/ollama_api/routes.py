"""POST /api/chat and /api/generate: Ollama's API. Streamed unless `stream` is false.

`keep_alive` is ignored: a model stays loaded while the gateway runs.
"""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.generation import Prompt
from gateway.routes.ollama_api.parse import chat_of, generation_of, prompt_of
from gateway.routes.ollama_api.render import MEDIA_TYPE, Kind, OllamaRendering, reply_of
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest, OllamaReply, OllamaRequest
from gateway.routes.respond import answer, generation_opt, json_response
from gateway.server.body import by_size, read_json
from gateway.server.openapi_operation import Stream
from gateway.server.request import HttpRequest, request_number, router_of

_chat_decoder = msgspec.json.Decoder(OllamaChatRequest)
_generate_decoder = msgspec.json.Decoder(OllamaGenerateRequest)
_LINES = Stream(OllamaReply, MEDIA_TYPE)
_CHAT = generation_opt("Answer a chat (Ollama)", OllamaChatRequest, OllamaReply, _LINES)
_GENERATE = generation_opt("Answer a prompt (Ollama)", OllamaGenerateRequest, OllamaReply, _LINES)


@post("/api/chat", status_code=200, opt=_CHAT)
async def chat(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _chat_decoder)
    if not body.messages:
        return _loaded(request, body, "chat")
    return await _answer(request, body, "chat", await by_size(request, chat_of, body))


@post("/api/generate", status_code=200, opt=_GENERATE)
async def generate(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _generate_decoder)
    prompt = await by_size(request, prompt_of, body)
    if not (body.prompt or body.suffix):
        return _loaded(request, body, "generate")
    return await _answer(request, body, "generate", prompt)


async def _answer(request: HttpRequest, body: OllamaRequest, kind: Kind, prompt: Prompt) -> ASGIApp:
    router = router_of(request)
    defaults = router.defaults_for(body.model)
    id = f"ollama-{request_number(request.scope)}"
    generation = await by_size(request, generation_of, body, prompt, defaults, id=id)
    return await answer(request, generation, OllamaRendering(kind, generation), stream=body.stream is not False)


def _loaded(request: HttpRequest, body: OllamaRequest, kind: Kind) -> ASGIApp:
    """The reply to a request without a prompt: the client only wants the model to be loaded."""
    router = router_of(request)
    reply = reply_of(kind, router.lookup(body.model).model)
    reply.done, reply.done_reason = True, "load"
    return json_response(reply)

"""POST /v1/embeddings, Ollama's /api/embed and /api/embeddings: always an error. No model of the gateway makes them.

Without this route the client would get a 404 for the path, which looks like a wrong URL. Embeddings from a model that
was not trained to make them would be useless.
"""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.types import ASGIApp
from msgspec import Struct

from gateway.errors import ModelNotFound, UnsupportedParameter
from gateway.server.body import read_json
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of


class EmbeddingRequest(Struct, kw_only=True):
    model: str | None = None


_decoder = msgspec.json.Decoder(EmbeddingRequest)
_OPERATION = openapi_opt("Always an error: no model makes embeddings", body=EmbeddingRequest, raises=(ModelNotFound,))


@post(["/v1/embeddings", "/embeddings", "/api/embed", "/api/embeddings"], status_code=200, opt=_OPERATION)
async def embeddings(request: HttpRequest) -> ASGIApp:
    """Raises ModelNotFound, or UnsupportedParameter for every model of the gateway."""
    body = await read_json(request, _decoder)
    name = router_of(request).lookup(body.model).model
    raise UnsupportedParameter(f"The model '{name}' generates text; it is not an embedding model.", param="model")

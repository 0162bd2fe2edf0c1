"""POST /v1/embeddings: every model here generation_opt text and none embeds it, and that is what the answer says.

A 404 of the path would read as a wrong URL; vectors from a model that was not trained for it would be useless.
"""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.errors import ModelNotFound, UnsupportedParameter
from gateway.routes.openai_api.completion_wire import EmbeddingRequest
from gateway.server.body import read_json
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of

_decoder = msgspec.json.Decoder(EmbeddingRequest)
_OPERATION = openapi_opt("Refused: no model here embeds text", body=EmbeddingRequest, raises=(ModelNotFound,))


@post(["/v1/embeddings", "/embeddings"], status_code=200, opt=_OPERATION)
async def embeddings(request: HttpRequest) -> ASGIApp:
    """Raises ModelNotFound, or UnsupportedParameter for any model there is."""
    asked = await read_json(request, _decoder)
    name = router_of(request).lookup(asked.model).model
    raise UnsupportedParameter(f"The model '{name}' generation_opt text; it is no embedding model.", param="model")

"""GET and HEAD /: a word for people, and for clients that knock before they ask."""

from __future__ import annotations

from litestar import get, head
from litestar.enums import MediaType

from gateway import __version__
from gateway.routes.guards import OPEN


@get("/", media_type=MediaType.TEXT, sync_to_thread=False, opt=OPEN)
def root() -> str:
    return f"npu-gateway {__version__} is running. The OpenAI-compatible API is under /v1; try GET /v1/models.\n"


@head("/", media_type=MediaType.TEXT, sync_to_thread=False, opt=OPEN)
def root_head() -> None:
    return None

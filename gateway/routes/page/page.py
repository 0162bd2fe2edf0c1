"""GET /: the page for a browser, else one line of text. GET /web/...: the files of the page.

The files of the page contain no data, so they need no API key. The page gets all data from the API, with the key of the
user. The answers of a model are untrusted text: the content security policy lets no script run except the page's own
files, and lets no request go to another host.
"""

from __future__ import annotations

from litestar import route
from litestar.enums import HttpMethod
from litestar.params import FromPath
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp

from gateway import __version__
from gateway.errors import NotFound, quote
from gateway.routes.page.files import WebFile, web_file_of, web_files
from gateway.server.guards import OPEN
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No script can make HTML or code of a text, except the sanitiser and the loader of libraries (app/scripts.js).
        "require-trusted-types-for 'script'",
        "trusted-types dompurify libraries",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-dns-prefetch-control": "off",  # else a link in an answer sends its host name to a DNS server, without a click
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # the browser asks each time, so an upgrade is seen at once
}
_TEXT = web_file_of(
    f"npu-gateway {__version__} is running. The OpenAI-compatible API is under /v1; try GET /v1/models.\n"
    "In a browser this address is a page. Description of the API: /schema. State: /readyz, /metrics.\n".encode(),
    "text/plain",
)
_ROOT = openapi_opt("Get the page, or a short text that names the gateway", reply=str, media_type="text/plain")
_FILE = openapi_opt("Get a file of the page", reply=str, media_type="text/plain", raises=(NotFound,))


@route("/", http_method=[HttpMethod.GET, HttpMethod.HEAD], status_code=200, opt=OPEN | _ROOT)
async def root(request: HttpRequest) -> ASGIApp:
    if "text/html" in request.headers.get("accept", ""):
        return _response(request, web_files()["index.html"], HEADERS | {"vary": "accept"})
    return _response(request, _TEXT, {"vary": "accept"})


@route("/web/{file_path:path}", http_method=[HttpMethod.GET, HttpMethod.HEAD], status_code=200, opt=OPEN | _FILE)
async def web_file(request: HttpRequest, file_path: FromPath[str]) -> ASGIApp:
    file = web_files().get(file_path.removeprefix("/"))  # Litestar's `path` includes the leading slash
    if file is None:
        raise NotFound(f"The page has no file {quote(file_path)}.")
    return _response(request, file, HEADERS)


def _response(request: HttpRequest, file: WebFile, headers: dict[str, str]) -> ASGIApp:
    headers = {**headers, "etag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return ASGIResponse(status_code=304, headers=headers)
    body = b"" if request.method == "HEAD" else file.body
    return ASGIResponse(body=body, media_type=file.media_type, content_length=len(file.body), headers=headers)

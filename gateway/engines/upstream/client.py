"""HTTP to a server that is not trusted: one POST on its own connection, within bounds.

httpcore, and no library above it: those follow redirects, decompress without a bound, read `netrc` and keep lines of
any length. A connection is not used twice, so bytes after an answer reach no other request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpcore

from gateway.errors import ModelNotReady

READ_BYTES = 16 * 1024  # read and parsed without a pause of the event loop
HEAD_BYTES = 128 * 1024  # status line, headers and interim answers; also of an answer that is an error
_LARGE = 64 * 1024  # bytes of a body
_CONNECT_S = 10.0
_LOOKUP_S = 5.0
_SEPARATE = 64  # chunks of an answer after which other tasks run


class AnswerTooLarge(httpcore.ProtocolError):
    """The server sent more than the gateway accepts."""


class LargeBodyRefused(httpcore.NetworkError):
    """The server broke the connection without an answer to a large body. Some servers refuse a body in this way."""


class HttpClient:
    """Posts to one server. `url` is its base URL, `api_key` may be empty, a connection is made within `connect_s`."""

    def __init__(self, url: SplitResult, api_key: str, connect_s: float = _CONNECT_S) -> None:
        self._url = url
        self._connect_s = connect_s
        self._headers: dict[str | bytes, str | bytes] = {
            "Host": url.netloc,
            "Authorization": f"Bearer {api_key or 'none'}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "npu-gateway",
            "Connection": "close",
        }
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def open(self) -> None:
        """Prepare connections; sends nothing. Raises ModelNotReady for a proxy that is not supported."""
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=await asyncio.to_thread(_ssl_context) if self._url.scheme == "https" else None,
            proxy=await proxy_for(self._url),
            max_connections=None,  # the lane limits the requests
            max_keepalive_connections=0,
            network_backend=_BoundedBackend(),
        )

    async def aclose(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()

    @asynccontextmanager
    async def post(
        self, path: str, body: bytes, hops: Sequence[str] = (), *, truncation: bool = False
    ) -> AsyncIterator[httpcore.Response]:
        """Send `body`, give the answer after its head, and close the connection.

        Args:
            hops: the engines that the request passed, for the header `Via`.
            truncation: another gateway may leave out the oldest turns.

        Raises:
            LargeBodyRefused: a body of 64 KiB or more, and no answer.
            httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError: no usable answer.
        """
        assert self._pool is not None
        extra: dict[str | bytes, str | bytes] = {"Via": ", ".join(f"1.1 {hop}" for hop in hops)} if hops else {}
        if truncation:
            extra["x-gateway-truncation"] = "auto"
        request = self._request("POST", path, {**extra, "Content-Length": str(len(body))}, body)
        try:
            response = await self._pool.handle_async_request(request)
        except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError) as error:
            if len(body) >= _LARGE:
                raise LargeBodyRefused from error
            raise
        try:
            yield response
        finally:
            await response.aclose()

    @asynccontextmanager
    async def get(self, path: str) -> AsyncIterator[httpcore.Response]:
        """As `post`, without a body."""
        assert self._pool is not None
        response = await self._pool.handle_async_request(self._request("GET", path, {}, b""))
        try:
            yield response
        finally:
            await response.aclose()

    def _request(self, method: str, path: str, extra: dict[str | bytes, str | bytes], body: bytes) -> httpcore.Request:
        url = self._url
        target = url.path.rstrip("/") + path + (f"?{url.query}" if url.query else "")
        return httpcore.Request(
            method,
            httpcore.URL(scheme=url.scheme, host=url.hostname or "", port=url.port, target=target),
            headers={**self._headers, **extra},
            content=body,
            extensions={"timeout": {"connect": self._connect_s}},
        )


def header(response: httpcore.Response, name: str) -> str:
    """The values of a header, joined by commas, in lower case."""
    values = (value for key, value in response.headers if key.lower() == name.encode())
    return b",".join(values).decode("latin-1").strip().lower()


async def pieces(response: httpcore.Response, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises AnswerTooLarge after `max_bytes`, counted with the framing of HTTP."""
    response.extensions["network_stream"].left = max_bytes
    count = 0
    async with _body_of(response) as body:
        async for piece in body:
            yield piece
            count += 1
            if count % _SEPARATE == 0:
                await asyncio.sleep(0)


async def start_of_body(response: httpcore.Response, max_bytes: int) -> bytes:
    """At most the first `max_bytes` of the body; what came until the connection broke."""
    found = bytearray()
    try:
        async with _body_of(response) as body:
            async for piece in body:
                found += piece
                if len(found) >= max_bytes:
                    break
    except (httpcore.ProtocolError, httpcore.NetworkError, OSError):
        pass
    return bytes(found[:max_bytes])


def _body_of(response: httpcore.Response) -> aclosing[AsyncGenerator[bytes, None]]:
    """Closed at once by its reader, and not when the garbage collector finds it."""
    return aclosing(cast(AsyncGenerator[bytes, None], response.aiter_stream()))


class _BoundedStream(httpcore.AsyncNetworkStream):
    """A connection that reads little at once, and that breaks after `left` bytes more."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self.left = HEAD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        data = await self._stream.read(min(max_bytes, READ_BYTES), timeout)
        self.left -= len(data)
        if self.left < 0:
            raise AnswerTooLarge("too many bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _BoundedBackend(httpcore.AnyIOBackend):
    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        return _BoundedStream(await super().connect_tcp(*args, **kwargs))


def _ssl_context() -> ssl.SSLContext:
    """The system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR; certifi's if OpenSSL finds no file."""
    context = ssl.create_default_context()
    if ssl.get_default_verify_paths().cafile is None:  # on Windows, and without the system's package
        context.load_verify_locations(certifi.where())
    return context


async def proxy_for(url: SplitResult) -> httpcore.Proxy | None:
    """The proxy of the environment or of the system. None for a server on this machine.

    Raises:
        ModelNotReady: the proxy does not speak HTTP.
    """
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or await _is_this_machine(url.hostname or "") or await asyncio.to_thread(proxy_bypass, url.netloc):
        return None
    proxy = urlsplit(address if "://" in address else f"http://{address}")
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        raise ModelNotReady(
            f"The proxy of the environment ({proxy.scheme}) is not an HTTP proxy. Add the server to NO_PROXY."
        )
    auth = None if proxy.username is None else (unquote(proxy.username), unquote(proxy.password or ""))
    return httpcore.Proxy(httpcore.URL(scheme=proxy.scheme, host=proxy.hostname, port=proxy.port, target="/"), auth)


async def _is_this_machine(host: str) -> bool:
    """True for a loopback address in any spelling, and for a name that resolves to one."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with suppress(OSError):  # not a number; `127.1` and `2130706433` are
        return _is_loopback(socket.inet_ntoa(socket.inet_aton(host)))
    try:
        async with asyncio.timeout(_LOOKUP_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError):  # includes the time limit
        return False
    return any(_is_loopback(str(address[0])) for *_, address in found)


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)

"""HTTP to a server that is not trusted, within bounds.

httpcore, and no library above it: those follow redirects, decompress without a bound, read `netrc` and keep lines of
any length. Bytes that come between two requests of one connection close it (connection/resting.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import httpcore

from gateway.engines.upstream.connection.framing import framing_of
from gateway.engines.upstream.connection.resting import Connection, Resting
from gateway.engines.upstream.connection.stream import HEAD_BYTES, Backend, Gone, Stream
from gateway.errors import ModelNotReady

_LARGE = 64 * 1024  # bytes of a body
_CONNECT_S = 10.0
_LOOKUP_S = 5.0

_Headers = dict[str | bytes, str | bytes]


class LargeBodyRefused(httpcore.NetworkError):
    """The server broke the connection without an answer to a large body. Some servers refuse a body in this way."""


class HttpClient:
    """Posts to one server. `url` is its base URL, `api_key` may be empty, a connection is made within `connect_s`."""

    def __init__(self, url: SplitResult, api_key: str, connect_s: float = _CONNECT_S) -> None:
        self._url = url
        self._connect_s = connect_s
        self._headers: _Headers = {
            "Host": url.netloc,
            "Authorization": f"Bearer {api_key or 'none'}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "npu-gateway",
        }
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._resting = Resting()

    async def open(self) -> None:
        """Prepare connections; sends nothing. Raises ModelNotReady for a proxy that is not supported."""
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=await asyncio.to_thread(_ssl_context) if self._url.scheme == "https" else None,
            proxy=await proxy_for(self._url),
            max_connections=None,  # the lane limits the requests
            max_keepalive_connections=0,
            network_backend=Backend(),
        )

    async def aclose(self) -> None:
        await self._resting.aclose()
        if self._pool is not None:
            await self._pool.aclose()

    @asynccontextmanager
    async def post(
        self, path: str, body: bytes, hops: Sequence[str] = (), *, truncation: bool = False
    ) -> AsyncIterator[httpcore.Response]:
        """Send `body`, and give the answer after its head. An exception in the block closes the connection.

        Args:
            hops: the engines that the request passed, for the header `Via`.
            truncation: another gateway may leave out the oldest turns.

        Raises:
            LargeBodyRefused: a body of 64 KiB or more, and no answer.
            httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError: no usable answer.
        """
        extra: _Headers = {"Via": ", ".join(f"1.1 {hop}" for hop in hops)} if hops else {}
        if truncation:
            extra["x-gateway-truncation"] = "auto"
        request = self._request("POST", path, {**extra, "Content-Length": str(len(body))}, body)
        try:
            connection, response = await self._sent(request)
        except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError) as error:
            if len(body) >= _LARGE:
                raise LargeBodyRefused from error
            raise
        try:
            yield response
        except BaseException:
            await connection.aclose()
            raise
        await self._resting.ended(connection, response)

    @asynccontextmanager
    async def get(self, path: str) -> AsyncIterator[httpcore.Response]:
        """As `post`, without a body, and without another request on its connection."""
        request = self._request("GET", path, {"Connection": "close"}, b"")
        connection = self._new(request)
        try:
            yield await connection.handle_async_request(request)
        finally:
            await connection.aclose()

    async def _sent(self, request: httpcore.Request) -> tuple[Connection, httpcore.Response]:
        """The answer after its head. The request is sent again, once, if the server closed a connection that rested."""
        if (connection := await self._resting.take()) is not None:
            with suppress(Gone):
                return await _answered(connection, request)
        return await _answered(self._new(request), request)

    def _new(self, request: httpcore.Request) -> Connection:
        """Not of the pool: it would keep one for ever that is open when its request is cancelled before the head."""
        assert self._pool is not None
        return self._pool.create_connection(request.url.origin)

    def _request(self, method: str, path: str, extra: _Headers, body: bytes) -> httpcore.Request:
        url = self._url
        target = url.path.rstrip("/") + path + (f"?{url.query}" if url.query else "")
        return httpcore.Request(
            method,
            httpcore.URL(scheme=url.scheme, host=url.hostname or "", port=url.port, target=target),
            headers={**self._headers, **extra},
            content=body,
            extensions={"timeout": {"connect": self._connect_s}},
        )


async def _answered(connection: Connection, request: httpcore.Request) -> tuple[Connection, httpcore.Response]:
    try:
        return connection, await connection.handle_async_request(request)
    except BaseException:
        await connection.aclose()
        raise


def header(response: httpcore.Response, name: str) -> str:
    """The values of a header, joined by commas, in lower case."""
    values = (value for key, value in response.headers if key.lower() == name.encode())
    return b",".join(values).decode("latin-1").strip().lower()


class Body:
    """The body of an answer, read as it comes. `max_bytes`: counted with the framing of HTTP."""

    def __init__(self, response: httpcore.Response, max_bytes: int) -> None:
        self._stream: Stream = response.extensions["network_stream"]
        self._stream.left = max_bytes
        self._framing = response.extensions["framing"] = framing_of(response)
        self.is_over = False  # the end was read

    async def next(self, until: float | None = None) -> bytes:
        """The next part; b"" at the end.

        Args:
            until: seconds of the event loop; None: without a limit.

        Raises:
            AnswerTooLarge, httpcore.ReadError, httpcore.RemoteProtocolError, TimeoutError: no more of it.
        """
        while not self._framing.is_over:
            data = await self._stream.next(until)
            if not data:
                self._framing.end()
            elif part := self._framing.feed(data):
                return part
        self.is_over = True
        return b""


async def start_of_body(response: httpcore.Response, max_bytes: int) -> bytes:
    """At most the first `max_bytes` of the body; what came until the connection broke."""
    found = bytearray()
    with suppress(httpcore.ProtocolError, httpcore.NetworkError, OSError):
        body = Body(response, HEAD_BYTES + max_bytes)
        while len(found) < max_bytes and (part := await body.next()):
            found += part
    return bytes(found[:max_bytes])


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

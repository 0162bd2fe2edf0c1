"""The connection to an upstream server: its proxy, its certificates, its end."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.config.tables import UpstreamModel
from gateway.engines.upstream.client import HttpClient, _ssl_context, proxy_for
from gateway.engines.upstream.connection.stream import Stream
from gateway.engines.upstream.engine import UpstreamEngine
from gateway.errors import ModelNotReady
from gateway.generation import Chat, Generation, Message
from tests.support.engines import events_of

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


HERE = ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST", "localhost.", "a.localhost"]
HERE += ["0.0.0.0", "[::]", "2130706433", "127.1", "0x7f000001"]


@pytest.mark.parametrize("host", HERE)
@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "all_proxy"])
async def test_server_on_this_machine_has_no_proxy(monkeypatch: pytest.MonkeyPatch, host: str, variable: str) -> None:
    monkeypatch.setenv(variable, "http://192.0.2.1:3128")
    scheme = "https" if variable == "https_proxy" else "http"
    assert await proxy_for(urlsplit(f"{scheme}://{host}:8081/v1")) is None


async def test_name_that_resolves_to_this_machine_has_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolved(*_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", ("127.0.1.1", 0))]

    monkeypatch.setenv("all_proxy", "http://192.0.2.1:3128")
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    assert await proxy_for(urlsplit("http://mybox:8081/v1")) is None


@pytest.mark.parametrize(
    ("variable", "value", "host", "port"),
    [
        ("http_proxy", "http://u:p%40@192.0.2.1:3128", b"192.0.2.1", 3128),
        ("all_proxy", "192.0.2.2:8080", b"192.0.2.2", 8080),
        ("HTTP_PROXY", "https://proxy.example", b"proxy.example", None),
    ],
)
async def test_server_elsewhere_has_the_proxy_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, host: bytes, port: int | None
) -> None:
    monkeypatch.setenv(variable, value)
    url = urlsplit("http://198.51.100.7:8081/v1")
    proxy = await proxy_for(url)
    assert proxy is not None and (proxy.url.host, proxy.url.port) == (host, port)
    assert proxy.auth == ((b"u", b"p@") if "@" in value else None)
    monkeypatch.setenv("no_proxy", "198.51.100.7")
    assert await proxy_for(url) is None


async def test_proxy_that_does_not_speak_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://192.0.2.1:1080")
    with pytest.raises(ModelNotReady, match="socks5"):
        await proxy_for(urlsplit("http://198.51.100.7/v1"))


async def test_request_elsewhere_goes_to_the_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And `netrc` adds nothing to it."""
    heads: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    (tmp_path / "netrc").write_text("machine 198.51.100.7 login u password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        engine = UpstreamEngine("m", UpstreamModel(url="http://198.51.100.7:8081/v1?a=b", api_key="k"))
        await engine.start()
        with pytest.raises(Exception, match="failed: status 503"):
            await events_of(
                engine, Generation(id="r", model="m", prompt=Chat(messages=(Message(role="user", content="Hi"),)))
            )
        await engine.aclose()
    assert heads[0].startswith(b"POST http://198.51.100.7:8081/v1/chat/completions?a=b HTTP/1.1\r\n")
    assert b"Authorization: Bearer k\r\n" in heads[0] and b"Basic" not in heads[0]


def test_certificates_of_environment_replace_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    context = _ssl_context()
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    usual = len(context.get_ca_certs())
    assert usual > 20
    empty = tmp_path / "empty.pem"
    empty.write_text("", encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert len(_ssl_context().get_ca_certs()) < usual


async def test_request_cancelled_at_any_step_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[asyncio.BaseTransport] = []
    connection_made = Stream.connection_made

    def note(stream: Stream, transport: asyncio.BaseTransport) -> None:
        made.append(transport)
        connection_made(stream, transport)

    served: set[asyncio.Task[None] | None] = set()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.current_task())
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def post(client: HttpClient) -> None:
        async with client.post("/chat/completions", b"{}"):
            pytest.fail("the server does not answer")

    monkeypatch.setattr(Stream, "connection_made", note)
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        client = HttpClient(urlsplit(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"), "")
        await client.open()
        for steps in range(40):
            task = asyncio.create_task(post(client))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert all(transport.is_closing() for transport in made), f"open after {steps} steps"
        assert made
        await client.aclose()
        await asyncio.gather(*filter(None, served))  # no socket is left, also without a transport

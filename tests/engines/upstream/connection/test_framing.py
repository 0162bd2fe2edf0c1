"""The end of a body, compared with h11 for every way in which its bytes can be cut."""

from __future__ import annotations

import h11
import httpcore
import pytest

from gateway.engines.upstream.connection.framing import Chunked, Sized, framing_of

WHOLE = [
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n1\r\n\n\r\n3\r\n\r\nx\r\n0\r\n\r\n",
    b"00a\r\n0123456789\r\n000\r\n\r\n",
    b"A;name=value\r\n0123456789\r\n0;x\r\nTrailer: one\r\nother: two\r\n\r\n",
    b"5 \t\r\nhello\r\n0\r\n\r\n",
]
BROKEN = [
    b"\r\n5\r\nhello\r\n0\r\n\r\n",
    b"x\r\nhello\r\n0\r\n\r\n",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello!\r\n0\r\n\r\n",
    b"5\r\nhello\r!0\r\n\r\n",
    b"5\r\nhello\n0\r\n\r\n",
    b"11111111111111111\r\nhello\r\n0\r\n\r\n",
    b"1" * 20_000,
    b"5;" + b"x" * 20_000,
    b"0\r\n" + b"a: b\r\n" * 4_000 + b"\r\n",
    b"0\r\nHTTP/1.1 200 OK\r\nb: c\r\n\r\n",
    b"0\r\n: b\r\n\r\n",
]


def read(data: bytes, step: int, framing: Chunked) -> bytes:
    return b"".join(framing.feed(data[at : at + step]) for at in range(0, len(data), step))


def by_h11(data: bytes) -> bytes:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    assert isinstance(connection.next_event(), h11.Response)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return body


@pytest.mark.parametrize("data", WHOLE)
def test_chunks_are_those_that_h11_reads(data: bytes) -> None:
    for step in range(1, len(data) + 1):
        framing = Chunked()
        assert read(data, step, framing) == by_h11(data)
        assert framing.is_over and framing.rest == b""
        framing.end()


@pytest.mark.parametrize("data", WHOLE)
def test_connection_that_ends_before_the_last_chunk_is_an_error(data: bytes) -> None:
    for length in range(len(data)):
        framing = Chunked()
        framing.feed(data[:length])
        with pytest.raises(httpcore.RemoteProtocolError):
            framing.end()


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_chunk_that_is_not_well_formed_is_an_error(data: bytes) -> None:
    for step in (1, 2, 7, len(data)) if len(data) < 100 else (997, len(data)):
        with pytest.raises(httpcore.RemoteProtocolError):
            read(data, step, Chunked())


def test_what_comes_after_the_last_chunk_is_no_body() -> None:
    framing = Chunked()
    assert framing.feed(b"1\r\nx\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n") == b"x"
    assert framing.is_over and framing.rest == b"HTTP/1.1 200 OK\r\n"


def test_body_with_a_length_ends_there() -> None:
    framing = Sized(5)
    assert framing.feed(b"hel") + framing.feed(b"lo, and more") == b"hello"
    assert framing.is_over
    with pytest.raises(httpcore.RemoteProtocolError):
        Sized(5).end()


@pytest.mark.parametrize(
    ("status", "headers", "is_over", "is_chunked"),
    [
        (200, [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")], False, True),
        (200, [(b"Content-Length", b"5")], False, False),
        (200, [(b"content-length", b"0")], True, False),
        (200, [], False, False),
        (204, [(b"Transfer-Encoding", b"chunked")], True, False),
    ],
)
def test_head_says_where_the_body_ends(
    status: int, headers: list[tuple[bytes, bytes]], is_over: bool, is_chunked: bool
) -> None:
    framing = framing_of(httpcore.Response(status, headers=headers))
    assert (framing.is_over, isinstance(framing, Chunked)) == (is_over, is_chunked)

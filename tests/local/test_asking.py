"""The small client that tests ask servers with: it shows what is on the wire."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from securifile.local.asking import BodyCutShort, Http

Serve = Callable[[Callable[[socket.socket], None]], Http]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a listener that gives each connection, one after the other, to a script; the client that reaches it."""
    listeners = []

    def begin(script: Callable[[socket.socket], None]) -> Http:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    script(connection)

        threading.Thread(target=loop, daemon=True).start()
        return Http(f"http://127.0.0.1:{listener.getsockname()[1]}", authorization="Bearer secret", timeout_s=5)

    yield begin
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def head_of(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    return data


def test_a_redirect_costs_no_upload_and_loses_the_credentials(serve: Serve) -> None:
    """A large body waits for `100 Continue`; a redirect to another port is followed without `Authorization`, as curl does."""
    seen = []

    def takes(connection: socket.socket) -> None:
        seen.append(head_of(connection))
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b""
        while len(body) < 100_000:
            body += connection.recv(65536)
        seen.append(body)
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")

    there = serve(takes)

    def sends_away(connection: socket.socket) -> None:
        seen.append(head_of(connection))
        connection.sendall(b"HTTP/1.1 307 Elsewhere\r\nContent-Length: 0\r\nLocation: " + there.url.encode() + b"/x?ticket=1\r\n\r\n")

    response = serve(sends_away).request("PUT", "/x", io.BytesIO(b"a" * 100_000), follow=True).must(201)
    first, second, body = seen
    assert first.endswith(b"\r\n\r\n")
    assert b"Authorization: Bearer secret" in first
    assert b"Authorization" not in second
    assert second.startswith(b"PUT /x?ticket=1 HTTP/1.1\r\n")
    assert body == b"a" * 100_000
    assert response.json() == {}
    assert response.url == there.url + "/x?ticket=1"


def test_an_answer_cut_short_is_no_answer(serve: Serve) -> None:
    """A body shorter than its `Content-Length` raises, whoever reads it."""

    def cuts(connection: socket.socket) -> None:
        head_of(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

    http = serve(cuts)
    got: list[bytes] = []
    with pytest.raises(BodyCutShort):
        http.request("GET", "/", into=got.append)
    assert b"".join(got) == b"abc"


def test_problems_show_their_code(serve: Serve) -> None:
    """The code of a problem is at hand; `must` shows the whole answer when it is not the expected one."""

    def refuses(connection: socket.socket) -> None:
        head_of(connection)
        body = b'{"code": "locked", "detail": "by bob"}'
        connection.sendall(
            b"HTTP/1.1 423 Locked\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )

    response = serve(refuses).request("PUT", "/", b"x")
    assert response.code == "locked"
    with pytest.raises(AssertionError, match="by bob"):
        response.must(201)

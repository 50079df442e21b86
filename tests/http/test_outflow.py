"""An answer goes out no faster than the client takes it."""

from __future__ import annotations

from tests.http.connections import Server


def test_back_pressure() -> None:
    """A write waits while the transport is full, and goes on when it is empty."""
    server = Server()
    connection = server.connect().request("GET /stream")
    sink = server.app.sinks[0]
    assert sink.write(b"x").called
    connection.transport.producer.pauseProducing()
    waiting = sink.write(b"y")
    assert not waiting.called
    connection.transport.producer.resumeProducing()
    assert waiting.called


def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """A full transport does not stay full for ever; a slow client that takes a little does."""
    server = Server()
    connection = server.connect().request("GET /stream")
    sink = server.app.sinks[0]
    for _ in range(5):
        connection.transport.producer.pauseProducing()
        server.clock.advance(59)
        connection.transport.producer.resumeProducing()
    assert connection.is_open
    connection.transport.producer.pauseProducing()
    waiting = sink.write(b"x")
    errors: list[object] = []
    waiting.addErrback(lambda failure: errors.append(failure.type.__name__))
    server.clock.advance(61)
    assert connection.transport.aborted
    connection.reset()
    assert errors == ["StreamBroken"]
    assert server.app.events == ["CancelledError"]

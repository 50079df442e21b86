"""The connections of a port: how many, and how they end."""

from __future__ import annotations

from securifile.http.limits import HttpLimits
from tests.http.connections import Server


def test_too_many_connections() -> None:
    """The longest idle one gives way; when all are busy the new one is turned away."""
    server = Server(HttpLimits(connections_max=2))
    first, second = server.connect().request("GET /bytes"), server.connect().request("GET /bytes")
    third = server.connect().request("GET /wait")
    assert first.transport.disconnecting
    assert second.is_open
    first.go()
    second.request("GET /wait")
    fourth = server.connect()
    assert fourth.answer().code == "too-many-connections"
    assert third.is_open
    assert second.is_open


def test_shutting_down_lets_answers_come_to_their_end() -> None:
    """Idle connections close at once, others after their answer, the rest after the grace."""
    server = Server()
    idle, busy, endless = (server.connect() for _ in range(3))
    idle.request("GET /bytes")
    busy.request("GET /wait")
    endless.request("GET /wait")
    done = server.factory.shut_down(10)
    assert idle.transport.disconnecting
    server.app.pending[0].callback(b"bye")
    assert busy.answer().headers["connection"] == "close"
    for connection in (idle, busy):
        connection.go()
    assert not done.called
    server.clock.advance(10)
    assert endless.transport.aborted
    endless.reset()
    assert done.called
    assert server.clock.getDelayedCalls() == []


def test_five_hundred_slow_connections_cost_one_timer_each() -> None:
    """Slow clients hold a little memory and a timer, and are all gone after their time."""
    server = Server()
    connections = [server.connect().send(b"GET /by") for _ in range(500)]
    assert len(server.clock.getDelayedCalls()) == 500
    server.clock.advance(20)
    assert all(connection.transport.half_closed for connection in connections)

"""The channel on memory transports: heads, dispatch, bodies, limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securifile.http.channel import CONTINUE
from securifile.http.limits import HttpLimits
from securifile.http.wire import HeadLimits
from securifile.model.errors import StreamBroken
from tests.http.connections import HOST, Connection, Server, parse_answers

BIG = 10 * 1024 * 1024


# --- heads ---


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"PUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET /" + b"a" * 20000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70000, 431),
        (b"GET / HTTP/3.0\r\n", 505),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    ],
)
def test_the_channels_own_errors_are_problems(data: bytes, status: int) -> None:
    """Refused before there is a request: a problem, half-close, linger, end. `data` may stop in mid-head where that is enough."""
    server = Server()
    connection = server.connect().send(data + (b"Host: a\r\n\r\n" if status == 505 else b""))
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.headers["content-type"] == "application/problem+json"
    assert connection.transport.half_closed
    connection.send(b"x" * 100000)
    assert not connection.transport.aborted
    server.clock.advance(11)
    assert connection.transport.aborted
    assert len(server.log) == 1


# --- bodies ---


@pytest.mark.parametrize("step", [None, 1, 3])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_is_streamed_to_the_route(step: int | None, chunked: bool) -> None:
    """The route gets what was sent, however it was sent."""
    connection = Server().connect()
    if chunked:
        connection.send(b"PUT /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", step)
    else:
        connection.request("PUT /echo", body=b"abcde", step=step)
    assert connection.answer().content == b"abcde"
    assert connection.is_open


def test_a_request_is_dispatched_before_its_body() -> None:
    """The route runs when the head is complete, and reads bytes as they come."""
    server = Server()
    connection = server.connect().send(b"PUT /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n")
    connection.send(b"ab")
    assert server.app.events == [2]
    connection.send(b"cde")
    assert server.app.events == [2, 3]
    assert connection.answer().content == b"abcde"


def test_an_unread_body_makes_the_client_wait() -> None:
    """Beyond 256 KiB the transport is paused, and resumed when the route has read."""
    server = Server()
    connection = server.connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % BIG)
    request = connection.channel._request
    assert request is not None
    sent = 0
    while not connection.transport.is_paused:
        connection.send(b"x" * 65536)
        sent += 65536
    assert sent == 5 * 65536
    read = request.body.read()
    assert isinstance(read.result, bytes)
    assert len(read.result) == sent
    assert not connection.transport.is_paused


def test_100_continue_waits_for_the_first_read() -> None:
    """It is sent when the route asks for the body, once; not when the request is refused, nor when the body comes unasked."""
    head = b"PUT /%b HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    connection = Server().connect().send(head % b"echo")
    assert connection.raw == CONTINUE
    connection.send(b"ab").send(b"cde")
    assert [answer.status for answer in connection.answers()] == [100, 200]
    refused = Server().connect().send(head % b"refuse")
    assert (refused.answer().status, refused.answer().headers["connection"]) == (403, "close")
    assert not refused.is_open
    waiting = Server().connect().send(head % b"wait")
    assert waiting.raw == b""
    eager = Server().connect().send(head % b"echo" + b"abcde")
    assert eager.answer().status == 200


@pytest.mark.parametrize("path", ["refuse", "redirect"])
def test_a_short_body_that_nobody_wants_is_dropped(path: str) -> None:
    """The connection stays, and the next request is understood."""
    connection = Server().connect().send(b"PUT /%b HTTP/1.1\r\n" % path.encode() + HOST + b"Content-Length: 1000\r\n\r\n")
    assert connection.answer().status in (307, 403)
    connection.send(b"x" * 999)
    connection.send(b"xGET /bytes HTTP/1.1\r\n" + HOST + b"\r\n")
    assert connection.answers()[1].content == b"hello"
    assert connection.is_open


def test_a_short_body_must_come_soon() -> None:
    """Dropping does not last for ever."""
    server = Server()
    connection = server.connect().send(b"PUT /refuse HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\n")
    server.clock.advance(5)
    assert not connection.is_open


@pytest.mark.parametrize("length", [b"Content-Length: %d" % BIG, b"Transfer-Encoding: chunked"])
def test_a_long_body_that_nobody_wants_ends_the_connection_gently(length: bytes) -> None:
    """The answer says close, our half is closed, the rest is dropped for a while, so that the client sees the answer."""
    server = Server()
    connection = server.connect().send(b"PUT /refuse HTTP/1.1\r\n" + HOST + length + b"\r\n\r\n")
    assert connection.answer().headers["connection"] == "close"
    assert connection.transport.half_closed
    for _ in range(20):
        connection.send(b"x" * 65536)
    assert not connection.transport.aborted
    assert not connection.transport.is_paused
    connection.go()
    assert server.clock.getDelayedCalls() == []


def test_a_body_cut_off_breaks_the_read() -> None:
    """The route is told, and nothing is answered."""
    server = Server()
    connection = server.connect().send(b"PUT /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nab")
    connection.go()
    assert server.app.events == [2, "broken"]
    assert connection.raw == b""
    assert (server.log[0].status, server.log[0].received, server.log[0].complete) == (0, 2, False)


def test_a_broken_chunk_breaks_the_read_and_is_answered() -> None:
    """400, and the connection ends."""
    server = Server()
    connection = server.connect().send(b"PUT /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
    connection.send(b"zz\r\n")
    assert server.app.events == [2, "broken"]
    assert (connection.answer().status, connection.answer().code) == (400, "bad-request")
    assert not connection.is_open


def test_a_route_is_cancelled_when_the_client_goes() -> None:
    """Whoever works for nobody is told so."""
    server = Server()
    server.connect().request("GET /wait").go()
    assert server.app.events == ["CancelledError"]
    assert server.clock.getDelayedCalls() == []


def test_json_is_bounded() -> None:
    """A JSON body longer than 64 KiB is refused, by its length or as it comes."""
    connection = Server().connect().request("POST /json", body=b" " * 65537)
    assert connection.answer().code == "too-large"
    chunk = b"%x\r\n%b\r\n" % (70000, b" " * 70000)
    connection = Server().connect().send(b"POST /json HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
    assert connection.answer().code == "too-large"


# --- connections ---


def test_pipelined_requests_are_answered_in_order() -> None:
    """One at a time: the second is not begun before the first is answered."""
    server = Server()
    connection = server.connect()
    connection.send(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n" + b"PUT /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nab")
    assert connection.raw == b""
    assert server.app.events == []
    server.app.pending[0].callback(b"first")
    assert [answer.content for answer in connection.answers()] == [b"first", b"ab"]


def test_many_pipelined_requests_need_no_stack() -> None:
    """Thousands in one piece are answered one after the other."""
    connection = Server().connect().send((b"GET /bytes HTTP/1.1\r\n" + HOST + b"\r\n") * 3000)
    assert len(connection.answers()) == 3000


def test_what_is_pipelined_is_bounded() -> None:
    """A client that sends on and on while its first request is worked on has to wait."""
    server = Server()
    connection = server.connect().request("GET /wait")
    connection.send((b"GET /bytes HTTP/1.1\r\n" + HOST + b"\r\n") * 3000)
    assert connection.transport.is_paused
    server.app.pending[0].callback(b"")
    assert not connection.transport.is_paused
    assert len(connection.answers()) == 3001


def test_no_request_is_begun_while_the_client_does_not_read() -> None:
    """Answers do not pile up for a client that sends requests and takes nothing."""
    connection = Server().connect()
    connection.transport.producer.pauseProducing()
    connection.request("GET /bytes")
    assert connection.raw == b""
    connection.transport.producer.resumeProducing()
    assert connection.answer().content == b"hello"


def test_close_is_done_as_asked() -> None:
    """`Connection: close` ends it after the answer."""
    connection = Server().connect().request("GET /bytes", "Connection: close").request("GET /bytes")
    assert connection.answer().headers["connection"] == "close"
    assert connection.transport.disconnecting


def test_a_head_has_twenty_seconds_in_all() -> None:
    """One byte now and then does not prolong them."""
    server = Server()
    connection = server.connect()
    for byte in b"GET /bytes HTTP/1.1"[:9]:
        connection.send(bytes([byte]))
        server.clock.advance(2)
    assert connection.is_open
    server.clock.advance(2)
    assert connection.answer().code == "request-timeout"
    assert not connection.is_open


def test_a_connection_without_a_request_is_closed_silently() -> None:
    """Nothing sent in twenty seconds: nothing answered."""
    server = Server()
    connection = server.connect()
    server.clock.advance(20)
    assert (connection.raw, connection.transport.disconnecting) == (b"", True)


def test_an_idle_connection_is_closed_after_a_while() -> None:
    """75 seconds between requests; then the next has its own twenty."""
    server = Server()
    connection = server.connect().request("GET /bytes")
    server.clock.advance(74)
    connection.send(b"G")
    server.clock.advance(19)
    assert connection.is_open
    connection.send(b"ET /bytes HTTP/1.1\r\n" + HOST + b"\r\n")
    assert len(connection.answers()) == 2
    server.clock.advance(75)
    assert connection.transport.disconnecting


def test_a_route_may_think_for_as_long_as_it_likes() -> None:
    """No timer runs while the route has all it needs."""
    server = Server()
    connection = server.connect().request("PUT /wait", body=b"abc")
    server.clock.advance(10000)
    assert connection.is_open


def test_a_trickling_body_is_cut_off() -> None:
    """Less than a kilobyte a second over a minute: 408, the route finds the body broken."""
    server = Server()
    connection = server.connect().send(b"PUT /echo HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % BIG)
    for _ in range(60):
        connection.send(b"x" * 1024)
        server.clock.advance(1)
    assert connection.is_open
    for _ in range(60):
        assert connection.is_open
        connection.send(b"x" * 1023)
        server.clock.advance(1)
    assert connection.answer().code == "request-timeout"
    assert server.app.events[-1] == "broken"
    assert connection.transport.half_closed


def test_a_client_that_we_keep_waiting_is_excused() -> None:
    """A body that stands still because the route does not read is not the client's fault."""
    server = Server()
    connection = server.connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % BIG)
    connection.send(b"x" * 300000)
    server.clock.pump([60.0] * 5)
    assert connection.is_open
    waiting = Server()
    connection = waiting.connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    waiting.clock.pump([60.0] * 5)
    assert connection.is_open


# --- any bytes ---

WORDS = [
    b"GET /bytes HTTP/1.1\r\n" + HOST + b"\r\n",
    b"HEAD /bytes HTTP/1.1\r\n" + HOST + b"\r\n",
    b"PUT /count HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    b"PUT /count HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /refuse HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    b"PUT /count HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n",
    b"GET /files/ada/%ff HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /bug",
    b"\r\n",
    b"0",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=5)), max_size=6), st.lists(st.integers(0, 600), max_size=9))
def test_any_split_of_any_requests_gives_the_same_answers(words: list[bytes], cuts: list[int]) -> None:
    """Nothing crashes, and how the bytes were cut does not show."""
    data = b"".join(words)
    limits = HttpLimits(head=HeadLimits(request_line_bytes_max=60, header_bytes_max=120, header_fields_max=4))
    whole = Server(limits).connect().send(data)
    split = Server(limits).connect()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in zip(edges, edges[1:], strict=False):
        split.send(data[start:stop])
    assert split.raw == whole.raw
    assert split.is_open == whole.is_open
    for connection in (whole, split):
        connection.go()
        assert connection.server.clock.getDelayedCalls() == []
        assert connection.server.factory.connections == 0
    heads = parse_answers(whole.raw, tuple(entry.method == "HEAD" for entry in whole.server.log))
    assert [answer.status for answer in heads] == [entry.status for entry in whole.server.log if entry.status]


class BelowLane:
    """As `tls_layer.Lane`: what a client says next, for a thread."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.received = 0
        self.closed = False

    def receive(self, count: int) -> memoryview:
        piece, self.said = self.said[:count], self.said[count:]
        self.received += len(piece)
        return memoryview(piece)

    def close(self) -> None:
        self.closed = True


def lanes_of(connection: Connection, *said: bytes) -> list[BelowLane]:
    """Lanes that the connection's transport will give, in order; then none."""
    lanes = [BelowLane(one) for one in said]
    waiting = list(lanes)
    connection.transport.lane = lambda receives: waiting.pop(0) if receives and waiting else None
    return lanes


def test_a_body_by_lanes() -> None:
    """What comes by lanes counts as what comes otherwise: it ends with the body, not a byte of what follows is taken, and is logged."""
    server = Server()
    connection = server.connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\nbegin" % BIG)
    body = connection.channel._request.body  # type: ignore[union-attr]
    lanes_of(connection, b"x" * (BIG - 1000), b"y" * 5000)
    assert body.lane() is None, "what has come goes first"
    assert body.read().result == b"begin"
    lane = body.lane()
    assert lane is not None
    came = 0
    while piece := lane.receive(BIG):
        came += len(piece)
    lane.close()
    assert came == BIG - 1000
    assert body.lane() is None, "what is left is not worth a thread"
    connection.send(b"z" * 995 + b"GET /bytes HTTP/1.1\r\n" + HOST + b"\r\n")
    assert body.read().result == b"z" * 995
    assert body.read().result == b""
    assert body.received == BIG
    connection.channel._request.finish()  # type: ignore[union-attr]
    assert connection.answers()[-1].content == b"hello"
    assert server.log[0].received == BIG


def test_a_body_ends_with_a_lane() -> None:
    """The last byte may come by one; the next request is answered."""
    connection = Server().connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % BIG)
    request = connection.channel._request
    assert request is not None
    lanes_of(connection, b"x" * BIG + b"not of the body")
    lane = request.body.lane()
    assert lane is not None
    assert sum(map(len, iter(lambda: lane.receive(BIG), b""))) == BIG
    lane.close()
    assert request.body.read().result == b""
    request.finish()
    assert connection.request("GET /bytes").answers()[-1].content == b"hello"


def test_a_slow_client_gets_no_thread_for_a_while() -> None:
    """A burst that came to little is followed by a mebibyte by way of the reactor."""
    connection = Server().connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % (100 * BIG))
    body = connection.channel._request.body  # type: ignore[union-attr]
    lanes_of(connection, b"x", b"y")
    lane = body.lane()
    assert lane is not None
    lane.receive(BIG)
    lane.close()
    for _ in range(16):
        assert body.lane() is None
        connection.send(bytes(65536))
        body.read()
    assert body.lane() is not None


def test_a_body_that_is_cut_off_takes_its_lane_back() -> None:
    """Whoever may not go on gives not a byte more."""
    connection = Server().connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % BIG)
    body = connection.channel._request.body  # type: ignore[union-attr]
    [below] = lanes_of(connection, b"x")
    assert body.lane() is not None
    body.break_off("no right")
    assert below.closed
    assert body.lane() is None
    problems: list[Any] = []
    body.read().addErrback(problems.append)
    assert problems[0].check(StreamBroken)


def test_chunks_come_without_lanes() -> None:
    """Where a chunk ends is for the reader of chunks to find out."""
    connection = Server().connect().send(b"PUT /wait HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
    lanes_of(connection, b"x")
    assert connection.channel._request.body.lane() is None  # type: ignore[union-attr]

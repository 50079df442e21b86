"""What a route is given, and how it answers, on memory transports."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from twisted.logger import globalLogPublisher
from twisted.web.resource import Resource
from twisted.web.static import Data

from tests.http.connections import Server

# --- answers ---


@pytest.mark.parametrize("step", [None, 1, 7])
def test_a_route_returns_bytes(step: int | None) -> None:
    """Bytes are answered with their length, and the connection stays."""
    connection = Server().connect().request("GET /bytes", step=step)
    answer = connection.answer()
    assert (answer.status, answer.content) == (200, b"hello")
    assert answer.headers["content-length"] == "5"
    assert answer.headers["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert "connection" not in answer.headers
    assert connection.is_open


def test_head_gives_the_length_and_nothing_else() -> None:
    """The headers of GET, no content, and the connection stays usable."""
    connection = Server().connect().request("HEAD /bytes").request("GET /bytes")
    head, get = connection.answers(True, False)
    assert head.headers == get.headers
    assert (head.content, get.content) == (b"", b"hello")


def test_head_of_a_stream() -> None:
    """A route that streams need not know that nobody listens."""
    server = Server()
    connection = server.connect().request("HEAD /stream?length=5")
    sink = server.app.sinks[0]
    assert sink.write(b"hello").called
    sink.finish()
    assert connection.answer(True).headers["content-length"] == "5"
    assert connection.is_open


def test_no_content() -> None:
    """204 has neither content nor length."""
    answer = Server().connect().request("GET /nothing").answer()
    assert answer.status == 204
    assert not {"content-length", "transfer-encoding"} & set(answer.headers)


def test_a_stream_of_unknown_length_comes_in_chunks() -> None:
    """The chunks end when the sink is finished, and the next request is answered."""
    server = Server()
    connection = server.connect().request("GET /stream").request("GET /bytes")
    for data in (b"a", b"", b"bc"):
        server.app.sinks[0].write(data)
    server.app.sinks[0].finish()
    stream, after = connection.answers()
    assert (stream.content, stream.headers["transfer-encoding"]) == (b"abc", "chunked")
    assert after.content == b"hello"


def test_http_1_0_gets_no_chunks() -> None:
    """For an old client the end of the connection is the end of the content."""
    server = Server()
    connection = server.connect().send(b"GET /stream HTTP/1.0\r\n\r\n")
    server.app.sinks[0].write(b"abc")
    server.app.sinks[0].finish()
    assert connection.answer().content == b"abc"
    assert connection.transport.disconnecting


def test_two_writes_in_twisteds_way() -> None:
    """`request.write` twice and `request.finish` work as resources expect."""
    assert Server().connect().request("GET /two").answer().content == b"one two"


def test_a_single_write_goes_out_soon() -> None:
    """What a resource wrote is not held back for ever while it thinks about more."""

    class Slow(Resource):
        isLeaf = True

        def render_GET(self, request: Any) -> int:
            request.write(b"event")
            return 1

    server = Server(resource=Slow())  # type: ignore[no-untyped-call]
    connection = server.connect().request("GET /")
    assert connection.raw == b""
    server.clock.advance(0)
    assert connection.raw.endswith(b"5\r\nevent\r\n")


def test_plain_resources_are_served() -> None:
    """A tree of Twisted's resources works, with 404 and 405 as problems or pages of their own."""
    root = Resource()
    root.putChild(b"a", Data(b"data", "text/plain"))
    server = Server(resource=root)
    assert server.connect().request("GET /a").answer().content == b"data"
    assert server.connect().request("GET /b").answer().status == 404
    answer = server.connect().request("POST /a").answer()
    assert (answer.status, answer.code) == (405, "method-not-allowed")


def test_an_answer_cut_short_is_noticed() -> None:
    """Fewer bytes than promised, more, or an abort: the connection is torn down, not closed well."""
    for data in (b"hell", b"hello!", None):
        server = Server()
        connection = server.connect().request("GET /stream?length=5")
        sink = server.app.sinks[0]
        if data is None:
            sink.abort()
        else:
            sink.write(data).addErrback(lambda _: None)
            sink.finish()
        assert connection.transport.aborted
        assert not server.log[0].complete


def test_headers_cannot_be_injected() -> None:
    """A line break in a header's value does not make another header."""
    answer = Server().connect().request("POST /json", body=b'{"a": 1}').answer()
    assert (answer.status, json.loads(answer.content)) == (201, {"a": 1})
    assert "injected" not in answer.headers


# --- errors ---


def test_a_refusal_becomes_a_problem() -> None:
    """Code, detail and evidence are there, and the connection stays."""
    connection = Server().connect().request("GET /refuse")
    answer = connection.answer()
    assert answer.status == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert {name: json.loads(answer.content)[name] for name in ("code", "detail", "why")} == {
        "code": "forbidden",
        "detail": "Not yours.",
        "why": "test",
    }
    assert connection.is_open


def test_a_bug_is_logged_and_tells_nothing() -> None:
    """500 without details; the log has the traceback."""
    events: list[object] = []

    def observe(event: dict[str, Any]) -> None:
        events.append(event["log_failure"].value)

    globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
    try:
        answer = Server().connect().request("GET /bug").answer()
    finally:
        globalLogPublisher.removeObserver(observe)  # type: ignore[arg-type]
    assert (answer.status, answer.code) == (500, "internal-error")
    assert b"secret" not in answer.content
    assert [str(error) for error in events] == ["a secret"]


def test_a_bug_after_the_answer_began_cuts_it_off() -> None:
    """The client must not take a half answer for a whole one."""
    assert Server().connect().request("GET /late-bug").transport.aborted


def test_the_routers_errors_are_problems() -> None:
    """404, and 405 with what is allowed; slashes are not tidied up."""
    server = Server()
    assert server.connect().request("GET /what").answer().code == "not-found"
    answer = server.connect().request("DELETE /refuse").answer()
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method-not-allowed", "GET, HEAD, PUT")
    assert server.connect().request("GET /files//ada").answer().status == 404
    assert server.connect().request("GET /files/ada/a//b/", "X-Odd: 1", "x-odd: 2").answer().content == b"ada|a//b/|1, 2"


@pytest.mark.parametrize("path", ["/files/ada/%ff", "/files/ada/%zz", "/%"])
def test_a_path_that_is_no_text_is_refused(path: str) -> None:
    """Paths that do not decode are problems as well."""
    assert Server().connect().request(f"GET {path}").answer().code == "bad-path"


# --- the access log ---


def test_the_access_log_has_no_ticket() -> None:
    """What is noted of a request."""
    server = Server()
    server.connect().request("GET /bytes?a=b&ticket=secret", "User-Agent: test")
    (access,) = server.log
    assert attrs.asdict(access) == {
        "peer": "192.168.1.1",
        "method": "GET",
        "target": "/bytes?a=b&ticket=-",
        "version": "HTTP/1.1",
        "status": 200,
        "sent": 5,
        "received": 0,
        "duration_s": 0.0,
        "user": None,
        "agent": "test",
        "complete": True,
    }

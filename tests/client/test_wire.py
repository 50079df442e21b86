"""Reading an answer: the same events whatever the pieces it comes in, and nothing that could be read in two ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.client.wire import AnswerReader, BadAnswer, Data, End, Event, Head, Interim, Origin, request_head, split_url

CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "a"\r\n\r\n4;x=y\r\nspam\r\nA\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n'
)
COUNTED = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


def summary(events: list[Event]) -> list[object]:
    """The events with the content in one piece."""
    content = b"".join(event.data for event in events if isinstance(event, Data))
    return [(event.status if isinstance(event, Head | Interim) else event) for event in events if not isinstance(event, Data)] + [content]


@given(st.sampled_from([CHUNKED, COUNTED]), st.lists(st.integers(0, 200)))
def test_pieces_do_not_matter(answer: bytes, cuts: list[int]) -> None:
    """An answer cut anywhere gives the same events as in one piece."""
    reader = AnswerReader("GET")
    events: list[Event] = []
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    for start, stop in zip(places, places[1:], strict=False):
        events += reader.feed(answer[start:stop])
    assert summary(events) == summary(AnswerReader("GET").feed(answer))
    assert reader.ended


def test_what_is_read() -> None:
    """Interim answers, status, fields, content and the fate of the connection come out as they went in."""
    assert summary(AnswerReader("GET").feed(CHUNKED)) == [100, 200, End(True), b"spam0123456789"]
    assert summary(AnswerReader("GET").feed(COUNTED)) == [206, End(False), b"hello"]
    [head, end] = AnswerReader("HEAD").feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ncontent-type: a\r\nX: 1\r\nx:2 \r\n\r\n")
    assert isinstance(head, Head) and end == End(True)
    assert (head.fields.get("Content-Type"), head.fields.get("X"), head.fields.get("Y")) == ("a", "1, 2", None)


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    """Such an answer is complete when the server closes; one with a length is not."""
    reader = AnswerReader("GET")
    assert summary(reader.feed(b"HTTP/1.0 200 OK\r\n\r\nabc") + reader.eof()) == [200, End(False), b"abc"]
    short = AnswerReader("GET")
    short.feed(COUNTED[:-1])
    with pytest.raises(BadAnswer, match="middle"):
        short.eof()
    with pytest.raises(BadAnswer, match="without an answer"):
        AnswerReader("GET").eof()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/2 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBad field: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: 1\nB: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(answer: bytes) -> None:
    """What is malformed, or could be read in two ways, is no answer."""
    with pytest.raises(BadAnswer):
        AnswerReader("GET").feed(answer)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_are_refused(data: bytes) -> None:
    """Whatever a server sends, nothing else than BadAnswer is raised."""
    reader = AnswerReader("GET")
    try:
        reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
        reader.eof()
    except BadAnswer:
        return
    assert reader.ended


def test_urls() -> None:
    """A URL is an origin and a target; what cannot be sent in a request is no URL."""
    assert split_url("https://[::1]:8443/a%20b?c=d") == (Origin("https", "::1", 8443), "/a%20b?c=d")
    assert Origin("https", "::1", 8443).authority == "[::1]:8443"
    assert str(split_url("HTTP://Example.org")[0]) == "http://example.org"
    for bad in ("ftp://a/", "alice", "https://", "https://a/b c", "https://u:p@a/", "https://a/\x00", "https://a:99999/"):
        with pytest.raises(ValueError):
            split_url(bad)


def test_nothing_breaks_out_of_a_field() -> None:
    """A line break in a field's value is refused instead of becoming another field."""
    assert request_head("GET", "/", {"Host": "a"}) == b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with pytest.raises(ValueError):
        request_head("GET", "/", {"Authorization": "Bearer x\r\nHost: b"})

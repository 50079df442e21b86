"""Requests as bytes: what is understood, what is refused, and that the split of the bytes does not matter."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.http.wire import ChunkedBody, Head, HeadLimits, HeadReader, LengthBody, body_reader
from securifile.model.errors import Code, Refusal

HOST = b"Host: node1.example:9443\r\n"


def read(data: bytes, limits: HeadLimits | None = None) -> Head:
    head = HeadReader(limits or HeadLimits()).feed(data)
    assert head is not None
    return head


def get(*lines: bytes, request: bytes = b"GET /a?b=c HTTP/1.1", host: bytes = HOST) -> bytes:
    return request + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def outcome(data: bytes, cuts: list[int], limits: HeadLimits | None = None) -> object:
    """Feed `data` in pieces: what came out in the end."""
    reader = HeadReader(limits or HeadLimits())
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for index, (start, stop) in enumerate(pairwise(edges)):
        try:
            head = reader.feed(data[start:stop])
            if head is None:
                continue
            body = body_reader(head)
            content = [b"".join(body.feed(reader.rest))]
            for begin, end in list(pairwise(edges))[index + 1 :]:
                content += body.feed(data[begin:end])
        except Refusal as refusal:
            return refusal.code, refusal.detail
        return head, b"".join(content), body.ended, body.rest
    return None


def test_a_plain_request() -> None:
    """Method, path, query, fields and host are read."""
    head = read(get(b"X-Odd:\tv a l \t", b"Accept: */*"))
    assert (head.method, head.path, head.query, head.version) == (b"GET", b"/a", b"b=c", b"HTTP/1.1")
    assert head.fields == ((b"Host", b"node1.example:9443"), (b"X-Odd", b"v a l"), (b"Accept", b"*/*"))
    assert head.host == b"node1.example:9443"
    assert head.keep_alive
    assert not head.has_body
    assert head.content_length is None


def test_lengths_and_expectations() -> None:
    """A length, chunks, `100-continue`; without a body nobody waits for it."""
    assert read(get(b"Content-Length: 0")).content_length == 0
    head = read(get(b"Content-Length: 5", b"Expect: 100-Continue"))
    assert (head.content_length, head.expects_continue, head.has_body) == (5, True, True)
    head = read(get(b"Transfer-Encoding: Chunked", b"Expect: 100-continue"))
    assert (head.content_length, head.chunked, head.expects_continue) == (None, True, True)
    assert not read(get(b"Expect: 100-continue")).expects_continue


def test_a_connection_is_kept_unless_said_otherwise() -> None:
    """`close` among other tokens, and HTTP/1.0, end it."""
    assert not read(get(b"Connection: x, CLOSE")).keep_alive
    assert not read(get(request=b"GET / HTTP/1.0", host=b"")).keep_alive
    assert read(get(request=b"GET / HTTP/1.5")).version == b"HTTP/1.1"


def test_absolute_targets() -> None:
    """The host of an absolute target counts more than `Host`."""
    head = read(get(request=b"GET https://Other:1/x?y HTTP/1.1"))
    assert (head.host, head.path, head.query) == (b"Other:1", b"/x", b"y")
    assert read(get(request=b"GET http://other HTTP/1.1")).path == b"/"
    assert read(get(request=b"GET http://other?q HTTP/1.1")).query == b"q"
    assert read(get(request=b"OPTIONS * HTTP/1.1")).path == b"*"
    assert read(get(request=b"GET / HTTP/1.1", host=b"Host: [::1]:8443\r\n")).host == b"[::1]:8443"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (get(host=b""), Code.BAD_REQUEST),
        (get(HOST.strip()), Code.BAD_REQUEST),
        (get(host=b"Host:\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: a b\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: a/b\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: a@b\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: a,b\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: a:b\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: a:65536\r\n"), Code.BAD_REQUEST),
        (get(host=b"Host: [::1\r\n"), Code.BAD_REQUEST),
        (get(b"Content-Length: +5"), Code.BAD_REQUEST),
        (get(b"Content-Length: -1"), Code.BAD_REQUEST),
        (get(b"Content-Length: 5 5"), Code.BAD_REQUEST),
        (get(b"Content-Length: 0x5"), Code.BAD_REQUEST),
        (get(b"Content-Length: 1_0"), Code.BAD_REQUEST),
        (get(b"Content-Length: "), Code.BAD_REQUEST),
        (get(b"Content-Length: 5, 5"), Code.BAD_REQUEST),
        (get(b"Content-Length: 5", b"content-length: 5"), Code.BAD_REQUEST),
        (get(b"Content-Length: " + b"9" * 19), Code.BAD_REQUEST),
        (get(b"Content-Length: 5", b"Transfer-Encoding: chunked"), Code.BAD_REQUEST),
        (get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), Code.BAD_REQUEST),
        (get(b"Transfer-Encoding: identity"), Code.NOT_IMPLEMENTED),
        (get(b"Transfer-Encoding: gzip, chunked"), Code.NOT_IMPLEMENTED),
        (get(b"Transfer-Encoding: chunked, chunked"), Code.NOT_IMPLEMENTED),
        (get(b"Transfer-Encoding:"), Code.NOT_IMPLEMENTED),
        (get(b"Transfer-Encoding: chunked", request=b"POST / HTTP/1.0"), Code.BAD_REQUEST),
        (get(b"Transfer-Encoding : chunked"), Code.BAD_REQUEST),
        (get(b" Folded: x"), Code.BAD_REQUEST),
        (get(b"A: b", b"\tc"), Code.BAD_REQUEST),
        (get(b"A: b\x00c"), Code.BAD_REQUEST),
        (get(b"A: b\x7fc"), Code.BAD_REQUEST),
        (get(b"A: b\x0bc"), Code.BAD_REQUEST),
        (get(b"A: b\rc"), Code.BAD_REQUEST),
        (get(b"A: b\nC: d"), Code.BAD_REQUEST),
        (get(b": b"), Code.BAD_REQUEST),
        (get(b"A"), Code.BAD_REQUEST),
        (get(b"\xc3\xa4: b"), Code.BAD_REQUEST),
        (get(b"Expect: tea"), Code.EXPECTATION),
        (get(request=b"GET / HTTP/2.0"), Code.VERSION_NOT_SUPPORTED),
        (get(request=b"GET / HTTP/0.9"), Code.VERSION_NOT_SUPPORTED),
        (get(request=b"GET / http/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET / HTTP/1.10"), Code.BAD_REQUEST),
        (get(request=b"GET /"), Code.BAD_REQUEST),
        (get(request=b"GET  / HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET /\tHTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET /a b HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET / HTTP/1.1 "), Code.BAD_REQUEST),
        (get(request=b" GET / HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET /\xe4 HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET /#x HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET a HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET * HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET ftp://a/ HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"GET http://u@a/ HTTP/1.1"), Code.BAD_REQUEST),
        (get(request=b"BREW / HTTP/1.1"), Code.NOT_IMPLEMENTED),
        (get(request=b"get / HTTP/1.1"), Code.NOT_IMPLEMENTED),
        (get(request=b"CONNECT a:1 HTTP/1.1"), Code.NOT_IMPLEMENTED),
        (get(request=b"G(T / HTTP/1.1"), Code.BAD_REQUEST),
        (b"\r\n\r\n" + get(), Code.BAD_REQUEST),
        (b"GET / HTTP/1.1\nHost: a\n\n", Code.BAD_REQUEST),
        (b"\x16\x03\x01\x02\x00\x01\x00\n", Code.BAD_REQUEST),
        (get(request=b"GET /" + b"a" * 16384 + b" HTTP/1.1"), Code.URI_TOO_LONG),
        (b"a" * 16385, Code.URI_TOO_LONG),
        (get(b"A: " + b"a" * 65536), Code.HEADERS_TOO_LARGE),
        (get()[:-2] + b"A" * 65537, Code.HEADERS_TOO_LARGE),
        (get(*[b"A: b"] * 100), Code.HEADERS_TOO_LARGE),
    ],
)
def test_what_is_refused(data: bytes, code: Code) -> None:
    """Heads that mean nothing, or to another server something else; in one piece and byte by byte."""
    whole = outcome(data, [])
    assert isinstance(whole, tuple)
    assert whole[0] is code, whole
    assert outcome(data, list(range(len(data)))[-3000:]) == whole


def test_one_blank_line_before_a_request_is_passed_over() -> None:
    """RFC 9112, section 2.2."""
    assert read(b"\r\n" + get()).path == b"/a"


def test_the_limits_are_just_met() -> None:
    """What is exactly as long as allowed goes through."""
    limits = HeadLimits(request_line_bytes_max=14, header_bytes_max=len(HOST) + 6, header_fields_max=2)
    assert read(get(b"A: b", request=b"GET / HTTP/1.1"), limits).fields[1] == (b"A", b"b")
    for longer in (get(b"A: bc", request=b"GET / HTTP/1.1"), get(b"A: b", request=b"GET /x HTTP/1.1")):
        with pytest.raises(Refusal):
            read(longer, limits)


CHUNKED = b'5\r\nhello\r\n3;x="y"\r\n123\r\n000\r\nTrailer: z\r\n\r\nGET'


def test_chunks_are_joined_and_the_rest_is_left() -> None:
    """Extensions and trailers go, what follows stays."""
    body = ChunkedBody()
    assert b"".join(body.feed(CHUNKED)) == b"hello123"
    assert body.ended
    assert body.rest == b"GET"
    body.feed(b" /")
    assert body.rest == b"GET /"


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello",
        b"5 \r\nhello",
        b" 5\r\nhello",
        b"+5\r\nhello",
        b"0x5\r\nhello",
        b"\r\n",
        b"g\r\n",
        b"5;\x00\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloXY",
        b"ffffffffffffffff\r\n",
        b"1" + b"0" * 2000,
        b"1;" + b"a" * 2000 + b"\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 3000 + b"\r\n",
        b"0\r\n" + b"A" * 20000,
    ],
)
def test_broken_chunks_are_refused(data: bytes) -> None:
    """Framing that could be read in two ways is refused; in one piece and byte by byte."""
    with pytest.raises(Refusal):
        ChunkedBody().feed(data)
    body = ChunkedBody()
    with pytest.raises(Refusal):
        for index in range(len(data)):
            body.feed(data[index : index + 1])


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.lists(st.integers(0, 400), max_size=12), st.binary(max_size=9))
def test_chunks_in_any_split(chunks: list[bytes], cuts: list[int], beyond: bytes) -> None:
    """What was sent in chunks arrives whole, however the connection cut it."""
    data = get(b"Transfer-Encoding: chunked", request=b"PUT / HTTP/1.1")
    data += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n" + beyond
    result = outcome(data, cuts)
    assert isinstance(result, tuple)
    assert result[1:] == (b"".join(chunks), True, beyond)


@given(st.binary(max_size=50), st.lists(st.integers(0, 200), max_size=9), st.binary(max_size=9))
def test_lengths_in_any_split(content: bytes, cuts: list[int], beyond: bytes) -> None:
    """A body of known length arrives whole, and no byte more."""
    data = get(b"Content-Length: %d" % len(content), request=b"PUT / HTTP/1.1") + content + beyond
    result = outcome(data, cuts)
    assert isinstance(result, tuple)
    assert result[1:] == (content, True, beyond)


def test_a_body_cut_off_has_not_ended() -> None:
    """One byte is missing, and it shows."""
    body = LengthBody(5)
    assert body.feed(b"hell") == [b"hell"]
    assert not body.ended


pieces = st.sampled_from(
    [
        b"GET ", b"PUT ", b"/", b" HTTP/1.1", b"\r\n", b"\n", b"\r", b"Host: a", b"Content-Length: ", b"Transfer-Encoding: chunked", b": ",
        b" ", b"\x00", b"5", b"0", b"hello", b";", b"Expect: 100-continue",
    ]
)  # fmt: skip


@given(st.lists(st.one_of(pieces, st.binary(max_size=4)), max_size=25), st.lists(st.integers(0, 300), max_size=12))
def test_any_split_of_any_bytes_gives_the_same(parts: list[bytes], cuts: list[int]) -> None:
    """Whether understood or refused, and with which words, does not depend on how the bytes came."""
    data = b"".join(parts)
    limits = HeadLimits(request_line_bytes_max=40, header_bytes_max=60, header_fields_max=3)
    assert outcome(data, cuts, limits) == outcome(data, [], limits)

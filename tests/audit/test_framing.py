"""Messages come out of a stream whole, however it was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.audit.framing import FrameDecoder, FramingError, encode_frame


@given(st.lists(st.binary(min_size=1, max_size=300)), st.lists(st.integers(1, 40), min_size=1))
def test_any_split(messages: list[bytes], cuts: list[int]) -> None:
    """Any split of the bytes gives the same messages."""
    stream = b"".join(map(encode_frame, messages))
    decoder, events, at, turn = FrameDecoder(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        events += decoder.receive(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert events == messages
    assert decoder.clean


@pytest.mark.parametrize("bad", [b"x", b"0 ", b"05 hello", b" 5 hello", b"-1 ", b"5\nhello", b"1234567", b"65537 ", "٣ abc".encode()])
def test_malformed(bad: bytes) -> None:
    """A stream that breaks the framing gives one error after what came before, and nothing ever again."""
    decoder = FrameDecoder()
    before, error = decoder.receive(b"2 ok" + bad)
    assert before == b"ok"
    assert isinstance(error, FramingError)
    assert decoder.receive(b"2 ok") == []
    assert not decoder.clean


def test_malformed_byte_by_byte() -> None:
    """The error comes as soon as it is certain, not when a length has arrived in full."""
    decoder = FrameDecoder()
    assert decoder.receive(b"5") == []
    assert [type(event) for event in decoder.receive(b"x")] == [FramingError]


def test_limit() -> None:
    """The longest message passes; one byte more does not, and is not waited for."""
    decoder = FrameDecoder(10)
    assert decoder.receive(encode_frame(b"x" * 10)) == [b"x" * 10]
    assert isinstance(decoder.receive(b"11 ")[0], FramingError)


@given(st.binary())
def test_garbage(data: bytes) -> None:
    """Garbage never raises."""
    FrameDecoder().receive(data)


def test_empty_message() -> None:
    """An empty message cannot be framed."""
    with pytest.raises(ValueError, match="not empty"):
        encode_frame(b"")

"""Frames: cutting, limits, and what hostile bytes cost."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.protocol.frames import Frame, FrameDecoder, FrameError, FrameKind, FrameLimits, encode_frame

_FRAMES = st.lists(st.builds(Frame, st.sampled_from(FrameKind), st.binary(max_size=40)), max_size=8)


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:stop] for start, stop in zip(places, places[1:], strict=False)]


def _joined(frames: list[Frame]) -> list[Frame]:
    """With the parts of data that follow each other put together, as its reader does."""
    joined: list[Frame] = []
    for frame in frames:
        if frame.kind is FrameKind.DATA and frame.body and joined and joined[-1].kind is FrameKind.DATA and joined[-1].body:
            joined[-1] = Frame(FrameKind.DATA, joined[-1].body + frame.body)
        else:
            joined.append(frame)
    return joined


@given(_FRAMES, st.lists(st.integers(min_value=0), max_size=10))
def test_any_split(frames: list[Frame], cuts: list[int]) -> None:
    """However the bytes are split, the same frames and the same data come out, and nothing is left over."""
    data = b"".join(encode_frame(frame.kind, frame.body) for frame in frames)
    decoder = FrameDecoder()
    received = []
    for part in _split(data, cuts):
        got, error = decoder.receive(part)
        assert error is None
        received += got
    assert _joined(received) == _joined(frames)
    assert decoder.kept_bytes == 0


@given(st.lists(st.binary(max_size=60), max_size=6), st.lists(st.integers(min_value=0), max_size=10))
def test_random_bytes(parts: list[bytes], cuts: list[int]) -> None:
    """Random bytes are refused or wait for more, never crash, and mean the same however they are split."""
    data = b"".join(parts)
    whole_frames, whole_error = FrameDecoder().receive(data)
    decoder, frames, error = FrameDecoder(), [], None
    for part in _split(data, cuts):
        got, error = decoder.receive(part)
        frames += got
    assert _joined(frames) == _joined(whole_frames)
    assert repr(error) == repr(whole_error)
    assert decoder.kept_bytes <= len(data)


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(min_value=0), max_size=4), st.integers(min_value=0))
def test_data_comes_out_as_it_comes_in(data: bytes, cuts: list[int], passed: int) -> None:
    """No byte of a data frame waits for the next one, and what another way took of it is not waited for."""
    decoder = FrameDecoder()
    frame = encode_frame(FrameKind.DATA, data) + encode_frame(FrameKind.END)
    decoder.receive(frame[: decoder.wanted_bytes])
    assert decoder.wanted_bytes == decoder.data_missing == len(data)
    passed %= len(data) + 1
    decoder.data_passed(passed)
    came = b""
    for part in _split(frame[5 + passed :], cuts):
        frames, error = decoder.receive(part)
        assert error is None
        came += b"".join(frame.body for frame in frames)
        assert decoder.kept_bytes == 0 or came == data[passed:]
    assert came == data[passed:]
    assert frames[-1].kind is FrameKind.END


def test_hostile_length() -> None:
    """A length beyond the limit is refused from its header, and nothing more is kept."""
    decoder = FrameDecoder()
    _, error = decoder.receive(b"\x00\xff\xff\xff")
    assert isinstance(error, FrameError)
    for _ in range(100):
        assert decoder.receive(b"x" * 65536) == ([], error)
    assert decoder.kept_bytes == 0


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01", b"\x00\x00\x00\x00", b"\x00\x00\x00\x01\x63"],
    ids=["http", "tls", "no-kind", "unknown-kind"],
)
def test_not_frames(start: bytes) -> None:
    """Other protocols, empty frames and unknown kinds are errors."""
    assert FrameDecoder().receive(start)[1] is not None


def test_limit_by_kind() -> None:
    """Each kind of frame has its own limit: a hello is not as long as a message."""
    decoder = FrameDecoder(FrameLimits(hello_bytes_max=10, control_bytes_max=1000, data_bytes_max=100))
    assert decoder.receive(encode_frame(FrameKind.DATA, b"x" * 100))[1] is None
    assert decoder.receive(encode_frame(FrameKind.REQUEST, b"x" * 1000))[1] is None
    frames, error = decoder.receive(encode_frame(FrameKind.ANSWER, b"good") + encode_frame(FrameKind.HELLO, b"x" * 11))
    assert frames == [Frame(FrameKind.ANSWER, b"good")]
    assert error is not None


def test_linear() -> None:
    """Time and memory are linear: a 4 MiB frame in small pieces, and a flood of tiny frames, are quick and are not kept."""
    decoder = FrameDecoder()
    big = encode_frame(FrameKind.REQUEST, bytes(4 * 1024 * 1024))
    flood = encode_frame(FrameKind.END) * 20_000
    started = time.perf_counter()
    count = 0
    tracemalloc.start()
    for start in range(0, len(big), 1000):
        count += len(decoder.receive(big[start : start + 1000])[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    count += len(decoder.receive(flood)[0])
    assert count == 20_001
    assert peak < 3 * len(big)
    assert time.perf_counter() - started < 5

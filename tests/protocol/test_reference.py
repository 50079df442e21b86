"""`docs/protocol.md` says what the code does."""

from __future__ import annotations

import re

import msgpack
import pytest

from securifile.model.ids import Position
from securifile.model.servers import ServerKind
from securifile.protocol import bulk, codec, connection, frames, rpc, wire
from securifile.protocol.codec import encode
from securifile.protocol.connection import Connection, PeerIdentity, Purpose, Side
from securifile.protocol.frames import FrameKind, encode_frame
from securifile.protocol.messages import Heartbeat
from tests.protocol.reference import DOCUMENT, renewed

TEXT = DOCUMENT.read_text(encoding="utf-8")


def test_generated_parts() -> None:
    """The diagram and the tables are what the code says; `python -m tests.protocol.reference` writes them anew."""
    assert renewed(TEXT) == TEXT, "run: python -m tests.protocol.reference"


def test_frame_kinds() -> None:
    """Every kind of frame has a row, with its number."""
    rows = dict(re.findall(r"^\| (\d) \| ([A-Z]+) \|", TEXT, re.MULTILINE))
    assert rows == {str(kind.value): kind.name for kind in FrameKind}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hello frame", frames.HELLO_BYTES_MAX),
        ("message frame", frames.CONTROL_BYTES_MAX),
        ("data frame", frames.DATA_BYTES_MAX),
        ("string", codec.STRING_BYTES_MAX),
        ("array", codec.ARRAY_ITEMS_MAX),
        ("map", codec.MAP_ITEMS_MAX),
        ("nesting", codec.NESTING_MAX),
        ("requests in flight", connection.ConnectionLimits().requests_in_flight_max),
        ("hello", wire.HELLO_S),
        ("stall", bulk.STALL_S),
        ("idle", bulk.IDLE_S),
        ("silence", rpc.SILENCE_S),
    ],
)
def test_limits(name: str, value: float) -> None:
    """Every limit has a row, with the number that the code has."""
    [shown] = re.findall(rf"^\| {name} \| ([\d ]+)", TEXT, re.MULTILINE)
    assert float(shown.replace(" ", "")) == value


def test_examples() -> None:
    """The examples are the bytes that are sent."""
    n2 = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n2")
    hello = Connection(Side.CLIENT, n2, Purpose.CONTROL).hello()
    request = encode_frame(FrameKind.REQUEST, bytes([0, 0, 0, 1]), encode(Heartbeat(position=Position(1, 42))))
    examples = [bytes.fromhex(re.sub(r"[^0-9a-f]", "", block)) for block in re.findall(r"```hex\n(.*?)```", TEXT, re.DOTALL)]
    assert examples == [hello, request], [hello.hex(" "), request.hex(" ")]
    assert msgpack.unpackb(hello[5 + len(connection.MAGIC) :])["purpose"] == "control"

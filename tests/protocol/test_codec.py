"""The codec: round trips for every class, strictness, leniency between releases."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from securifile.model.entries import Sidecar
from securifile.model.facts import Change, Fact, Settings
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.records import AuditRecord
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages
from securifile.protocol.codec import MESSAGES, CodecError, UnknownMessage, decode, decode_value, encode, encode_value
from tests.protocol.values import values

STORED: dict[str, Any] = {"Change": Change, "Fact": Fact, "Facts": tuple[Fact, ...], "Sidecar": Sidecar, "AuditRecord": AuditRecord}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_messages_round_trip(name: str) -> None:
    """Every message comes out of its bytes as it went in."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values(MESSAGES[name]))
    def holds(message: Any) -> None:
        assert decode(encode(message)) == message

    holds()


@pytest.mark.parametrize("name", sorted(STORED))
def test_values_round_trip(name: str) -> None:
    """What is stored comes back as it was."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values(STORED[name]))
    def holds(value: Any) -> None:
        assert decode_value(STORED[name], encode_value(STORED[name], value)) == value

    holds()


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    """Random bytes are a `CodecError` or a message, never anything else."""
    try:
        message = decode(data)
    except CodecError:
        return
    assert type(message) in MESSAGES.values()


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=20) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_random_fields(name: str, data: st.DataObject) -> None:
    """Well-formed msgpack of the wrong shape is a `CodecError` or a message, never anything else."""
    hints = MESSAGES[name].__annotations__
    fields = {field: data.draw(_PLAIN) for field in hints}
    try:
        message = decode(msgpack.packb([name, fields]))
    except CodecError:
        return
    assert type(message) is MESSAGES[name]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"position": [1, 2], "used_bytes": "3"},
        {"position": [1, 2], "used_bytes": True},
        {"position": [1], "used_bytes": 3},
        {"position": [1, 2], "judgements": {"a": "sleeping"}},
        {"position": [1, 2], "judgements": {b"a": "down"}},
        {"position": [1, 2], "judgements": [["a", "down"]]},
        [],
        None,
    ],
)
def test_strict(fields: object) -> None:
    """Missing fields and wrong types are errors."""
    with pytest.raises(CodecError):
        decode(msgpack.packb(["Heartbeat", fields]))


def test_lenient() -> None:
    """Fields from a later release are passed over; fields an earlier one did not send take their default."""
    data = msgpack.packb(["Heartbeat", {"position": [1, 2], "mood": {"good": [1, 2, 3]}}])
    assert decode(data) == messages.Heartbeat(position=Position(1, 2))


def test_unknown_message() -> None:
    """A message of a later release is told apart from a malformed one."""
    with pytest.raises(UnknownMessage) as caught:
        decode(msgpack.packb(["Sing", {}]))
    assert caught.value.name == "Sing"


@pytest.mark.parametrize(
    "message",
    [
        messages.Heartbeat(position=(1, 2)),  # type: ignore[arg-type]
        messages.Heartbeat(position=Position(1, 2**70)),
        messages.LeaseRelease(key=b"k", attempt=EntryId(bytes(16))),  # type: ignore[arg-type]
        messages.LeaseAsk(key=b"k", attempt=AttemptId(bytes(16)), person="ann", duration_s=float("inf")),
        messages.SignIn(username="ann", password="\ud800", peer="p"),
        messages.Refused(code="c", detail="d", evidence={"what": object()}),
        messages.Announce(position=Position(1, 2), facts=["no fact"]),  # type: ignore[arg-type]
        "no message",
    ],
)
def test_encode_is_strict(message: Any) -> None:
    """A value that its annotation does not allow is found by its sender."""
    with pytest.raises(CodecError):
        encode(message)


@pytest.mark.parametrize(
    "hostile",
    [b"\x91" * 3000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc7\x01\x05x"],
)
def test_hostile(hostile: bytes) -> None:
    """Deep nesting, huge announced sizes and extension types are refused at once."""
    with pytest.raises(CodecError):
        decode(b"\x92\xa4Done" + hostile)


def test_deep_evidence() -> None:
    """What an `Any` holds is not nested for ever."""
    deep: Any = {}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(CodecError):
        encode(messages.Refused(code="c", detail="d", evidence=deep))


def test_stored_example() -> None:
    """Bytes that an earlier release stored are read for ever."""
    change = Change(revision=7, facts=(Settings(cluster="c", settings=ClusterSettings()),))
    stored = bytes.fromhex("9201") + msgpack.packb({"revision": 7, "facts": [["Settings", {"cluster": "c", "settings": {"replicas": 2}}]]})
    assert decode_value(Change, stored) == change
    with pytest.raises(CodecError):
        decode_value(Change, b"\x92\x63" + stored[2:])


def test_secrets_stay_out_of_errors() -> None:
    """A password of the wrong type is not repeated in the error, which is logged."""
    with pytest.raises(CodecError) as caught:
        decode(msgpack.packb(["SignIn", {"username": "ann", "password": b"hunter2", "peer": "p"}]))
    assert "hunter2" not in str(caught.value)

"""Records survive the way through RFC 5424, and nothing in them can forge a line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securifile.audit.records import (
    ERROR,
    INFORMATIONAL,
    MESSAGE_BYTES_MAX,
    NOTICE,
    SEQUENCE_MAX,
    WARNING,
    Element,
    MalformedMessage,
    NumberedRecord,
    format_record,
    parse_message,
    record_of,
    severity_of,
)
from securifile.model.records import AuditRecord

ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=60)
"""Everything a str can hold: control characters, lone surrogates, quotes."""

RECORDS = st.builds(
    AuditRecord,
    at=st.integers(0, 4_000_000_000_000_000).map(lambda microseconds: microseconds / 1_000_000),
    server=ANY_TEXT,
    event=ANY_TEXT,
    person=st.none() | ANY_TEXT,
    path=st.none() | ANY_TEXT,
    entry=st.none() | ANY_TEXT,
    status=st.none() | st.integers(100, 599),
    bytes=st.none() | st.integers(0, 2**60),
    duration_s=st.none() | st.floats(0, 1e9),
    peer=st.none() | ANY_TEXT,
    detail=st.none() | ANY_TEXT,
)
NUMBERED = st.builds(NumberedRecord, boot=st.just("b0071234"), number=st.integers(1, 10**18 - 1), record=RECORDS)

READ = AuditRecord(
    at=1795255063.25, server="node-1", event="read", person="ann", path='/ann/"plan" [1].txt', entry="00ff", status=200, bytes=5,
    duration_s=0.004, peer="192.0.2.7",
)  # fmt: skip


def numbered(record: AuditRecord, number: int = 17) -> NumberedRecord:
    return NumberedRecord(boot="b007", number=number, record=record)


@given(NUMBERED)
def test_round_trip(original: NumberedRecord) -> None:
    """What is written is read again, whatever the texts contain."""
    assert record_of(parse_message(format_record(original, version="1.0"))) == original


@given(NUMBERED)
def test_one_line(original: NumberedRecord) -> None:
    """A record is one line: no control character gets out, and Python splits it nowhere."""
    written = format_record(original, version="1.0")
    assert not any(byte < 0x20 or byte == 0x7F for byte in written)
    assert len(written.decode("utf-8").splitlines()) == 1


def test_stored_example() -> None:
    """The format of the first release, byte for byte: change it only with a way to read this one."""
    expected = Path(__file__).with_name("record-1.txt").read_bytes().rstrip(b"\n")
    assert format_record(numbered(READ), version="1.0") == expected
    assert record_of(parse_message(expected)) == numbered(READ)


@given(
    st.sampled_from(["person", "path", "detail", "peer", "server", "event", "entry"]),
    st.sampled_from(['"', "\n", "é", "\U0001f600", "\ud800", "%"]),
)
def test_too_long_is_cut(field: str, character: str) -> None:
    """Values of any length make a message that every receiver of ours takes, and that still has its name."""
    too_long: dict[str, Any] = {field: character * 100_000}
    written = format_record(numbered(attrs.evolve(READ, **too_long)), version="1.0")
    assert len(written) <= MESSAGE_BYTES_MAX
    read = record_of(parse_message(written))
    assert read is not None
    assert (read.boot, read.number) == ("b007", 17)
    assert getattr(read.record, field).endswith("…")
    assert len(getattr(read.record, field)) > 600


def test_everything_too_long() -> None:
    """All texts at once, each as long and as hard to write as can be, still fit one message."""
    worst = "\U000e0001\n]" * 50_000
    fields: dict[str, Any] = dict.fromkeys(("server", "event", "person", "path", "entry", "peer", "detail"), worst)
    written = format_record(numbered(attrs.evolve(READ, **fields)), version="x" * 1000)
    assert len(written) <= MESSAGE_BYTES_MAX
    assert record_of(parse_message(written)) is not None


@pytest.mark.parametrize("number", [1, 2, SEQUENCE_MAX, SEQUENCE_MAX + 1, 3 * SEQUENCE_MAX + 2])
def test_sequence_wraps(number: int) -> None:
    """`meta sequenceId` stays within what RFC 5424 allows; our own number goes on."""
    message = parse_message(format_record(numbered(READ, number), version="1.0"))
    meta = next(element for element in message.elements if element.name == "meta")
    assert meta.parameters == (("sequenceId", str((number - 1) % SEQUENCE_MAX + 1)),)
    read = record_of(message)
    assert read is not None
    assert read.number == number


@pytest.mark.parametrize("strange", [{"at": float("nan")}, {"at": -1.0}, {"at": 1e300}, {"duration_s": float("inf")}, {"bytes": 10**40}])
def test_strange_numbers(strange: dict[str, Any]) -> None:
    """A number that cannot be said is left out; the record still has its name, or it would be offered for ever."""
    assert record_of(parse_message(format_record(numbered(attrs.evolve(READ, **strange)), version="1.0"))) is not None


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({"status": 200}, INFORMATIONAL), ({"status": 307}, INFORMATIONAL), ({"status": 404}, NOTICE), ({"status": 403}, WARNING),
        ({"status": 503}, ERROR), ({"detail": "running -> failed"}, ERROR), ({"detail": "running -> down"}, WARNING),
        ({"detail": None}, NOTICE),
    ],
)  # fmt: skip
def test_severity(fields: dict[str, Any], severity: int) -> None:
    """The severity follows the answer's status, or what became of a server."""
    assert severity_of(AuditRecord(at=0, server="n", event="status", **fields)) == severity


def test_rfc_examples() -> None:
    """The examples of RFC 5424 (6.5) are read as it explains them."""
    head = b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - "
    first = parse_message(head + b"\xef\xbb\xbf'su root' failed for lonvick on /dev/pts/8")
    assert (first.facility, first.severity, first.at, first.procid) == (4, 2, 1065910455.003, None)
    assert first.text == "'su root' failed for lonvick on /dev/pts/8"
    second = parse_message(b"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time to make the do-nuts.")
    assert second.at == 1061727255.000003
    fourth = parse_message(
        b'<165>1 2003-10-11T22:14:15.003Z mymachine.example.com evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="Application"'
        b' eventID="1011"][examplePriority@32473 class="high"]'
    )
    assert fourth.text == ""
    assert fourth.elements[1] == Element(name="examplePriority@32473", parameters=(("class", "high"),))
    assert record_of(fourth) is None


def test_backslash_before_anything_else_is_a_backslash() -> None:
    r"""Only \" \\ and \] are escapes (RFC 5424, 6.3.3)."""
    message = parse_message(rb'<13>1 - - - - - [x a="\n\\\]\""]')
    assert message.elements[0].parameters == (("a", r"\n" + "\\" + ']"'),)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"<", b"<192>1 - - - - - -", b"<013>1 - - - - - -", b"<13>2 - - - - - -", b"<13>1 - - - - - ", b"<13>1 - - - - - [",
     b'<13>1 - - - - - [a b="]"]',
     b"<13>1 - - - - - -x", b"<13>1 2003-13-11T22:14:15Z - - - - -", b"<13>1 2003-10-11T22:14:60Z - - - - -", b"<13>1 yesterday - - - - -"],
)  # fmt: skip
def test_malformed(garbage: bytes) -> None:
    """What is not RFC 5424 is said not to be."""
    with pytest.raises(MalformedMessage):
        parse_message(garbage)


@given(st.binary() | st.binary().map(lambda tail: b"<13>1 - - - - - [securifile@32473" + tail), st.integers(0, 400), st.integers(0, 255))
def test_garbage(data: bytes, at: int, byte: int) -> None:
    """Garbage, and good messages with any one byte changed, give a message or the one error, never a crash."""
    good = bytearray(format_record(numbered(READ), version="1.0"))
    good[at % len(good)] = byte
    for candidate in (data, bytes(good)):
        with contextlib.suppress(MalformedMessage):
            record_of(parse_message(candidate))

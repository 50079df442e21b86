"""Audit records as syslog messages: RFC 5424, there and back.

A record is one line that a person can read and any syslog server can take in:

    <110>1 2026-11-21T09:57:43.250000Z node-1 securifile 5f0c… read [securifile@32473 boot="5f0c…" number="17"
    person="ann" path="/ann/plan.txt" status="200" …][meta sequenceId="17"][origin software="SecuriFile" swVersion="1.0"]
    BOM ann: read /ann/plan.txt, status 200, 5 bytes in 0.004 s, from 192.0.2.7

The structured data is the truth, from which `record_of` rebuilds the very same value; the words at the end repeat it for
people. A record of ours is told by its **boot id** (which start of which server) and its **number** (1, 2, 3, … within the boot).

Two numbers, why? RFC 5424 (7.3.1) lets `meta sequenceId` start again at 1 after 2147483647; a busy node that is not restarted
gets there, and a number that repeats cannot tell a double from a new record. So `sequenceId` is there for other people's
tools, and `number`, which never repeats, for ours.

32473 is the enterprise number that RFC 5612 sets aside for examples: SecuriFile has none of its own.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import attrs

from securifile.model.records import AuditRecord

ELEMENT = "securifile@32473"
"""The SD-ID of our structured data (RFC 5424, 6.3.2)."""
APP_NAME = "securifile"
FACILITY_AUDIT = 13
"""`log audit` (RFC 5424, table 1)."""
SEQUENCE_MAX = 2147483647
"""RFC 5424, 7.3.1; the value after it is 1."""
MESSAGE_BYTES_MAX = 65536
"""No message of ours is longer, and no longer one is taken: eight times what a receiver should take (RFC 5425, 4.3.1)."""

_VALUE_BYTES_MAX = 6144
"""Longer values are cut: seven of them and the words must fit a message, since one that nobody takes would block all after it.
Longer than any path that is allowed."""
_TEXT_BYTES_MAX = 8192

ERROR, WARNING, NOTICE, INFORMATIONAL = 3, 4, 5, 6
"""Severities (RFC 5424, table 2)."""

_BOM = b"\xef\xbb\xbf"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AT_MAX = 253402300799.0
"""The last second of the year 9999."""


class MalformedMessage(ValueError):
    """These bytes are not an RFC 5424 message."""


@attrs.frozen(kw_only=True)
class NumberedRecord:
    """A record with its name: no two records of a cluster have the same boot and number."""

    boot: str
    number: int
    record: AuditRecord


@attrs.frozen(kw_only=True)
class Element:
    """One SD-ELEMENT: a name and parameters, in order; a parameter's name may come twice."""

    name: str
    parameters: tuple[tuple[str, str], ...] = ()


@attrs.frozen(kw_only=True)
class SyslogMessage:
    """Any RFC 5424 message. None stands for the NILVALUE `-`."""

    facility: int
    severity: int
    at: float | None
    hostname: str | None
    app_name: str | None
    procid: str | None
    msgid: str | None
    elements: tuple[Element, ...]
    text: str
    """MSG without its BOM; bytes that are not UTF-8 are replaced by U+FFFD."""


# --- writing ---


def format_record(numbered: NumberedRecord, *, version: str, facility: int = FACILITY_AUDIT) -> bytes:
    """The message for a record, at most `MESSAGE_BYTES_MAX` long and free of control characters, so that one line is one record.

    `record_of(parse_message(…))` gives `numbered` back, times rounded to the microsecond; values of more than 6 KiB are cut.

    Args:
        version: of SecuriFile, for `origin swVersion`.
    """
    record = numbered.record
    hostname, msgid = _header_word(record.server, 255), _header_word(record.event, 32)
    ours: list[tuple[str, str | None]] = [
        ("boot", numbered.boot),
        ("number", str(numbered.number)),
        # The header has room for short ASCII words only; what does not fit it is said here in full.
        ("server", None if hostname == record.server != "-" else record.server),
        ("event", None if msgid == record.event != "-" else record.event),
        ("person", record.person),
        ("path", record.path),
        ("entry", record.entry),
        ("status", None if record.status is None else str(record.status)),
        ("bytes", None if record.bytes is None else str(record.bytes)),
        ("duration", _seconds(record.duration_s)),
        ("peer", record.peer),
        ("detail", record.detail),
    ]
    meta: list[tuple[str, str | None]] = [("sequenceId", str((numbered.number - 1) % SEQUENCE_MAX + 1))]
    origin: list[tuple[str, str | None]] = [("software", "SecuriFile"), ("swVersion", version[:32])]
    return b" ".join(
        [
            b"<%d>1" % (facility * 8 + severity_of(record)),
            _timestamp(record.at).encode("ascii"),
            hostname.encode("ascii"),
            APP_NAME.encode("ascii"),
            # A PROCID that changes says that the counting began anew (RFC 5424, 6.2.6): just what a boot id means.
            _header_word(numbered.boot, 128).encode("ascii"),
            msgid.encode("ascii"),
            _element(ELEMENT, ours) + _element("meta", meta) + _element("origin", origin),
            _BOM + _cut(_sentence(record), _TEXT_BYTES_MAX, sd=False),
        ]
    )


def severity_of(record: AuditRecord) -> int:
    """How loud: errors of ours and servers that failed, then refusals of rights and servers that went down, then the rest."""
    if record.status is not None:
        if record.status >= 500:
            return ERROR
        if record.status in (401, 403):
            return WARNING
        return NOTICE if record.status >= 400 else INFORMATIONAL
    outcome = (record.detail or "").rsplit(" ", 1)[-1]
    if outcome in ("failed", "corrupt", "missing"):
        return ERROR
    return WARNING if outcome == "down" else NOTICE


def _sentence(record: AuditRecord) -> str:
    """`ann: read /ann/plan.txt, status 200, 5 bytes in 0.004 s, from 192.0.2.7, detail`."""
    parts = [record.event if record.path is None else f"{record.event} {record.path}"]
    if record.status is not None:
        parts.append(f"status {record.status}")
    if record.bytes is not None:
        took = "" if record.duration_s is None else f" in {record.duration_s:.3f} s"
        parts.append(f"{record.bytes} bytes{took}")
    elif record.duration_s is not None:
        parts.append(f"{record.duration_s:.3f} s")
    if record.peer is not None:
        parts.append(f"from {record.peer}" if record.person is not None else f"about {record.peer}")
    if record.detail is not None:
        parts.append(record.detail)
    return f"{record.person or record.server}: {', '.join(parts)}"


def _seconds(duration_s: float | None) -> str | None:
    return None if duration_s is None or not math.isfinite(duration_s) else repr(float(duration_s))


def _timestamp(at: float) -> str:
    within = min(max(at, 0.0), _AT_MAX) if math.isfinite(at) else 0.0
    moment = datetime.fromtimestamp(within, tz=UTC)
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


@lru_cache(256)
def _header_word(word: str, length_max: int) -> str:
    """The word as header fields allow it (printable ASCII without spaces), or `-` if nothing is left."""
    kept = re.sub(r"[^\x21-\x7e]", "_", word)[:length_max]
    return kept or "-"


def _element(name: str, parameters: list[tuple[str, str | None]]) -> bytes:
    said = [b' %s="%s"' % (key.encode("ascii"), _cut(value, _VALUE_BYTES_MAX, sd=True)) for key, value in parameters if value is not None]
    return b"[" + name.encode("ascii") + b"".join(said) + b"]"


# Control characters, line separators and the marks that reverse the direction of writing can forge a line or hide one. They are
# percent-encoded, and so is the percent sign, or the way back would be ambiguous; and lone surrogates, which UTF-8 cannot say.
_UNSPEAKABLE = re.compile("[%\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found.group().encode("utf-8", "surrogatepass"))


_PLAIN = re.compile("[A-Za-z0-9 ._/:,@+~-]*")
"""What most values are made of, in which nothing needs to be escaped."""


def _escaped(text: str, sd: bool) -> bytes:
    if _PLAIN.fullmatch(text):
        return text.encode("ascii")
    spoken = _UNSPEAKABLE.sub(_percent, text)
    if sd:
        spoken = re.sub(r'(["\\\]])', r"\\\1", spoken)
    return spoken.encode("utf-8")


def _cut(text: str, bytes_max: int, *, sd: bool) -> bytes:
    """Escaped, and shortened to `bytes_max` without splitting a character or its escape."""
    whole = _escaped(text[: bytes_max + 1], sd)
    if len(whole) <= bytes_max:
        return whole
    ellipsis = "…".encode()
    parts, room = [], bytes_max - len(ellipsis)
    for character in text:
        part = _escaped(character, sd)
        room -= len(part)
        if room < 0:
            break
        parts.append(part)
    return b"".join(parts) + ellipsis


# --- reading ---

_HEADER = re.compile(
    rb"<(0|[1-9][0-9]{0,2})>1 ([\x21-\x7e]{1,64}) ([\x21-\x7e]{1,255}) ([\x21-\x7e]{1,48}) ([\x21-\x7e]{1,128}) ([\x21-\x7e]{1,32}) "
)
_TIMESTAMP = re.compile(
    rb"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)
_SD_NAME = r"[\x21\x23-\x3c\x3e-\x5c\x5e-\x7e]{1,32}"
_SD_VALUE = r'[^"\\\]]*(?:\\.[^"\\\]]*)*'
_PARAMETER = re.compile(f' ({_SD_NAME})="({_SD_VALUE})"', re.DOTALL)
_ELEMENT = re.compile(f'\\[({_SD_NAME})((?: {_SD_NAME}="{_SD_VALUE}")*)\\]'.encode("ascii"), re.DOTALL)
"""In bytes, since what is not UTF-8 may stand in a value; each parameter is then read from the text."""
_ESCAPED = re.compile(r'\\(["\\\]])')


def parse_message(data: bytes) -> SyslogMessage:
    """Read any RFC 5424 message, ours or another's.

    Raises:
        MalformedMessage: it is not one. Nothing else is ever raised, whatever the bytes.
    """
    header = _HEADER.match(data)
    if header is None:
        raise MalformedMessage("no RFC 5424 header")
    priority = int(header[1])
    if priority > 191:
        raise MalformedMessage(f"PRI {priority} is above 191")
    elements, rest = _read_elements(data, header.end())
    return SyslogMessage(
        facility=priority // 8,
        severity=priority % 8,
        at=_read_timestamp(header[2]),
        hostname=_read_word(header[3]),
        app_name=_read_word(header[4]),
        procid=_read_word(header[5]),
        msgid=_read_word(header[6]),
        elements=elements,
        text=data[rest:].removeprefix(_BOM).decode("utf-8", "replace"),
    )


def _read_elements(data: bytes, at: int) -> tuple[tuple[Element, ...], int]:
    """The structured data that begins at `at`, and where MSG begins."""
    elements = []
    if data[at : at + 1] == b"-":
        at += 1
    else:
        while element := _ELEMENT.match(data, at):
            at = element.end()
            parameters = _PARAMETER.findall(element[2].decode("utf-8", "replace"))
            if b"\\" in element[2]:
                # A backslash before any other character is just a backslash (RFC 5424, 6.3.3).
                parameters = [(name, _ESCAPED.sub(r"\1", value)) for name, value in parameters]
            elements.append(Element(name=element[1].decode("ascii"), parameters=tuple(parameters)))
        if data[at : at + 1] == b"[":
            raise MalformedMessage("structured data does not end where it should")
        if not elements:
            raise MalformedMessage("no structured data, not even '-'")
    if at == len(data):
        return tuple(elements), at
    if data[at : at + 1] != b" ":
        raise MalformedMessage("no space after the structured data")
    return tuple(elements), at + 1


def _read_word(word: bytes) -> str | None:
    return None if word == b"-" else word.decode("ascii")


def _read_timestamp(word: bytes) -> float | None:
    if word == b"-":
        return None
    found = _TIMESTAMP.fullmatch(word)
    if found is None:
        raise MalformedMessage("the timestamp is not one")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, int((found[7] or b"0").ljust(6, b"0")), tzinfo=UTC)
        offset = timedelta(hours=int(found[9] or 0), minutes=int(found[10] or 0))
        return (moment - _EPOCH - (-offset if found[8] == b"-" else offset)) / timedelta(seconds=1)
    except ValueError as error:
        raise MalformedMessage("the timestamp names no moment") from error


_NUMBER = re.compile("[1-9][0-9]{0,17}")  # fits 64 bits
_INTEGER = re.compile("-?[0-9]{1,19}")
_DECIMAL = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,25})?(e[+-]?[0-9]{1,3})?")
_BOOT = re.compile("[0-9A-Za-z._-]{1,64}")


def record_of(message: SyslogMessage) -> NumberedRecord | None:
    """The record a message of ours carries; None if it is another's (or has no name by which to tell doubles)."""
    said = next((dict(element.parameters) for element in message.elements if element.name == ELEMENT), {})
    boot, number = said.get("boot", ""), said.get("number", "")
    server, event = said.get("server", message.hostname), said.get("event", message.msgid)
    if message.at is None or not _BOOT.fullmatch(boot) or not _NUMBER.fullmatch(number) or server is None or event is None:
        return None
    record = AuditRecord(
        at=message.at,
        server=_unpercent(server) if "server" in said else server,
        event=_unpercent(event) if "event" in said else event,
        person=_text(said, "person"),
        path=_text(said, "path"),
        entry=_text(said, "entry"),
        status=_integer(said, "status"),
        bytes=_integer(said, "bytes"),
        duration_s=_decimal(said, "duration"),
        peer=_text(said, "peer"),
        detail=_text(said, "detail"),
    )
    return NumberedRecord(boot=boot, number=int(number), record=record)


# A field that is not understood is left out rather than the record refused: its sender would offer it again for ever.


def _text(said: dict[str, str], name: str) -> str | None:
    return None if name not in said else _unpercent(said[name])


def _integer(said: dict[str, str], name: str) -> int | None:
    return int(said[name]) if _INTEGER.fullmatch(said.get(name, "")) else None


def _decimal(said: dict[str, str], name: str) -> float | None:
    number = float(said[name]) if _DECIMAL.fullmatch(said.get(name, "")) else math.nan
    return number if math.isfinite(number) else None


def _unpercent(text: str) -> str:
    if "%" not in text:
        return text
    raw = re.sub(rb"%([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), text.encode("utf-8", "surrogatepass"))
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return text

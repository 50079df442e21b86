"""The contract of IAuditLog, on the one that keeps and the one that forgets; and what a person sees on the console."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, LogPublisher
from twisted.python import usage
from twisted.scripts._twistd_unix import ServerOptions
from zope.interface import implementer
from zope.interface.verify import verifyObject

from securifile.audit.console import console, readable, readable_console, readable_observer
from securifile.audit.memory import MemoryAudit
from securifile.audit.records import parse_message, record_of
from securifile.audit.spool import Spool
from securifile.model.errors import SpoolFull
from securifile.model.interfaces import IAuditLog
from securifile.model.records import AuditRecord
from tests.audit.doubles import done, everything, record, spool

Read = Callable[[], list[AuditRecord]]


@pytest.fixture(params=["memory", "spool"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[MemoryAudit | Spool, Read, Callable[[], None]]:
    """A log, what it holds, and how to fill it."""
    if request.param == "memory":
        memory = MemoryAudit()
        return memory, lambda: memory.records, lambda: setattr(memory, "full", True)
    clock = Clock()
    trail = spool(tmp_path, clock=clock, limit_bytes=20_000)

    def read() -> list[AuditRecord]:
        clock.advance(0.1)
        found = [record_of(parse_message(spooled.payload)) for spooled in everything(trail)]
        return [one.record for one in found if one is not None]

    def fill() -> None:
        with pytest.raises(SpoolFull):
            for n in range(1000):
                trail.note(record(n))

    return trail, read, fill


def test_provides(log: tuple[Spool, Read, Callable[[], None]]) -> None:
    """Both do what the interface says."""
    assert verifyObject(IAuditLog, log[0])


def test_kept_and_noted(log: tuple[Spool, Read, Callable[[], None]]) -> None:
    """What was kept or noted is there, in order."""
    audit, read, _ = log
    assert audit.has_room()
    audit.note(record(1))
    done(audit.keep(record(2)))
    audit.note(record(3))
    assert read() == [record(1), record(2), record(3)]


def test_full(log: tuple[Spool, Read, Callable[[], None]]) -> None:
    """A full log says so beforehand, refuses what comes nevertheless, and keeps nothing of it."""
    audit, read, fill = log
    fill()
    before = len(read())
    assert not audit.has_room()
    with pytest.raises(SpoolFull):
        audit.note(record(1))
    with pytest.raises(SpoolFull):
        done(audit.keep(record(1)))
    assert len(read()) == before


# --- the console ---


def test_one_line_an_event() -> None:
    """An event is one line with time, level, where from and what; nothing in it forges another."""
    out = io.StringIO()
    observer = readable_observer(out)

    @implementer(ILogObserver)
    def at_that_moment(event: LogEvent) -> None:
        observer({**event, "log_time": 1795255063.25})

    logger = Logger(namespace="securifile.test", observer=LogPublisher(at_that_moment))
    logger.warn("read of {path}", path="a\n2026-01-01 forged\x1b[2J\u2028\u202e\ud800")
    line = out.getvalue()
    assert line.startswith("2026-11-21T09:57:43.250Z warn  securifile.test: read of a\\n2026")
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    line.encode("utf-8")


def test_traceback() -> None:
    """A failure's traceback follows, indented, its own text escaped as well."""
    out = io.StringIO()
    logger = Logger(namespace="t", observer=LogPublisher(readable_observer(out)))
    try:
        raise ValueError("bad\x07")
    except ValueError:
        logger.failure("it failed")
    first, *rest = out.getvalue().splitlines()
    assert first.endswith("t: it failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert "\x07" not in out.getvalue()


@pytest.mark.parametrize(
    "event", [{}, {"log_format": "{missing}", "log_level": LogLevel.info}, {"log_format": 5}, {"log_time": "x", "log_failure": 3}]
)
def test_odd_events(event: dict[str, object]) -> None:
    """Events that nobody should send are still a line."""
    assert readable(event).endswith("\n")


def test_what_is_not_shown() -> None:
    """Details for those who write the program, and factories that say they exist, are not for the console."""
    out = io.StringIO()
    logger = Logger(namespace="t", observer=LogPublisher(readable_observer(out)))
    logger.debug("a detail")
    logger.info("Starting factory {factory!r}", factory=object())
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("given", "is_ours"),
    [
        (["-n"], True),
        (["-n", "--logfile", "x"], False),
        (["-n", "--syslog"], False),
        (["-n", "--logger", "twisted.logger.jsonFileLogObserver"], False),
        ([], False),
    ],
)
def test_who_decides(given: list[str], is_ours: bool) -> None:
    """`twistd -n` logs readably, unless its own options say where and how; a daemon has no console."""

    class Plugin(usage.Options):
        def postOptions(self) -> None:
            readable_console(self)

    class Twistd(ServerOptions):
        @property
        def subCommands(self) -> list[tuple[str, None, type[usage.Options], str]]:
            return [("plugin", None, Plugin, "")]

        @subCommands.setter
        def subCommands(self, value: object) -> None:
            pass

    options = Twistd()  # type: ignore[no-untyped-call]
    options.parseOptions([*given, "plugin"])  # type: ignore[no-untyped-call]
    assert (options["logger"] is console) == is_ours

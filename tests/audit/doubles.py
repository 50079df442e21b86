"""What the tests of this room stand on: records, a worker that waits to be told, spools on a clock."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from securifile.audit.records import parse_message, record_of
from securifile.audit.spool import Spool, Spooled
from securifile.model.interfaces import IWorker
from securifile.model.records import AuditRecord

T = TypeVar("T")

AT_THE_END = ExitStack()
"""What ends with the processes that a test plays: closed after each test, and by those of many examples after each of them."""


@implementer(IWorker)
class InlineWorker:
    """Works at once; `broken` holds the names of functions that fail."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.done: list[str] = []

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        self.done.append(work.__name__)
        if work.__name__ in self.broken:
            return defer.fail(OSError(5, f"{work.__name__} fails"))
        return defer.execute(work, *arguments)


@implementer(IWorker)
class StepWorker:
    """Works when told to, one piece at a time."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.names: list[str] = []

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        self.waiting.append(lambda: defer.execute(work, *arguments).chainDeferred(result))
        self.names.append(work.__name__)
        return result

    def step(self) -> None:
        self.names.pop(0)
        self.waiting.pop(0)()

    def run(self) -> None:
        while self.waiting:
            self.step()


def record(n: int, **fields: Any) -> AuditRecord:
    return AuditRecord(at=1795255063.0 + n, server="node-1", event="read", person="ann", path=f"/ann/{n}", status=200, **fields)


def done(deferred: Deferred[T]) -> T:
    """The result of a Deferred that must have fired by now."""
    results: list[T] = []
    deferred.addCallback(results.append)
    failures: list[Any] = []
    deferred.addErrback(failures.append)
    if failures:
        failures[0].raiseException()
    assert results, "not fired yet"
    return results[0]


def spool(directory: Path, boot: str = "b1", *, clock: Clock | None = None, worker: Any = None, **limits: int) -> Spool:
    """An open spool that works at once."""
    made = ending(Spool(directory, boot=boot, version="1.0", worker=worker or InlineWorker(), clock=clock or Clock(), **limits))
    done(made.open())
    return made


def ending(spool: Spool) -> Spool:
    """A spool whose file is closed when its process has ended, whatever was under way."""

    def end() -> None:
        active, spool._active = spool._active, None
        if active is not None:
            os.close(active[0])

    AT_THE_END.callback(end)
    return spool


def everything(spool: Spool, limit_bytes: int = 1000) -> list[Spooled]:
    """All that a reader finds in a spool."""
    reader, found = spool.reader(), []
    while more := done(reader.next(limit_bytes)):
        found += more
    return found


def names(found: list[Spooled]) -> list[tuple[str, int, str | None]]:
    """Boot, number and path of each record; the payload says the same as the spool."""
    said = []
    for spooled in found:
        read = record_of(parse_message(spooled.payload))
        assert read is not None
        assert (read.boot, read.number) == (spooled.boot, spooled.number)
        said.append((read.boot, read.number, read.record.path))
    return said


def expected(boot: str, *numbers: int) -> list[tuple[str, int, str]]:
    """What `names` says when `record(n)` was kept as number n."""
    return [(boot, n, f"/ann/{n}") for n in numbers]

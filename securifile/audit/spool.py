"""The spool of a server: audit records wait here, on the disk, until an admin server has confirmed that it keeps them.

    keep ──┐                                     ┌─> SpoolReader ─> AuditSender ─> network
    note ──┴─> buffer ─(one fsync at a time)─> segments ─> deleted when confirmed

Writes `keep` their record before they are answered; all that come while an fsync is under way share the next one. Reads only
`note` theirs: it is on the disk within 100 ms. Nothing is sent before it is durable here. When the spool has reached its limit
requests are refused: an access that cannot be written down must not happen.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from securifile.audit import segments
from securifile.audit.records import NumberedRecord, format_record
from securifile.audit.rounds import Rounds
from securifile.audit.segments import DamagedSegment, Segment
from securifile.model.errors import SpoolFull
from securifile.model.interfaces import IAuditLog, IWorker
from securifile.model.records import AuditRecord

LIMIT_BYTES = 1 << 30
"""About three million records: a day without an admin server at thirty requests a second, on a disk that has room for files."""
SEGMENT_BYTES = 4 << 20
"""What is read again after a restart in vain, at most; and a gigabyte is still only some hundred files."""
MARKS_S = 1.0
"""How long what was confirmed may be known here only: after a crash so much is sent again."""
NOTE_DELAY_S = 0.05
"""Half of the 100 ms that the design gives to reads: the other half is for the fsync."""
RETRY_S = 1.0
"""After a write that failed: disks fill and empty at the pace of people."""
RESERVE = 16
"""One part in so many is held back for requests that were begun while there was room."""

_BOOT = re.compile(r"[0-9A-Za-z._-]{1,64}")


@attrs.frozen(kw_only=True)
class Spooled:
    """A record on its way out."""

    boot: str
    number: int
    payload: bytes
    """The RFC 5424 message."""


@implementer(IAuditLog)
class Spool:
    """Keeps audit records on this machine's disk, in order, until they are confirmed."""

    _log = Logger()

    def __init__(
        self,
        directory: Path,
        *,
        boot: str,
        version: str,
        worker: IWorker,
        clock: IReactorTime,
        limit_bytes: int = LIMIT_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """Nothing is touched before `open`.

        Args:
            directory: its own; made if it is not there, readable by nobody else.
            boot: drawn anew at each start of the process (`random(16).hex()`): numbers count from 1 within it.
            version: of SecuriFile, for the records.
        """
        if not _BOOT.fullmatch(boot):
            raise ValueError(f"not a boot id: {boot!r}")
        self.boot = boot
        self._directory = directory
        self._version = version
        self._worker = worker
        self._clock = clock
        self._limit_bytes = limit_bytes
        # The segment being written is never deleted: it must not be what fills the spool.
        self._segment_bytes = min(segment_bytes, limit_bytes // 4)
        self._open = False
        self._failing = False
        self._segments: list[Segment] = []
        self._confirmed: dict[str, int] = {}
        self._next_ordinal = 1
        self._active: tuple[int, Segment] | None = None
        self._next_number = 1
        self._buffer: list[bytes] = []
        """Packed records that no segment has yet; the last has number `_next_number - 1`."""
        self._buffer_bytes = 0
        self._waiting: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        self._writing = Rounds("writing the audit spool", self._write)
        self._tidying = Rounds("tidying the audit spool", self._tidy)
        self._discarded: list[Segment] = []
        self._marks_changed = False
        self._marked_at = float("-inf")
        self._marking: IDelayedCall | None = None
        self._watchers: list[Callable[[], None]] = []

    # --- taking records ---

    def keep(self, record: AuditRecord) -> Deferred[None]:
        """Take a record; fires when it is fsynced.

        Raises:
            SpoolFull: (by the Deferred) no room, or the disk does not take what it is given; nothing was written.
            OSError: (by the Deferred) the disk failed; the record may turn up or not.
        """
        try:
            self._take(record)
        except SpoolFull:
            return defer.fail()
        kept: Deferred[None] = Deferred()
        self._waiting.append(kept)
        self._writing.ask()
        return kept

    def note(self, record: AuditRecord) -> None:
        """Take a record; it is fsynced within 100 ms (if the disk is that fast).

        Raises:
            SpoolFull: no room, or the disk does not take what it is given; nothing was written.
        """
        self._take(record)
        if self._timer is None:
            self._timer = self._clock.callLater(NOTE_DELAY_S, self._timed)

    def has_room(self) -> bool:
        """Whether a new request may begin. A part of the limit is held back for the records of those already begun."""
        return self._open and not self._failing and self.unconfirmed_bytes + self._limit_bytes // RESERVE <= self._limit_bytes

    @property
    def unconfirmed_bytes(self) -> int:
        """What is taken, on the disk and waiting for it."""
        return sum(segment.end for segment in self._segments) + self._buffer_bytes

    def _take(self, record: AuditRecord) -> None:
        if not self._open:
            raise SpoolFull("the audit spool is not open")
        if self._failing:
            raise SpoolFull("the disk of the audit spool fails")
        numbered = NumberedRecord(boot=self.boot, number=self._next_number, record=record)
        packed = segments.pack(format_record(numbered, version=self._version))
        if self.unconfirmed_bytes + len(packed) > self._limit_bytes:
            raise SpoolFull(f"the audit spool has reached {self._limit_bytes} bytes")
        self._next_number += 1
        self._buffer.append(packed)
        self._buffer_bytes += len(packed)

    # --- writing: one group at a time ---

    def _timed(self) -> None:
        self._timer = None
        self._writing.ask()

    async def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._buffer:
            return
        group, self._buffer = self._buffer, []
        waiting, self._waiting = self._waiting, []
        first = self._next_number - len(group)
        try:
            await self._write_group(group, first)
        except Exception as error:  # whatever the disk says: nobody is told that it was kept
            self._failed(group, waiting, error)
            return
        self._failing = False
        for kept in waiting:
            kept.callback(None)
        for watcher in list(self._watchers):
            watcher()

    async def _write_group(self, group: list[bytes], first: int) -> None:
        if self._active is None:
            ordinal, self._next_ordinal = self._next_ordinal, self._next_ordinal + 1
            self._active = await self._worker.do(segments.create, self._directory, ordinal, self.boot, first)
            self._segments.append(self._active[1])
        descriptor, segment = self._active
        data = b"".join(group)
        await self._worker.do(segments.append, descriptor, data)
        segment.end += len(data)
        segment.count += len(group)
        self._buffer_bytes -= len(data)
        if segment.end >= self._segment_bytes:
            # At once, not before the next write: a full segment that cannot be deleted may be why there is no next write.
            self._active = None
            await self._worker.do(segments.close, descriptor)
            self._tidy_soon()

    def _failed(self, group: list[bytes], waiting: list[Deferred[None]], error: Exception) -> None:
        """An fsync that failed is never tried again on its file: what is not certain goes into a new one."""
        self._log.critical("audit records cannot be written: {error}; requests are refused", error=error, directory=str(self._directory))
        self._failing = True
        self._buffer[:0] = group
        if self._active is not None:
            (descriptor, segment), self._active = self._active, None
            self._worker.do(segments.give_up, descriptor, segment).addErrback(lambda _: None)
        refused, self._waiting = waiting + self._waiting, []
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.callLater(RETRY_S, self._timed) if self._open else None
        for kept in refused:
            kept.errback(error)

    # --- confirming ---

    def confirm(self, boot: str, number: int) -> None:
        """An admin server keeps the records of this boot up to this number: they need not be here any more.

        Harmless when it is old, or about a boot that is not here; a number that was not written yet counts only for what was.
        """
        last = max((segment.last for segment in self._segments if segment.boot == boot), default=0)
        number = min(number, last)
        if number <= self._confirmed.get(boot, 0):
            return
        self._confirmed[boot] = number
        self._marks_changed = True
        self._tidy_soon()

    def _tidy_soon(self) -> None:
        active = None if self._active is None else self._active[1]
        done = [s for s in self._segments if s is not active and s.last <= self._confirmed.get(s.boot, 0)]
        if done:
            self._discarded += done
            self._segments = [segment for segment in self._segments if segment not in done]
            here = {segment.boot for segment in self._segments} | {self.boot}
            self._confirmed = {boot: number for boot, number in self._confirmed.items() if boot in here}
        wait_s = self._marked_at + MARKS_S - self._clock.seconds()
        if self._discarded or (self._marks_changed and wait_s <= 0):
            self._tidying.ask()
        elif self._marks_changed and self._marking is None:
            # Confirmations come many a second. A mark that is lost has records sent again, and the receiver drops them.
            self._marking = self._clock.callLater(wait_s, self._tidying.ask)

    async def _tidy(self) -> None:
        if self._marking is not None and self._marking.active():
            self._marking.cancel()
        self._marking = None
        self._marks_changed, self._marked_at = False, self._clock.seconds()
        discarded, self._discarded = self._discarded, []
        try:
            await self._worker.do(segments.write_marks, self._directory, dict(self._confirmed))
        except OSError as error:
            # A full disk: room comes of deleting. What is sent again for want of the marks is dropped by its numbers.
            self._marks_changed, self._marked_at = True, float("-inf")
            self._log.warn("which audit records are confirmed cannot be written down: {error}", error=error, directory=str(self._directory))
        # What stays behind when this fails is found, and confirmed again, after the next start.
        for segment in discarded:
            await self._worker.do(segments.discard, segment)

    # --- reading ---

    def reader(self) -> SpoolReader:
        """Read from the first unconfirmed record on. Any number of readers may go along at their own pace."""
        return SpoolReader(self)

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Have `watcher` called whenever there is more to read; what is returned stops that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    # --- life ---

    def open(self) -> Deferred[None]:
        """Find what earlier boots left; must have fired before anything else is asked. Raises `OSError`.

        Raises:
            ValueError: this boot has been here before.
        """
        return Deferred.fromCoroutine(self._recover())

    async def _recover(self) -> None:
        found = await self._worker.do(segments.recover, self._directory)
        if self._next_ordinal > 1 or any(segment.boot == self.boot for segment in found.segments):
            raise ValueError(f"boot {self.boot} has written here before; its numbers would begin again")
        for name in found.damaged:
            self._log.critical("audit records were lost by the disk, in {name}", name=name, directory=str(self._directory))
        self._segments = found.segments
        self._confirmed = dict(found.confirmed)
        self._next_ordinal = found.next_ordinal
        self._open = True
        self._tidy_soon()

    def close(self) -> Deferred[None]:
        """Take no more; fires when everything taken is on the disk, or the disk did not take it."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        self._open = False
        self._writing.ask()
        await self._writing.idle()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._buffer:
            self._log.critical("{count} audit records could not be written before the end", count=len(self._buffer))
        if self._marks_changed:
            self._tidying.ask()
        await self._tidying.idle()
        if self._active is not None:
            (descriptor, _), self._active = self._active, None
            await self._worker.do(segments.close, descriptor)


class SpoolReader:
    """A place in a spool, moving forward over what is durable and not yet confirmed."""

    _log = Logger()

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._ordinal = 0
        """Of the segment being read."""
        self._offset: int | None = None
        """Where to go on in it; None: at its beginning."""
        self._number = 0
        self._past = False
        """Nothing more can be read from it."""

    def next(self, limit_bytes: int = 1 << 18) -> Deferred[list[Spooled]]:
        """The next records, in order, about `limit_bytes` of them; an empty list when there are no more at present.

        Raises:
            OSError: the disk does not give them back.
        """
        return Deferred.fromCoroutine(self._next(limit_bytes))

    async def _next(self, limit_bytes: int) -> list[Spooled]:
        while (segment := self._segment()) is not None:
            if segment.ordinal != self._ordinal or self._offset is None:
                self._ordinal, self._offset, self._number, self._past = segment.ordinal, segment.start, segment.first, False
            skip = min(max(self._spool._confirmed.get(segment.boot, 0) + 1 - self._number, 0), segment.last + 1 - self._number)
            try:
                payloads, offset = await self._spool._worker.do(segments.read, segment.path, self._offset, segment.end, skip, limit_bytes)
            except FileNotFoundError:
                self._past = True
                continue
            except DamagedSegment as error:
                self._log.critical("audit records were lost by the disk: {error}", error=error)
                segment.damaged = self._past = True
                continue
            first = self._number + skip
            # What an earlier write left behind the last certain record does not count: a later segment has those numbers.
            payloads = payloads[: segment.last + 1 - first]
            self._offset, self._number = offset, first + len(payloads)
            self._past = not payloads
            if payloads:
                return [Spooled(boot=segment.boot, number=first + at, payload=payload) for at, payload in enumerate(payloads)]
        return []

    def _segment(self) -> Segment | None:
        """The first that has something not yet read."""
        for segment in self._spool._segments:
            if segment.ordinal > self._ordinal and segment.count > 0:
                return segment
            if segment.ordinal == self._ordinal and not self._past and self._number <= segment.last:
                return segment
        return None

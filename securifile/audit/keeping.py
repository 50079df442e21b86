"""How an admin server keeps audit records: in a text file, and in SQL; only then are they kept.

    offered ──> file round: append, fsync ──> store round: SQL ──> watchers hear (server, boot, number)
       │               (foreign messages end here)
       └ doubles are dropped by number

A record of ours is named by its server, its boot and its number, and comes in the order of its numbers. For each boot two marks say how
far it has come: in the file and in SQL. They are what makes "at least once" on the wire "exactly once" here. After a restart the mark of
SQL is asked of SQL, and the file's is read from its own end: between the two steps there never lie more bytes than `PENDING_BYTES_MAX`.

A number that jumps ahead is taken, and the gap reported: only the sender knows what it still has, and what it lost no waiting brings back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.audit.backoff import Backoff
from securifile.audit.records import MalformedMessage, parse_message, record_of
from securifile.audit.rounds import Rounds
from securifile.audit.segments import sync_directory
from securifile.model.interfaces import IWorker
from securifile.model.records import AuditRecord

PENDING_BYTES_MAX = 8 << 20
"""Of records that are not yet kept; more is left to the senders' spools. A few windows of a few dozen senders."""
ROTATE_BYTES = 64 << 20
"""A file that an editor opens."""
_TAIL_BYTES = 2 * PENDING_BYTES_MAX
"""Enough to find every record that SQL may lack: what was pending, and what the connections brought when there was no more room."""
REPEAT_S = 0.1
"""How soon a sender hears again of what it offers a second time."""
STORE_RECORDS_MAX = 500
"""Rows in one transaction."""


@attrs.frozen(kw_only=True)
class ReceivedRecord:
    """A record of one of our servers."""

    server: str
    """The server that sent it: by its certificate, where there is one."""
    boot: str
    number: int
    record: AuditRecord
    line: bytes = attrs.field(repr=False)
    """The message as it came."""


@attrs.frozen(kw_only=True)
class ForeignMessage:
    """A message that is not a record of ours: it goes into the file, and nobody is told."""

    line: bytes


class AuditFile:
    """`audit.log`: one RFC 5424 message a line. Yesterday's, and what grew too long, is renamed to `audit-2026-11-21.1.log`.

    Blocking; one call at a time.
    """

    _log = Logger()

    def __init__(self, directory: Path, *, rotate_bytes: int = ROTATE_BYTES) -> None:
        self._directory = directory
        self._path = directory / "audit.log"
        self._rotate_bytes = rotate_bytes
        self._descriptor: int | None = None
        self._size = 0
        self._day = ""

    def open(self, now: float) -> dict[tuple[str, str], int]:
        """Go on where the file ends, without the half of a line that a crash left.

        Returns:
            The highest number of each (server, boot) near the end of the files.

        Raises:
            OSError: the disk.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin(now)
        assert self._descriptor is not None
        tail = _tail(self._path, _TAIL_BYTES)
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            self._size -= torn
            os.ftruncate(self._descriptor, self._size)
        # What the last process wrote and did not fsync counts from now on.
        os.fsync(self._descriptor)
        contents = [tail[: len(tail) - torn]]
        wanted = _TAIL_BYTES - len(tail)
        for path in sorted(self._directory.glob("audit-*.log"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
            if wanted <= 0:
                break
            contents.append(_tail(path, wanted))
            wanted -= len(contents[-1])
        marks: dict[tuple[str, str], int] = {}
        for content in contents:
            for line in content.split(b"\n"):
                with suppress(MalformedMessage):
                    found = record_of(parse_message(line))
                    if found is not None:
                        name = found.record.server, found.boot
                        marks[name] = max(found.number, marks.get(name, 0))
        return marks

    def append(self, lines: list[bytes], now: float) -> None:
        """Write lines and fsync.

        Raises:
            OSError: they are not kept, and none of them is in the file, unless the disk prevents even that.
        """
        if self._descriptor is None:
            self._begin(now)
        elif self._size > 0 and (_day(now) != self._day or self._size >= self._rotate_bytes):
            self._end()
            self._rotate()
            self._begin(now)
        assert self._descriptor is not None
        data = memoryview(b"".join(map(_one_line, lines)))
        try:
            left = data
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fdatasync(self._descriptor)
        except OSError:
            # What an fsync failed for is not tried again in the same place: the next attempt has a file of its own.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            self._end()
            if self._size:
                with suppress(OSError):
                    self._rotate()
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the file. Everything in it is durable already."""
        self._end()

    def _begin(self, now: float) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        sync_directory(self._directory)
        about = os.fstat(self._descriptor)
        self._size = about.st_size
        self._day = _day(about.st_mtime if about.st_size else now)

    def _end(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)

    def _rotate(self) -> None:
        counts = (re.fullmatch(rf"audit-{self._day}\.([0-9]+)\.log", path.name) for path in self._directory.iterdir())
        count = 1 + max((int(found[1]) for found in counts if found), default=0)
        self._path.rename(self._directory / f"audit-{self._day}.{count}.log")


def _tail(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - bytes_max))
            return file.read()
    except FileNotFoundError:
        return b""


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d")


def _one_line(message: bytes) -> bytes:
    """Nobody's message may forge another line: control characters become `#012`, as other syslog servers write them."""
    return re.sub(rb"[\x00-\x1f\x7f]", lambda found: b"#%03o" % found.group()[0], message) + b"\n"


def _storable(received: ReceivedRecord) -> ReceivedRecord:
    """As a database can hold it: one record that cannot be inserted would hold up all after it. The file has it as it was."""
    record = received.record
    texts = (record.server, record.event, record.person, record.path, record.entry, record.peer, record.detail)
    if (
        not _UNSTORABLE.search("\n".join(filter(None, texts)))
        and (record.bytes is None or 0 <= record.bytes < 2**63)
        and (record.status is None or 0 <= record.status < 1000)
    ):
        return received
    clean: dict[str, Any] = {
        name: _UNSTORABLE.sub("\ufffd", value)
        for name, value in attrs.asdict(record, recurse=False).items()
        if isinstance(value, str) and _UNSTORABLE.search(value)
    }
    if record.bytes is not None and not 0 <= record.bytes < 2**63:
        record = attrs.evolve(record, bytes=None)
    if record.status is not None and not 0 <= record.status < 1000:
        record = attrs.evolve(record, status=None)
    return attrs.evolve(received, record=attrs.evolve(record, **clean))


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""What PostgreSQL and UTF-8 cannot hold."""


class Keeper(Service):
    """Takes records from anywhere, drops doubles, and says when they are kept."""

    _log = Logger()

    def __init__(
        self,
        file: AuditFile,
        *,
        store: Callable[[list[ReceivedRecord]], Awaitable[None]],
        last_kept: Callable[[str, str], Awaitable[int]],
        worker: IWorker,
        clock: IReactorTime,
        wall: Callable[[], float],
        random: Callable[[int], bytes],
        pending_bytes_max: int = PENDING_BYTES_MAX,
    ) -> None:
        """Nothing is touched before `startService`.

        Args:
            store: keeps records in SQL, all or none; called again with the same ones when it raised, so it must do nothing about a
                (server, boot, number) that is there.
            last_kept: the highest number in SQL for a (server, boot); 0 if there is none.
            wall: seconds since 1970, for the names of files.
            random: bytes, to spread attempts.
        """
        self._file = file
        self._store = store
        self._last_kept = last_kept
        self._worker = worker
        self._clock = clock
        self._wall = wall
        self._backoff = Backoff(random)
        self._pending_bytes_max = pending_bytes_max
        self._in_file: dict[tuple[str, str], int] = {}
        self._in_sql: dict[tuple[str, str], int] = {}
        self._offered: dict[tuple[str, str], int] = {}
        """The highest number under way or kept."""
        self._for_file: list[ReceivedRecord | ForeignMessage] = []
        self._for_sql: list[ReceivedRecord] = []
        self._pending_bytes = 0
        self._filing = Rounds("writing the audit file", self._to_file)
        self._storing = Rounds("storing audit records", self._to_sql)
        self._retries: dict[Rounds, IDelayedCall] = {}
        self._opened: Deferred[None] | None = None
        self._ready = False
        self._unheard: dict[tuple[str, str], None] = {}
        self._repeat: IDelayedCall | None = None
        self._watchers: list[Callable[[str, str, int], None]] = []
        self._waiting_for_room: list[Deferred[None]] = []

    # --- for those who bring records ---

    async def begin(self, server: str, boot: str) -> int:
        """To be awaited before the first record of a boot is offered on a connection: what of it is kept already.

        SQL is asked each time: another admin server may have kept more meanwhile.

        Raises:
            Exception: what `last_kept` raises: SQL does not answer.
        """
        name = server, boot
        kept = await self._last_kept(server, boot)
        self._in_sql[name] = max(kept, self._in_sql.get(name, 0))
        self._offered[name] = max(kept, self._offered.get(name, 0))
        return self._in_sql[name]

    def offer(self, message: ReceivedRecord | ForeignMessage) -> None:
        """Take a message; `begin` was awaited for its boot. One that is kept already is announced again; one under way is dropped."""
        if isinstance(message, ReceivedRecord):
            name = message.server, message.boot
            if message.number <= self._in_sql[name]:
                # Its sender has not heard of it. It will offer more of these, and one word answers them all.
                self._unheard[name] = None
                if self._repeat is None:
                    self._repeat = self._clock.callLater(REPEAT_S, self._announce_again)
                return
            if message.number <= self._offered[name]:
                return
            if message.number > self._offered[name] + 1:
                self._log.error(
                    "audit records {first} to {last} of {server} are missing, boot {boot}",
                    first=self._offered[name] + 1, last=message.number - 1, server=message.server, boot=message.boot,
                )  # fmt: skip
            self._offered[name] = message.number
        self._for_file.append(message)
        self._pending_bytes += len(message.line)
        if self._ready:
            self._filing.ask()

    @property
    def has_room(self) -> bool:
        """Whether more may be offered now. What was read from a connection by then may still be."""
        return self._pending_bytes < self._pending_bytes_max

    def room(self) -> Deferred[None]:
        """Fires when there is room again."""

        def forget(cancelled: Deferred[None]) -> None:
            if cancelled in self._waiting_for_room:
                self._waiting_for_room.remove(cancelled)

        waiting: Deferred[None] = Deferred(forget)
        if self.has_room:
            waiting.callback(None)
        else:
            self._waiting_for_room.append(waiting)
        return waiting

    def watch(self, watcher: Callable[[str, str, int], None]) -> None:
        """Have `watcher(server, boot, number)` called when the records of a boot are kept up to a number: after file and SQL."""
        self._watchers.append(watcher)

    def kept(self, server: str) -> dict[str, int]:
        """How far each boot of a server is kept, as far as it is known here: to be said on a new control connection."""
        return {boot: number for (known, boot), number in self._in_sql.items() if known == server and number > 0}

    # --- the two rounds ---

    async def _to_file(self) -> None:
        messages, self._for_file = self._for_file, []
        lines = []
        for message in messages:
            # What was in the file when SQL did not have it, at the end of the last life, goes on to SQL only.
            if isinstance(message, ForeignMessage) or message.number > self._in_file.get((message.server, message.boot), 0):
                lines.append(message.line)
        if lines:
            try:
                await self._worker.do(self._file.append, lines, self._wall())
            except OSError as error:
                self._log.critical("the audit file cannot be written: {error}", error=error)
                self._for_file[:0] = messages
                self._again(self._filing)
                return
        for message in messages:
            if isinstance(message, ForeignMessage):
                self._let_go(len(message.line))
            else:
                name = message.server, message.boot
                self._in_file[name] = max(message.number, self._in_file.get(name, 0))
                self._for_sql.append(message)
        if self._for_sql:
            self._storing.ask()

    async def _to_sql(self) -> None:
        while self._for_sql:
            records = self._for_sql[:STORE_RECORDS_MAX]
            try:
                await self._store([_storable(record) for record in records])
            except Exception as error:  # whatever a database may say: it did not confirm, so neither do we
                self._log.error("audit records cannot be stored: {error}; they wait", error=error, count=len(records))
                self._again(self._storing)
                return
            del self._for_sql[: len(records)]
            self._backoff.succeeded()
            for record in records:
                name = record.server, record.boot
                self._in_sql[name] = max(record.number, self._in_sql[name])
                self._let_go(len(record.line))
            # In order of first appearance: sets of strings have none.
            for name in dict.fromkeys((record.server, record.boot) for record in records):
                self._announce(name)

    def _announce(self, name: tuple[str, str]) -> None:
        for watcher in list(self._watchers):
            watcher(*name, self._in_sql[name])

    def _announce_again(self) -> None:
        self._repeat = None
        unheard, self._unheard = self._unheard, {}
        for name in unheard:
            self._announce(name)

    def _let_go(self, size: int) -> None:
        self._pending_bytes -= size
        if self.has_room:
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for waiter in waiting:
                if not waiter.called:
                    waiter.callback(None)

    def _again(self, rounds: Rounds) -> None:
        def ask() -> None:
            del self._retries[rounds]
            rounds.ask()

        if rounds not in self._retries and self.running:
            self._retries[rounds] = self._clock.callLater(self._backoff.failed(), ask)

    # --- life ---

    def startService(self) -> None:
        """Open the file. What is offered before waits."""
        super().startService()  # type: ignore[no-untyped-call]
        self._opened = Deferred.fromCoroutine(self._open())
        self._opened.addErrback(lambda failure: failure.trap(CancelledError) and None)
        self._opened.addErrback(lambda failure: self._log.failure("the audit file cannot be opened", failure=failure))

    async def _open(self) -> None:
        while self.running:
            try:
                self._in_file = await self._worker.do(self._file.open, self._wall())
            except OSError as error:
                self._log.critical("the audit file cannot be opened: {error}", error=error)
                await deferLater(self._clock, self._backoff.failed())
                continue
            self._ready = True
            self._filing.ask()
            return

    def stopService(self) -> Deferred[None]:
        """Fires when what is under way has ended. What is not kept by then was not confirmed: its senders have it."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        for retry in self._retries.values():
            retry.cancel()
        self._retries.clear()
        if self._repeat is not None:
            self._repeat.cancel()
            self._repeat = None
        if self._opened is not None:
            self._opened.cancel()
        self._ready = False
        await self._filing.idle()
        await self._storing.idle()
        await self._worker.do(self._file.close)
        for waiter in list(self._waiting_for_room):
            waiter.cancel()

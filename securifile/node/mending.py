"""Fetching blobs that this node should have: copies that are pending, and those that turned out missing or rotten.

What it fetches is checked against the recorded digest before it counts, and a copy counts only when the catalogue has noted it. Copies that
cannot be made are told of, so that another node is given them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.http.sources import Sources, VersionSource
from securifile.model.entries import BlobSummary
from securifile.model.errors import BlobExists, Code, DiskFull, OutcomeUnknown, Refusal, StreamBroken
from securifile.model.facts import Fact, File
from securifile.model.ids import AttemptId, EntryId
from securifile.model.pacing import Pace
from securifile.node.acting import Acting
from securifile.node.examination import examine
from securifile.node.index import Index
from securifile.protocol import messages as m
from securifile.protocol.rpc import Handlers, Peer
from securifile.sql import directory

AGAIN_S = 5.0
"""How long to wait after a copy could not be fetched: holders return within seconds, or not soon."""

LOST_NAMED_MAX = 100

PAGE = 500
"""Files that a repair has in memory at a time."""

FAILING_MAX = 200
"""Copies that fail in one pass before it is given up: they are told of, and when others have taken them over come the next ones."""

AT_ONCE = 8
"""Copies made at a time: of small files most of the time is waiting for the holder, the disk and the catalogue. They share the rate."""

FAILED = (Refusal, OutcomeUnknown, StreamBroken, DiskFull, BlobExists, OSError)


@attrs.frozen(kw_only=True)
class _Failing:
    """A copy that was tried in vain, so many times in a row."""

    file: EntryId
    since: float
    failures: int
    error: BaseException


class Mending:
    """Makes this node have what the catalogue says it should."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        index: Index,
        blobs: Any,
        sources: Sources,
        acting: Acting,
        rate: Callable[[], float],
        checked: Callable[[AttemptId], None] = lambda attempt: None,
    ) -> None:
        """Args:
        rate: bytes a second that copying in the background may take; 0: no limit.
        checked: told of each blob that was read, or fetched, whole and is sound.
        """
        self._clock = clock
        self._name = name
        self._index = index
        self._blobs = blobs
        self._sources = sources
        self._acting = acting
        self._rate = rate
        self._checked = checked
        self._failing: dict[AttemptId, _Failing] = {}
        self._pace = Pace()
        self._running: Deferred[None] | None = None
        self._news: Deferred[None] = Deferred()

    @property
    def handlers(self) -> Handlers:
        """What admin servers ask."""
        return {m.RepairSelf: self._repair}

    def learn(self, fact: Fact) -> None:
        """Something may be pending here now."""
        if isinstance(fact, File) and any(copy.node == self._name and not copy.durable for copy in fact.version.copies):
            self._wake()

    def start(self) -> None:
        """Fetch what is pending, from now on."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._stopped)
        self._wake()

    def stop(self) -> None:
        """Leave the rest."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    def _wake(self) -> None:
        if not self._news.called:
            self._news.callback(None)

    async def _run(self) -> None:
        while True:
            await self._news
            self._news = Deferred()
            if not await self._pass(await directory.pending_on(self._index.sql, self._name)):
                await deferLater(self._clock, AGAIN_S)
                self._wake()

    async def _pass(self, pending: list[File]) -> bool:
        """Make the pending copies, each if it can be; whether nothing is left over."""
        now = self._clock.seconds()
        known, self._failing = self._failing, {}
        waiting = iter(pending)
        is_catalogue_away = False

        async def work() -> None:
            nonlocal is_catalogue_away
            for file in waiting:
                try:
                    await self._complete(file)
                except FAILED as error:
                    self._log.warn("the copy of {file} cannot be made yet: {problem}", file=str(file.id), problem=str(error))
                    if _is_about_the_catalogue(error):
                        is_catalogue_away = True
                    else:
                        before = known.get(file.version.attempt) or _Failing(file=file.id, since=now, failures=0, error=error)
                        self._failing[file.version.attempt] = attrs.evolve(before, failures=before.failures + 1, error=error)
                if is_catalogue_away or len(self._failing) >= FAILING_MAX:
                    return

        await gatherResults([Deferred.fromCoroutine(work()) for _ in range(AT_ONCE)], consumeErrors=True)
        if is_catalogue_away:
            # Nothing can be noted now, nor told.
            self._failing = {**known, **self._failing}
            return False
        if self._failing:
            told = list(self._failing.items())[:FAILING_MAX]
            await self._acting.tell_admins(m.CopiesFailing(copies=tuple(self._told(*one) for one in told)))
        return not self._failing

    def _told(self, attempt: AttemptId, failing: _Failing) -> m.FailingCopy:
        return m.FailingCopy(
            file=failing.file,
            attempt=attempt,
            failures=failing.failures,
            since_s=self._clock.seconds() - failing.since,
            reason=str(failing.error),
            own_disk=isinstance(failing.error, DiskFull | OSError),
        )

    async def _complete(self, file: File) -> None:
        """Fetch one pending copy and have it noted."""
        if await directory.file_by_attempt(self._index.sql, file.id, file.version.attempt) is None:
            return
        if not await self._is_whole(file):
            space = await self._blobs.space()
            if file.version.size > space.available_bytes:
                # Known before anything is fetched, each time anew.
                raise DiskFull(f"{file.version.size} bytes do not fit: {space.available_bytes} are available")
            await self._fetch(file, self._pace)
        await self._acting.ask_admin(m.CopyMade(file=file.id, attempt=file.version.attempt))

    async def _repair(self, peer: Peer, asked: m.RepairSelf) -> m.Repaired:
        """Read everything that should be here, and fetch what is not."""
        checked, fetched, lost = 0, 0, list[EntryId]()
        async for file in self._held():
            checked += 1
            if await self._is_whole(file):
                continue
            try:
                await self._blobs.quarantine(file.version.attempt, "found bad by repair")
                await self._fetch(file, None)
                fetched += 1
            except FAILED as error:
                self._log.error("{file} cannot be repaired: {problem}", file=str(file.id), problem=str(error))
                lost.append(file.id)
                await self._tell_lost(file, str(error))
        return m.Repaired(checked=checked, fetched=fetched, lost=tuple(lost[:LOST_NAMED_MAX]))

    async def _held(self) -> AsyncIterator[File]:
        """What this node is to hold, a page at a time."""
        after, page = b"", PAGE
        while page == PAGE:
            held = await directory.held_by(self._index.sql, self._name, (), after, PAGE)
            for file in await directory.files(self._index.sql, [one.file.value for one in held]):
                yield file
            page = len(held)
            after = held[-1].file.value if held else after

    async def _tell_lost(self, file: File, problem: str) -> None:
        """Have the catalogue know that this node has it not. Otherwise it would fail at each return, for what nobody can give back."""
        try:
            reason = f"repair could not fetch it: {problem}"
            await self._acting.ask_admin(m.CopyBad(file=file.id, attempt=file.version.attempt, reason=reason))
        except (Refusal, OutcomeUnknown) as error:
            self._log.warn("the catalogue does not know yet that {file} is not here: {problem}", file=str(file.id), problem=str(error))

    async def _is_whole(self, file: File) -> bool:
        """Whether the blob is here, every block of it sound, and its recorded digest the version's."""
        try:
            whole = await examine(self._blobs, file.version.attempt, file.version) is None
        except OSError:
            return False
        if whole:
            self._checked(file.version.attempt)
        return whole

    async def _fetch(self, file: File, pace: Pace | None) -> None:
        """Fetch a version's blob from a holder, and keep it if its digest is the recorded one; without a pace as fast as it comes."""
        version = file.version
        others = [holder for holder in version.holders if holder != self._name]
        holders = sorted(others, key=lambda holder: not self._acting.is_available(holder))
        while True:
            source = self._sources.open(version, holders, 0, version.size)
            summary = await self._copy(file, source, pace)
            if (summary.size, summary.digest) == (version.size, version.digest):
                break
            await self._blobs.quarantine(version.attempt, "fetched with another digest than the catalogue's")
            # Those that were not asked yet may have the right one.
            holders = [holder for holder in holders if holder not in source.tried]
            if not holders or not source.tried:
                raise StreamBroken(f"what was fetched of {file.id} is not version {version.number}")
        self._checked(version.attempt)
        self._log.info("fetched {file} version {number}", file=str(file.id), number=version.number)

    async def _copy(self, file: File, source: VersionSource, pace: Pace | None) -> BlobSummary:
        version = file.version
        try:
            writer = await self._blobs.begin(version.attempt, version.algorithm)
        except BlobExists:
            if await self._is_whole(file):
                # An upload's straggler has arrived this very moment.
                raise
            # Whole but for a sidecar that says otherwise, or rotten: put it aside, do not trust it.
            await self._blobs.quarantine(version.attempt, "not the version that the catalogue has")
            writer = await self._blobs.begin(version.attempt, version.algorithm)
        try:
            while data := await source.read():
                await writer.write(data)
                rate = self._rate()
                rest_s = pace.take(self._clock.seconds(), len(data), rate) if pace is not None and rate else 0.0
                if rest_s:
                    await deferLater(self._clock, rest_s)
            summary: BlobSummary = await writer.finish(file.id, version.number)
        except BaseException:
            await writer.abandon()
            raise
        finally:
            source.close()
        return summary

    def _stopped(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("mending has stopped", failure)


def _is_about_the_catalogue(error: BaseException) -> bool:
    """Whether nobody can be told, which is the same for all files."""
    return isinstance(error, OutcomeUnknown) or (isinstance(error, Refusal) and error.code is not Code.NO_HOLDER)

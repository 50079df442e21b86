"""The scrub: every copy on this node is read again, always, slowly, the longest unread first.

Disks forget bytes without saying so, and a rotten copy is only worth mending while another one is sound. So no copy may go
unread until somebody asks for it. A verification that read a blob whole, and a repair, count as well: they leave less to scrub.

Two loops: one reads, on a budget; the other, every few seconds, keeps the books (`Checks`), tells the admin server what was
checked, and takes the figures that `/metrics` shows.

The scrub judges only while the cluster holds this node for running. A node that returns is judged by the others, and rot that
they find makes it failed; it may not be swept away under their eyes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId
from securifile.model.pacing import Pace
from securifile.model.settings import ClusterSettings
from securifile.node.checks import Checks
from securifile.node.examination import examine
from securifile.node.index import Index
from securifile.node.quarantine import Quarantine
from securifile.protocol.messages import CopiesChecked
from securifile.sql import directory

ROUND_S = 5.0
"""How often the books are kept, and how long the reading rests when nothing is due."""

TELL_S = 60.0
"""How often the admin server hears what was checked, unless it is much."""

TELL_MAX = 500
"""Checks in one message: some 20 KiB. So many are told at once."""

BATCH = 100
"""Blobs taken from the index at a time."""

SEEK_BYTES = 64 * 1024
"""What finding and opening a blob is reckoned with: a disk that turns could have read so much meanwhile."""


class Scrub:
    """One node's scrub."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        index: Index,
        blobs: Any,
        checks: Checks,
        quarantine: Quarantine,
        settings: Callable[[], ClusterSettings],
        is_running: Callable[[], bool],
        ask_admin: Callable[[Any], Awaitable[Any]],
    ) -> None:
        """Args:
        is_running: whether the cluster holds this life of this node for running.
        """
        self._clock = clock
        self._wall = wall
        self._name = name
        self._index = index
        self._blobs = blobs
        self._checks = checks
        self._quarantine = quarantine
        self._settings = settings
        self._is_running = is_running
        self._ask_admin = ask_admin
        self._pace = Pace()
        self._put_off: set[AttemptId] = set()
        self._told_at = float("-inf")
        self._told_quarantined = 0
        self._running: list[Deferred[None]] = []
        self._oldest_at: float | None = None
        self._quarantined = 0
        self._read_bytes = 0
        self._found_bad = 0

    def start(self) -> None:
        """Read from now on."""
        self._running = [Deferred.fromCoroutine(self._keep_books()), Deferred.fromCoroutine(self._read_on())]
        for running in self._running:
            running.addErrback(self._stopped)

    def stop(self) -> None:
        """Leave the rest; what was read in part is read again."""
        running, self._running = self._running, []
        for one in running:
            one.cancel()

    @property
    def metrics(self) -> dict[str, float]:
        """What `/metrics` tells, by name, some seconds old."""
        return {
            "oldest_check_seconds": 0.0 if self._oldest_at is None else max(0.0, self._wall() - self._oldest_at),
            "quarantined_blobs": float(self._quarantined),
            "scrub_read_bytes_total": float(self._read_bytes),
            "scrub_bad_blobs_total": float(self._found_bad),
        }

    # --- reading ---

    async def _read_on(self) -> None:
        while True:
            try:
                found = await self._read_some()
            except CancelledError:
                raise
            except Exception:
                # The index held by another process, a bug: no reason to let the disk rot unseen from now on.
                self._log.failure("the scrub goes on in the next round")
                found = False
            if not found:
                self._put_off.clear()
                await deferLater(self._clock, ROUND_S)

    def _may_read(self) -> bool:
        return self._settings().scrub_bytes_s > 0 and self._is_running()

    async def _read_some(self) -> bool:
        """Read the next blobs; whether there were any."""
        if not self._may_read():
            return False
        await self._checks.keep()
        due = await self._checks.due(self._settings().scrub_every_s, BATCH + len(self._put_off))
        found = [attempt for attempt in due if attempt not in self._put_off]
        for attempt in found:
            if not self._may_read():
                break
            await self._read(attempt)
        return bool(found)

    async def _read(self, attempt: AttemptId) -> None:
        file = await self._held(attempt)
        if file is None:
            await self._checks.forget(attempt)
            return
        await self._rest(SEEK_BYTES)
        try:
            reason = await examine(self._blobs, attempt, file.version, self._rest_after)
        except OSError as error:
            self._log.warn("the blob of {attempt} cannot be scrubbed now: {problem}", attempt=str(attempt), problem=str(error))
            self._put_off.add(attempt)
            return
        if reason is None:
            self._checks.checked(attempt)
        elif self._is_running() and await self._held(attempt) is not None:
            self._found_bad += 1
            # Not looked at again before it has been judged.
            self._put_off.add(attempt)
            self._quarantine.suspect(attempt, "found by the scrub")

    async def _held(self, attempt: AttemptId) -> File | None:
        """The file whose current version this is, if this node is to have it."""
        file = await directory.file_of_attempt(self._index.sql, attempt)
        return file if file is not None and self._name in file.version.holders else None

    async def _rest_after(self, count: int) -> None:
        self._read_bytes += count
        await self._rest(count)

    async def _rest(self, count: int) -> None:
        """Keep to the budget; wait here while the scrub is switched off."""
        while not (rate := self._settings().scrub_bytes_s):
            await deferLater(self._clock, ROUND_S)
        rest_s = self._pace.take(self._clock.seconds(), count, rate)
        if rest_s:
            await deferLater(self._clock, rest_s)

    # --- the books ---

    async def _keep_books(self) -> None:
        while True:
            try:
                await self._checks.keep()
                await self._checks.enter_some()
                self._oldest_at = await self._checks.oldest()
                self._quarantined = await self._blobs.quarantined_count()
                await self._quarantine.tell()
                await self._tell()
            except CancelledError:
                raise
            except (Refusal, OutcomeUnknown, DatabaseUnavailable) as error:
                self._log.debug("what was checked is told later: {problem}", problem=str(error))
            except Exception:
                self._log.failure("the books of the scrub are kept in the next round")
            await deferLater(self._clock, ROUND_S)

    async def _tell(self) -> None:
        """Tell an admin server what was checked: at most once a minute, or at once when it is much, or something was put aside."""
        while True:
            copies = await self._checks.untold(TELL_MAX)
            is_much = len(copies) == TELL_MAX
            if not (is_much or self._quarantined != self._told_quarantined or self._clock.seconds() - self._told_at >= TELL_S):
                return
            quarantined = self._quarantined
            await self._ask_admin(CopiesChecked(copies=tuple(copies), oldest_at=self._oldest_at, quarantined=quarantined))
            await self._checks.told(copies)
            self._told_at, self._told_quarantined = self._clock.seconds(), quarantined
            if not is_much:
                return

    def _stopped(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("the scrub has stopped", failure)

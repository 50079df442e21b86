"""What happens to a blob that is suspected: it is read again, and if it is bad, put aside, named, and made anew.

    suspicion (a reader, a peer, a verification, the scrub)
       └─ read once more ── sound: a reader with an old blob open, or a wire that erred: nothing is done
             └─ bad ── quarantine/ ── audit trail: "rotten" ── CopyBad: the copy is pending, and mending fetches it

Reading again keeps a late suspicion from taking away the copy that was made anew meanwhile. Nothing is deleted: where no other
holder has the file, what can still be read of it lies in the quarantine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.model.errors import OutcomeUnknown, Refusal, SpoolFull
from securifile.model.ids import AttemptId
from securifile.model.records import AuditRecord
from securifile.node.checks import Checks
from securifile.node.examination import GONE, examine
from securifile.node.index import Index
from securifile.protocol.messages import CopyBad
from securifile.sql import directory

AGAIN_S = 60.0
"""A copy of which the catalogue was told is not reported again sooner: the change has yet to come back with the feed."""


class Quarantine:
    """Takes the suspicions of one node."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        wall: Callable[[], float],
        index: Index,
        blobs: Any,
        audit: Any,
        checks: Checks,
        ask_admin: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._clock = clock
        self._name = name
        self._wall = wall
        self._index = index
        self._blobs = blobs
        self._audit = audit
        self._checks = checks
        self._ask_admin = ask_admin
        self._suspected: dict[AttemptId, Deferred[None]] = {}
        self._to_tell: dict[AttemptId, CopyBad] = {}
        self._told: dict[AttemptId, float] = {}
        self._stopped = False

    def suspect(self, attempt: AttemptId, reason: str) -> None:
        """A blob of this node's may be bad. Returns at once; a second suspicion while the first is looked into changes nothing."""
        if self._stopped or attempt in self._suspected:
            return
        looking = self._suspected[attempt] = Deferred.fromCoroutine(self._look(attempt, reason))
        looking.addBoth(self._looked, attempt)

    def _looked(self, result: Any, attempt: AttemptId) -> None:
        self._suspected.pop(attempt, None)
        if result is not None and not result.check(CancelledError):
            self._log.failure("the blob of {attempt} could not be put aside", result, attempt=str(attempt))

    def stop(self) -> None:
        """Look into nothing any more."""
        self._stopped = True
        for looking in list(self._suspected.values()):
            looking.cancel()

    async def _look(self, attempt: AttemptId, reason: str) -> None:
        file = await directory.file_of_attempt(self._index.sql, attempt)
        found = await examine(self._blobs, attempt, None if file is None else file.version)
        if found is None:
            self._log.warn("the blob of {attempt} was suspected ({reason}), and is sound", attempt=str(attempt), reason=reason)
            return
        if found == GONE and (file is None or self._name not in file.version.holders):
            # Dropped, or known to be missing and on its way.
            return
        if found == GONE and (attempt in self._to_tell or attempt in self._told):
            return
        self._log.error("the blob of {attempt} is bad: {reason}; {found}", attempt=str(attempt), reason=reason, found=found)
        await self._blobs.quarantine(attempt, found)
        await self._checks.forget(attempt)
        record = AuditRecord(
            at=self._wall(),
            server=self._name,
            event="rotten",
            entry=None if file is None else str(file.id),
            detail=f"{attempt}: {found}",
        )
        try:
            self._audit.note(record)
        except SpoolFull:
            self._log.critical("no room to write down that the blob of {attempt} is bad", attempt=str(attempt))
        if file is not None:
            self._to_tell[attempt] = CopyBad(file=file.id, attempt=attempt, reason=found)
            await self.tell()

    async def tell(self) -> None:
        """Have the catalogue know of bad copies; those that it could not be told of wait for the next call, every few seconds."""
        now = self._clock.seconds()
        self._told = {attempt: at for attempt, at in self._told.items() if now - at < AGAIN_S}
        for attempt, message in list(self._to_tell.items()):
            try:
                await self._ask_admin(message)
            except (Refusal, OutcomeUnknown) as error:
                self._log.warn("the catalogue does not know yet that {attempt} is bad: {problem}", attempt=str(attempt), problem=str(error))
                return
            self._to_tell.pop(attempt, None)
            self._told[attempt] = now

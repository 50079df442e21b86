"""Keeping the disk in step with the catalogue, in the background.

committed   a blob whose version the index names: its sidecar notes the commit
superseded  a blob of an older version, or of a deleted file: dropped after `keep_superseded_s`
staged      a blob whose attempt has not ended as far as this node knows: the catalogue is asked; dropped only when it
says `abandoned`

A blob whose sidecar says `committed` is never given up, whatever the catalogue says: one that does not know of the commit
was restored from a backup, and this blob may be all that is left of what came after it. And nothing at all is deleted while no
admin server feeds the index, or while the catalogue takes back from the nodes what it has lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.model.entries import Sidecar
from securifile.model.errors import CorruptBlock, NoSuchBlob, OutcomeUnknown, Refusal
from securifile.model.facts import Fact, File
from securifile.model.ids import AttemptId, Position
from securifile.node.acting import Acting
from securifile.node.index import Index
from securifile.protocol import messages as m

ROUND_S = 10.0
"""How often: what waits here only takes space."""

LOOKED_AT_ONCE = 100
"""Blobs looked up in the index before others get their turn: a few milliseconds."""

NOTED_AT_ONCE = 100
"""Commits that are noted together: a job at the disk for each would cost a busy node more than the notes."""

STAGED_ROUNDS = 30
"""Rounds for which a staged blob is left alone: its upload may be under way still, at most so long between sealing and commit."""


class Housekeeping:
    """One node's blobs, tidied."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        index: Index,
        blobs: Any,
        acting: Acting,
        is_under_way: Callable[[AttemptId], bool],
        may_delete: Callable[[], bool] = lambda: True,
    ) -> None:
        """Args:
        may_delete: whether the index is fed by a catalogue that has not lost anything, as far as is known.
        """
        self._clock = clock
        self._wall = wall
        self._name = name
        self._index = index
        self._blobs = blobs
        self._acting = acting
        self._is_under_way = is_under_way
        self._may_delete = may_delete
        self._committed: dict[AttemptId, tuple[int, Position]] = {}
        self._staged: dict[AttemptId, int] = {}
        self._running: Deferred[None] | None = None

    def learn(self, fact: Fact) -> None:
        """Note the commits of versions that this node holds."""
        if isinstance(fact, File) and any(copy.node == self._name for copy in fact.version.copies):
            self._committed[fact.version.attempt] = (fact.version.number, self._index.position)

    def start(self) -> None:
        """Tidy from now on; first look at everything there is."""
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._stopped)

    def stop(self) -> None:
        """Leave the rest for later."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()

    async def _run(self) -> None:
        rounds = 0
        looked_at: int | None = None
        while True:
            try:
                if looked_at != self._index.snapshots:
                    snapshots = self._index.snapshots
                    await self._look_at_all()
                    looked_at = snapshots
                await self._note_commits()
                await self._blobs.settle()
                if self._may_delete():
                    await self._drop_superseded()
                if rounds and rounds % STAGED_ROUNDS == 0:
                    await self._find_staged()
                if self._may_delete():
                    await self._ask_about_staged()
            except CancelledError:
                raise
            except (OSError, Refusal, OutcomeUnknown) as error:
                self._log.warn("housekeeping goes on in the next round: {problem}", problem=str(error))
            except Exception:
                # The index held by another process, a bug: no reason to let the disk fill up from now on.
                self._log.failure("housekeeping goes on in the next round")
            await deferLater(self._clock, ROUND_S)
            rounds += 1

    async def _look_at_all(self) -> None:
        """At the start, and after a snapshot: find the blobs whose end this node was not told of."""
        for number, sidecar in enumerate(await self._blobs.sidecars(), 1):
            if sidecar.committed_at is None or not await self._is_known(sidecar.attempt):
                self._staged.setdefault(sidecar.attempt, 0)
            if number % LOOKED_AT_ONCE == 0:
                await deferLater(self._clock, 0)

    async def _is_known(self, attempt: AttemptId) -> bool:
        """Whether it is current, or was and is kept for its readers."""
        return await self._index.names(attempt) or await self._index.is_superseded(attempt)

    async def _note_commits(self) -> None:
        committed = list(self._committed.items())
        for start in range(0, len(committed), NOTED_AT_ONCE):
            noting = [self._blobs.commit(attempt, *what) for attempt, what in committed[start : start + NOTED_AT_ONCE]]
            results: list[tuple[bool, Any]] = await DeferredList(noting, consumeErrors=True)
            for (attempt, _), (noted, result) in zip(committed[start:], results, strict=False):
                if not noted:
                    result.trap(NoSuchBlob, CorruptBlock)
                    self._log.warn("the commit of {attempt} is not noted: {problem}", attempt=str(attempt), problem=repr(result.value))
                self._committed.pop(attempt, None)
                self._staged.pop(attempt, None)

    async def _drop_superseded(self) -> None:
        kept_s = self._acting.roster.settings.keep_superseded_s
        for attempt in await self._index.superseded_before(self._wall() - kept_s):
            if not await self._index.wants(attempt):
                await self._blobs.drop(attempt)
            await self._index.forget_superseded(attempt)

    async def _find_staged(self) -> None:
        for sidecar in await self._blobs.sidecars():
            if sidecar.committed_at is None:
                self._staged.setdefault(sidecar.attempt, 0)

    async def _ask_about_staged(self) -> None:
        for attempt, rounds in list(self._staged.items()):
            if self._is_under_way(attempt):
                continue
            try:
                sidecar: Sidecar = await self._blobs.sidecar(attempt)
            except (NoSuchBlob, CorruptBlock):
                self._staged.pop(attempt)
                continue
            if await self._index.names(attempt):
                if sidecar.committed_at is None:
                    self._committed[attempt] = (sidecar.version, self._index.position)
                self._staged.pop(attempt)
                continue
            if await self._index.is_superseded(attempt):
                # It has its own time to go.
                self._staged.pop(attempt)
                continue
            self._staged[attempt] = rounds + 1
            if rounds < STAGED_ROUNDS:
                continue
            was_committed = sidecar.committed_at is not None
            outcome: m.Outcome = await self._acting.ask_admin(m.OutcomeAsk(attempt=attempt, abandon=not was_committed))
            if was_committed and outcome.committed is None:
                self._log.critical(
                    "{attempt} was committed at {position} as version {version} of {file}, and the catalogue does not know of it: kept",
                    attempt=str(attempt),
                    position=str(Position(*sidecar.committed_at)) if sidecar.committed_at is not None else "",
                    version=sidecar.version,
                    file=sidecar.file.hex(),
                )
            elif outcome.ended == "abandoned":
                self._log.info("the upload {attempt} was given up; its blob is dropped", attempt=str(attempt))
                await self._blobs.drop(attempt)
            elif outcome.committed is None or outcome.committed.position > self._index.position:
                continue
            elif not await self._index.names(attempt):
                # Committed, and superseded since: this node was away meanwhile.
                await self._blobs.drop(attempt)
            self._staged.pop(attempt, None)

    def _stopped(self, failure: Any) -> None:
        if not failure.check(CancelledError):
            self._log.failure("housekeeping has stopped", failure)

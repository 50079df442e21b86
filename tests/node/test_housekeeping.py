"""Housekeeping: what may be dropped from a node's disk, and what never."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.roster import Roster
from securifile.node.housekeeping import ROUND_S, STAGED_ROUNDS, Housekeeping
from securifile.node.index import Index
from securifile.node.memory_blobs import MemoryBlobs
from securifile.protocol import messages as m
from securifile.sql.sqlite import SqliteDatabase, run_now

ATTEMPT = AttemptId(b"a" * 16)
FILE = EntryId(b"f" * 16)
ROOT = EntryId(b"r" * 16)


@attrs.define
class Asked:
    """An `Acting` whose catalogue gives one answer."""

    outcome: m.Outcome
    roster: Roster = attrs.Factory(Roster)
    questions: list[m.OutcomeAsk] = attrs.Factory(list)

    async def ask_admin(self, message: m.OutcomeAsk) -> m.Outcome:
        self.questions.append(message)
        return self.outcome


class World:
    """One node's disk with one sealed blob, and its housekeeping."""

    def __init__(self, outcome: m.Outcome) -> None:
        self.clock = Clock()
        self.blobs = MemoryBlobs()
        self.acting = Asked(outcome)
        self.index = Index(SqliteDatabase(None), lambda: 0.0)
        run_now(self.index.open())
        run_now(self.index.replace(Position(1, 0), [f.Folder(id=ROOT, owner="alice", parent=None, name="alice", created_at=0.0)]))
        done(Deferred.fromCoroutine(self._seal()))

    async def _seal(self) -> None:
        writer = await self.blobs.begin(ATTEMPT, DigestAlgorithm.SHA256)
        await writer.write(b"the last copy")
        await writer.finish(FILE, 1)

    def run(self, rounds: int) -> Housekeeping:
        acting: Any = self.acting
        tidy = Housekeeping(
            clock=self.clock,
            wall=lambda: 0.0,
            name="n1",
            index=self.index,
            blobs=self.blobs,
            acting=acting,
            is_under_way=lambda attempt: False,
        )
        self.index.listen(tidy.learn)
        tidy.start()
        for _ in range(rounds):
            self.clock.advance(ROUND_S)
        tidy.stop()
        return tidy

    def has_blob(self) -> bool:
        return [sidecar.attempt for sidecar in done(self.blobs.sidecars())] == [ATTEMPT]


def done(waited: Deferred[Any]) -> Any:
    results: list[Any] = []
    waited.addCallback(results.append)
    assert results, "it waits"
    return results[0]


def file_fact() -> f.File:
    version = Version(
        number=1,
        attempt=ATTEMPT,
        size=13,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="alice",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )
    return f.File(id=FILE, owner="alice", parent=ROOT, name="x", created_at=0.0, version=version)


def test_an_upload_that_never_ended_is_given_up_and_its_blob_dropped() -> None:
    """A staged blob goes once the catalogue has said that its attempt is abandoned."""
    world = World(m.Outcome(ended="abandoned"))
    world.run(STAGED_ROUNDS + 1)
    assert [asked.abandon for asked in world.acting.questions] == [True]
    assert not world.has_blob()


def test_each_round_has_the_store_settle() -> None:
    """So that what leaves a quiet node stays away when that starts again."""
    world = World(m.Outcome(ended="abandoned"))
    world.run(3)
    assert world.blobs.settled == 4


def test_a_committed_blob_outlives_a_catalogue_that_has_forgotten_it() -> None:
    """A catalogue restored from a backup does not know of late commits: their blobs are kept, and nobody abandons their attempts."""
    world = World(m.Outcome(ended=None))
    done(world.blobs.commit(ATTEMPT, 1, Position(1, 7)))
    world.run(3 * STAGED_ROUNDS)
    assert world.acting.questions
    assert not any(asked.abandon for asked in world.acting.questions)
    assert world.has_blob()


def test_even_when_somebody_else_has_abandoned_it() -> None:
    """What this disk knows to have been committed is not dropped because another holder, who did not know, asked to give it up."""
    world = World(m.Outcome(ended="abandoned"))
    done(world.blobs.commit(ATTEMPT, 1, Position(1, 7)))
    world.run(3 * STAGED_ROUNDS)
    assert world.has_blob()


def test_a_superseded_blob_of_a_node_that_was_away_is_dropped() -> None:
    """Committed, not current any more, and the index is as far as the commit: the blob goes."""
    committed = m.Committed(position=Position(1, 0), facts=(file_fact(),), attempt=ATTEMPT, created=True)
    world = World(m.Outcome(ended="committed", committed=committed))
    done(world.blobs.commit(ATTEMPT, 1, Position(1, 0)))
    world.run(STAGED_ROUNDS + 1)
    assert not world.has_blob()


def test_a_commit_that_was_not_noted_before_a_restart_is_noted_after_it() -> None:
    """The sidecar of a current version says `committed` even when the process died before it could."""
    world = World(m.Outcome(ended=None))
    run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=(file_fact(),))]))
    world.run(3)
    assert done(world.blobs.sidecar(ATTEMPT)).committed_at == (1, 1)


def test_a_commit_of_a_blob_that_is_gone_does_no_harm_to_others() -> None:
    """It cannot be noted; those that come with it are."""
    world = World(m.Outcome(ended=None))
    gone = attrs.evolve(file_fact(), id=EntryId(b"g" * 16), name="y")
    gone = attrs.evolve(gone, version=attrs.evolve(gone.version, attempt=AttemptId(b"b" * 16)))
    tidy = world.run(1)
    tidy.learn(gone)
    tidy.learn(file_fact())
    tidy.start()
    tidy.stop()
    assert done(world.blobs.sidecar(ATTEMPT)).committed_at == (1, 0)


def test_a_failure_of_the_index_does_not_end_the_housekeeping() -> None:
    """After whatever went wrong in one round there is a next one."""
    world = World(m.Outcome(ended="abandoned"))
    names, failures = world.index.names, [RuntimeError("the index is held by a backup")]

    def fails_once(attempt: AttemptId) -> Awaitable[bool]:
        if world.clock.seconds() > 0 and failures:
            raise failures.pop()
        return names(attempt)

    index: Any = world.index
    index.names = fails_once
    world.run(STAGED_ROUNDS + 2)
    assert not failures
    assert not world.has_blob()

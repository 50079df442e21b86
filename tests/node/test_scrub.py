"""The scrub finds every rotten copy without anybody asking for it, keeps to its budget, and accuses no sound one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.audit.memory import MemoryAudit
from securifile.http.sources import Sources
from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, PeerUnreachable, Refusal, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.servers import ServerKind
from securifile.model.settings import ClusterSettings
from securifile.node.acting import Acting
from securifile.node.checks import SLICE, Checks
from securifile.node.index import Index
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.mending import Mending
from securifile.node.peer_blobs import PeerBlobs
from securifile.node.quarantine import AGAIN_S, Quarantine
from securifile.node.scrub import ROUND_S, SEEK_BYTES, TELL_MAX, TELL_S, Scrub
from securifile.node.sidecars import BLOCK_BYTES
from securifile.node.verification import Verification
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.sql import directory
from securifile.sql.sqlite import SqliteDatabase, run_now

BEGAN = 1_800_000_000.0
EVERY_S = 1000.0
ROOT = EntryId(b"r" * 16)
PEER = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n2")


def attempt(number: int) -> AttemptId:
    return AttemptId(number.to_bytes(16, "big"))


def entry(number: int) -> EntryId:
    return EntryId(b"f" + number.to_bytes(15, "big"))


def now(waited: Any) -> Any:
    """The result of what does not wait."""
    results: list[Any] = []
    Deferred.fromCoroutine(waited).addCallback(results.append) if not isinstance(waited, Deferred) else waited.addCallback(results.append)
    assert results, "it waits"
    return results[0]


class Catalogue:
    """An admin server that writes down what it is told, when it is there."""

    def __init__(self, noted: Callable[[m.CopyBad], None]) -> None:
        self.there = True
        self.noted = noted
        self.bad: list[m.CopyBad] = []
        self.told: list[m.CopiesChecked] = []

    async def ask(self, message: Any) -> m.Done:
        if not self.there:
            raise Refusal(Code.CATALOGUE_UNAVAILABLE, "nobody there")
        if isinstance(message, m.CopyBad):
            self.bad.append(message)
            self.noted(message)
        else:
            self.told.append(message)
        return m.Done()


class World:
    """A node with some files, its scrub, and a clock."""

    def __init__(self, **chosen: Any) -> None:
        self.clock = Clock()
        self.settings = ClusterSettings(**{"scrub_bytes_s": 1e9, "scrub_every_s": EVERY_S, **chosen})
        self.running = True
        self.blobs = MemoryBlobs()
        self.audit = MemoryAudit()
        self.catalogue = Catalogue(self.pending)
        self.ahead_s = 0.0
        self.index = Index(SqliteDatabase(None), self.wall)
        run_now(self.index.open())
        self.index.node = "n1"
        run_now(self.index.replace(Position(1, 0), [f.Folder(id=ROOT, owner="ann", parent=None, name="ann", created_at=0.0)]))
        self.begin()

    def begin(self) -> None:
        """A life of the process."""
        self.checks = Checks(index=self.index, wall=self.wall, name="n1")
        self.quarantine = Quarantine(
            clock=self.clock,
            name="n1",
            wall=self.wall,
            index=self.index,
            blobs=self.blobs,
            audit=self.audit,
            checks=self.checks,
            ask_admin=self.catalogue.ask,
        )
        self.scrub = Scrub(
            clock=self.clock,
            wall=self.wall,
            name="n1",
            index=self.index,
            blobs=self.blobs,
            checks=self.checks,
            quarantine=self.quarantine,
            settings=lambda: self.settings,
            is_running=lambda: self.running,
            ask_admin=self.catalogue.ask,
        )

    def wall(self) -> float:
        return BEGAN + self.clock.seconds() + self.ahead_s

    def feed(self, *facts: f.Fact) -> None:
        run_now(self.index.apply_changes(1, [f.Change(revision=self.index.position.revision + 1, facts=facts)]))

    def put(self, number: int, size: int = 100, *, durable: bool = True, stored: bytes | None = None) -> None:
        """File `number` with its blob here; `stored`: other bytes than the catalogue has."""
        data = bytes([number % 251]) * size
        writer = now(self.blobs.begin(attempt(number), DigestAlgorithm.SHA256))
        now(writer.write(data if stored is None else stored))
        now(writer.finish(entry(number), 1))
        self.know(number, data, durable=durable)

    def know(self, number: int, data: bytes, *, durable: bool = True) -> None:
        """Have the file in the index."""
        version = Version(
            number=1,
            attempt=attempt(number),
            size=len(data),
            digest=hashlib.sha256(data).digest(),
            algorithm=DigestAlgorithm.SHA256,
            committed_at=self.wall(),
            committed_by="ann",
            copies=(Copy(node="n2", priority=0, durable=True), Copy(node="n1", priority=1, durable=durable)),
        )
        self.feed(f.File(id=entry(number), owner="ann", parent=ROOT, name=str(number), created_at=0.0, version=version))

    def pending(self, bad: m.CopyBad) -> None:
        """The catalogue has noted that the copy here is bad."""
        file = run_now(directory.file_by_attempt(self.index.sql, bad.file, bad.attempt))
        assert file is not None
        copies = tuple(attrs.evolve(copy, durable=copy.node != "n1") for copy in file.version.copies)
        self.feed(attrs.evolve(file, version=attrs.evolve(file.version, copies=copies)))

    def wait(self, seconds: float, step_s: float = ROUND_S) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)

    def checked_at(self) -> dict[int, float]:
        """number -> when it was last known to be sound, in seconds since the beginning."""
        rows = run_now(self.index.sql.query("SELECT attempt, at FROM checks ORDER BY at"))
        return {int.from_bytes(row[0], "big"): row[1] - BEGAN for row in rows}

    @property
    def aside(self) -> list[int]:
        return sorted(int.from_bytes(one.value, "big") for one in self.blobs.quarantined)

    @property
    def rotten(self) -> list[str]:
        return [str(record.detail) for record in self.audit.records if record.event == "rotten"]


def test_a_rotten_copy_is_found_put_aside_named_and_reported() -> None:
    """Nobody reads it: the scrub does, moves the blob away, names it in the audit trail, and has the catalogue note that it is bad."""
    world = World()
    for number in range(1, 6):
        world.put(number, 3 * BLOCK_BYTES)
    world.blobs.damage(attempt(3), BLOCK_BYTES + 7)
    world.scrub.start()
    world.wait(EVERY_S + 30)
    assert world.aside == [3]
    assert [(bad.file, bad.attempt) for bad in world.catalogue.bad] == [(entry(3), attempt(3))]
    assert len(world.rotten) == 1 and str(attempt(3)) in world.rotten[0]
    assert set(world.checked_at()) == {1, 2, 4, 5}
    assert world.scrub.metrics["quarantined_blobs"] == world.scrub.metrics["scrub_bad_blobs_total"] == 1


def test_a_missing_blob_and_one_of_another_content_are_bad() -> None:
    """What is not there, and what is whole but not what the catalogue has, is reported like rot."""
    world = World()
    world.put(1, stored=b"something else")
    world.know(2, b"never came")
    world.put(3)
    world.scrub.start()
    world.wait(EVERY_S + 30)
    assert sorted(bad.attempt.value[-1] for bad in world.catalogue.bad) == [1, 2]
    assert world.aside == [1]


def test_nothing_is_read_again_before_its_time_and_the_longest_waiting_is_first() -> None:
    """Each copy is read once in each period, in the order in which they were read before."""
    world = World(scrub_bytes_s=10.0 * (SEEK_BYTES + 100))
    world.put(1)
    world.wait(EVERY_S / 2)
    world.put(2)
    world.scrub.start()
    world.wait(EVERY_S / 2 + 2 * ROUND_S)
    first = world.checked_at()
    assert first[1] >= EVERY_S and first[2] == EVERY_S / 2
    world.wait(EVERY_S / 2)
    assert world.checked_at()[1] == first[1]
    assert world.checked_at()[2] > EVERY_S * 1.5 - ROUND_S
    world.wait(EVERY_S / 2)
    assert list(world.checked_at()) == [2, 1]


def test_the_budget_is_kept() -> None:
    """Many bytes take as long as the setting says, a great file as well as small ones."""
    world = World(scrub_bytes_s=100_000.0)
    for number in range(1, 11):
        world.put(number, 1)
    world.put(11, 1_000_000)
    world.clock.advance(EVERY_S)
    world.scrub.start()
    read_s = (11 * SEEK_BYTES + 1_000_010) / 100_000.0
    world.wait(read_s - ROUND_S, 0.25)
    assert len([at for at in world.checked_at().values() if at >= EVERY_S]) < 11
    world.wait(4 * ROUND_S, 0.25)
    assert len([at for at in world.checked_at().values() if at >= EVERY_S]) == 11
    assert world.scrub.metrics["scrub_read_bytes_total"] == 1_000_010


def test_switched_off_it_reads_nothing_and_the_age_grows() -> None:
    """With a rate of 0 nothing is read, and `/metrics` shows for how long."""
    world = World(scrub_bytes_s=0.0)
    world.put(1)
    world.blobs.damage(attempt(1), 0)
    world.scrub.start()
    world.wait(3 * EVERY_S)
    assert world.aside == []
    assert world.scrub.metrics["oldest_check_seconds"] == pytest.approx(3 * EVERY_S, abs=ROUND_S)
    world.settings = attrs.evolve(world.settings, scrub_bytes_s=1e6)
    world.wait(2 * ROUND_S)
    assert world.aside == [1]


def test_a_node_that_is_not_running_judges_nothing() -> None:
    """What a returning or failed node holds is for its challengers; once it is running the scrub goes on."""
    world = World()
    world.put(1)
    world.blobs.damage(attempt(1), 0)
    world.running = False
    world.scrub.start()
    world.wait(2 * EVERY_S)
    assert world.aside == [] and world.rotten == []
    world.running = True
    world.wait(2 * ROUND_S)
    assert world.aside == [1]


@pytest.mark.parametrize("what", ["is taken offline", "no longer has the file"])
def test_what_changed_while_a_blob_was_read_counts(what: str) -> None:
    """A bad block met after the node was taken offline, or the file deleted, is nothing to report."""
    world = World(scrub_bytes_s=float(BLOCK_BYTES))
    world.put(1, 40 * BLOCK_BYTES)
    world.blobs.damage(attempt(1), 39 * BLOCK_BYTES)
    world.clock.advance(EVERY_S)
    world.scrub.start()
    world.wait(20.0, 1.0)
    assert 0 < world.scrub.metrics["scrub_read_bytes_total"] < 39 * BLOCK_BYTES
    if what == "is taken offline":
        world.running = False
    else:
        world.feed(f.EntryGone(id=entry(1)))
    world.wait(60.0, 1.0)
    assert world.aside == [] and world.rotten == [] and world.catalogue.bad == []
    assert world.scrub.metrics["scrub_bad_blobs_total"] == 0


def test_copies_that_are_pending_or_gone_are_no_business_of_the_scrub() -> None:
    """A copy still to be fetched is not missing, and a file that was deleted meanwhile is forgotten."""
    world = World()
    world.know(1, b"to be fetched", durable=False)
    world.put(2)
    world.scrub.start()
    world.wait(2 * ROUND_S)
    world.feed(f.EntryGone(id=entry(2)))
    now(world.blobs.drop(attempt(2)))
    world.wait(EVERY_S + 30)
    assert world.catalogue.bad == [] and world.rotten == [] and world.checked_at() == {}


def test_a_check_survives_a_restart_and_what_was_read_in_part_does_not_count() -> None:
    """Stopped in the middle of a blob, the scrub begins that one again; what it had finished stays."""
    world = World(scrub_bytes_s=float(BLOCK_BYTES))
    world.put(1)
    world.clock.advance(1.0)
    world.put(2, 20 * BLOCK_BYTES)
    world.clock.advance(EVERY_S)
    world.scrub.start()
    world.wait(12.0, 1.0)
    world.scrub.stop()
    assert not world.clock.getDelayedCalls()
    before = world.checked_at()
    assert before[1] > EVERY_S and before[2] == 1.0
    world.begin()
    world.settings = attrs.evolve(world.settings, scrub_bytes_s=1e9)
    world.scrub.start()
    world.wait(2 * ROUND_S)
    after = world.checked_at()
    assert after[1] == before[1] and after[2] > EVERY_S


def test_a_wrong_clock_hides_nothing() -> None:
    """Checks written while the clock was a year ahead count for nothing once it is right again."""
    world = World()
    world.put(1)
    world.ahead_s = 365 * 86400.0
    world.scrub.start()
    world.wait(2 * ROUND_S)
    assert world.checked_at()[1] > 300 * 86400
    world.ahead_s = 0.0
    world.blobs.damage(attempt(1), 0)
    world.wait(2 * ROUND_S)
    assert world.aside == [1]


def test_a_suspicion_of_a_sound_blob_changes_nothing() -> None:
    """A reader with the old, rotten blob open does not take away the one that was made anew."""
    world = World()
    world.put(1)
    world.quarantine.suspect(attempt(1), "block 0 is not what was written")
    assert world.aside == [] and world.rotten == [] and world.catalogue.bad == []


def test_a_bad_copy_is_reported_as_soon_as_somebody_hears_it() -> None:
    """Found while no admin server answers, it is put aside at once, and reported later; once."""
    world = World()
    world.put(1)
    world.blobs.damage(attempt(1), 0)
    world.catalogue.there = False
    world.scrub.start()
    world.quarantine.suspect(attempt(1), "a reader met it")
    assert world.aside == [1] and len(world.rotten) == 1
    world.wait(60.0)
    world.catalogue.there = True
    world.wait(60.0)
    assert len(world.catalogue.bad) == 1 and len(world.rotten) == 1


def test_a_copy_that_stays_durable_in_the_catalogue_is_reported_again() -> None:
    """A catalogue that was restored from a backup has forgotten that the copy is bad: it is told once more, after a while."""
    world = World()
    world.catalogue.noted = lambda bad: None
    world.put(1)
    world.blobs.damage(attempt(1), 0)
    world.scrub.start()
    world.wait(EVERY_S + AGAIN_S - ROUND_S)
    assert len(world.catalogue.bad) == 1
    world.wait(2 * ROUND_S)
    assert len(world.catalogue.bad) == 2


def test_a_full_audit_spool_does_not_keep_rot_in_service() -> None:
    """The blob is put aside and reported even when there is no room to write it down."""
    world = World()
    world.put(1)
    world.blobs.damage(attempt(1), 0)
    world.audit.full = True
    world.quarantine.suspect(attempt(1), "a reader met it")
    assert world.aside == [1] and len(world.catalogue.bad) == 1


def test_checks_are_told_in_batches_and_once() -> None:
    """What was checked reaches the admin server: at once what is much, the rest within a minute; nothing twice."""
    world = World(scrub_every_s=86400.0)
    count = TELL_MAX + 20
    for number in range(1, count + 1):
        world.know(number, b"x")
        world.checks.checked(attempt(number))
    world.scrub.start()
    assert [len(told.copies) for told in world.catalogue.told] == [TELL_MAX]
    world.wait(TELL_S - ROUND_S)
    assert len(world.catalogue.told) == 1
    world.wait(2 * ROUND_S)
    assert len(world.catalogue.told[1].copies) == 20
    world.checks.checked(attempt(7))
    world.wait(TELL_S + ROUND_S)
    assert [copy.attempt for copy in world.catalogue.told[2].copies] == [attempt(7)]
    world.wait(2 * TELL_S)
    assert all(not told.copies for told in world.catalogue.told[3:])
    assert world.catalogue.told[-1].oldest_at == BEGAN


def test_what_could_not_be_told_is_told_later() -> None:
    """Checks wait on the disk for an admin server, also over a restart."""
    world = World()
    world.put(1)
    world.catalogue.there = False
    world.checks.checked(attempt(1))
    world.scrub.start()
    world.wait(2 * TELL_S)
    world.scrub.stop()
    world.catalogue.there = True
    world.begin()
    world.scrub.start()
    assert [copy.attempt for copy in world.catalogue.told[0].copies] == [attempt(1)]


def test_copies_are_entered_a_slice_at_a_time() -> None:
    """More copies than one look takes are all known after some rounds, and go on being looked at in a circle."""
    world = World(scrub_bytes_s=0.0)
    for number in range(1, SLICE + 3):
        world.know(number, b"x")
    world.scrub.start()
    assert len(world.checked_at()) == SLICE
    world.wait(ROUND_S)
    assert len(world.checked_at()) == SLICE + 2
    world.know(SLICE + 3, b"x")
    world.wait(3 * ROUND_S)
    assert len(world.checked_at()) == SLICE + 3


def test_a_peer_that_meets_a_bad_block_has_it_reported() -> None:
    """For the peer its stream is broken off before the bad block; the blob is suspected, and nothing is taken for a bug of the node."""
    world = World()
    world.put(1, 3 * BLOCK_BYTES)
    world.blobs.damage(attempt(1), BLOCK_BYTES)
    peers = PeerBlobs(world.blobs, cast(Any, None), world.quarantine.suspect)
    _, source = now(peers.fetch(PEER, m.FetchBlob(attempt=attempt(1))))
    assert len(now(source.read())) == BLOCK_BYTES
    failed: list[Any] = []
    source.read().addErrback(failed.append)
    assert failed[0].check(StreamBroken)
    source.close()
    assert world.aside == [1] and len(world.catalogue.bad) == 1


def test_a_verification_of_whole_files_counts_as_a_check() -> None:
    """What was read whole for a verification, and is what the catalogue has, need not be scrubbed soon."""
    world = World(scrub_bytes_s=0.0)
    for number in (1, 2, 3):
        world.put(number, 2 * BLOCK_BYTES)
    world.put(4, stored=b"another content")
    world.blobs.damage(attempt(2), 0)
    world.clock.advance(50.0)
    verification = Verification(
        clock=world.clock,
        name="n1",
        index=world.index,
        blobs=world.blobs,
        ask=lambda peer, message, timeout_s: Deferred(),
        settings=lambda: world.settings,
        own_copy_bad=world.quarantine.suspect,
        checked=world.checks.checked,
    )
    asked = m.Verify(subject="n1", nonce=b"n" * 32, position=world.index.position)
    now(verification.handlers[m.Verify](cast(Any, None), asked))
    now(world.checks.keep())
    assert world.checked_at() == {1: 50.0, 3: 50.0}


def test_a_repair_counts_as_a_check() -> None:
    """What a repair read and found whole need not be scrubbed soon; what it could not mend is not taken for sound."""
    world = World()
    world.put(1)
    world.put(2)
    world.blobs.damage(attempt(2), 0)
    world.clock.advance(50.0)
    acting = cast(Acting, Nobody())
    sources = Sources(clock=world.clock, name="n1", blobs=world.blobs, pool=cast(Any, Nobody()), rotten=lambda version, why: None)
    mending = Mending(
        clock=world.clock,
        name="n1",
        index=world.index,
        blobs=world.blobs,
        sources=sources,
        acting=acting,
        rate=lambda: 0.0,
        checked=world.checks.checked,
    )
    repaired = now(mending.handlers[m.RepairSelf](cast(Any, None), m.RepairSelf()))
    assert (repaired.checked, repaired.fetched, repaired.lost) == (2, 0, (entry(2),))
    now(world.checks.keep())
    assert world.checked_at() == {1: 50.0}


class Nobody:
    """A pool and an `Acting` without anybody to ask."""

    def is_available(self, name: str) -> bool:
        return False

    async def fetch(self, *asked: Any) -> Any:
        raise PeerUnreachable("there is nobody else")

    async def ask_admin(self, *asked: Any) -> Any:
        raise Refusal(Code.CATALOGUE_UNAVAILABLE, "there is nobody else")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_rots_when_is_found_and_nothing_else(data: st.DataObject) -> None:
    """Files come, go and rot at any time: within two periods exactly the rotten ones that are still wanted have been put aside."""
    world = World(scrub_bytes_s=2e6)
    world.scrub.start()
    alive: set[int] = set()
    rotten: set[int] = set()
    found: set[int] = set()
    number = 0
    for step in data.draw(st.lists(st.sampled_from(["put", "rot", "delete", "wait"]), max_size=25)):
        if step == "put":
            number += 1
            world.put(number, data.draw(st.sampled_from([1, BLOCK_BYTES, 2 * BLOCK_BYTES + 5])))
            alive.add(number)
        elif step == "wait":
            world.wait(data.draw(st.sampled_from([ROUND_S, EVERY_S / 3, EVERY_S])))
        elif sound := sorted(alive - rotten):
            chosen = data.draw(st.sampled_from(sound))
            if step == "rot":
                world.blobs.damage(attempt(chosen), 0)
                rotten.add(chosen)
            else:
                world.feed(f.EntryGone(id=entry(chosen)))
                now(world.blobs.drop(attempt(chosen)))
                alive.discard(chosen)
        found |= set(world.aside)
        assert found <= rotten
    world.wait(2 * EVERY_S + 10 * ROUND_S)
    assert set(world.aside) == rotten
    assert {bad.attempt for bad in world.catalogue.bad} == {attempt(one) for one in rotten}
    world.scrub.stop()
    assert not world.clock.getDelayedCalls()

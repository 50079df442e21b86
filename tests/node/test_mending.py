"""Mending: a node fetches what it should have, keeps only what has the recorded digest, and has it noted."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.http.sources import FETCH_S, Sources
from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, NoSuchBlob, OutcomeUnknown, Refusal
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.node.index import Index
from securifile.node.memory_blobs import MemoryBlobs, MemoryBlobWriter
from securifile.node.mending import AGAIN_S, AT_ONCE, FAILING_MAX, Mending
from securifile.protocol import messages as m
from securifile.protocol.bulk import BulkPool
from securifile.sql.sqlite import SqliteDatabase, run_now

ROOT = EntryId(b"r" * 16)
PIECE = 1000


@attrs.define(eq=False)
class Peers:
    """The other holders, as the pool of connections to them: what each has of each attempt."""

    blobs: dict[str, dict[AttemptId, bytes]] = attrs.field(factory=dict)
    fetched: list[tuple[str, AttemptId]] = attrs.field(factory=list)
    silent: set[str] = attrs.field(factory=set)

    async def fetch(self, name: str, asked: m.FetchBlob, timeout_s: float) -> tuple[m.BlobFollows, Any]:
        """See `BulkPool`."""
        self.fetched.append((name, asked.attempt))
        if name in self.silent:
            await Deferred()
        found = self.blobs.get(name, {}).get(asked.attempt)
        if found is None:
            raise NoSuchBlob(f"{name} has it not")
        return m.BlobFollows(size=len(found)), Pieces(found[asked.start : asked.stop])


class Pieces:
    """Bytes by pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`."""
        piece, self._data = self._data[:PIECE], self._data[PIECE:]
        return succeed(piece)

    def close(self) -> None:
        """See `IByteSource`."""


@attrs.define(eq=False)
class FakeActing:
    """The admin server, which notes copies when it can be reached."""

    world: World
    problem: Exception | None = None
    told: list[m.CopyMade] = attrs.field(factory=list)
    told_bad: list[EntryId] = attrs.field(factory=list)
    told_failing: list[m.CopiesFailing] = attrs.field(factory=list)
    unavailable: set[str] = attrs.field(factory=set)

    def ask_admin(self, message: m.CopyMade | m.CopyBad) -> Deferred[m.Done]:
        """See `Acting`."""
        if self.problem is not None:
            return fail(self.problem)
        if isinstance(message, m.CopyBad):
            self.told_bad.append(message.file)
            return succeed(m.Done())
        self.told.append(message)
        self.world.durable(message.file)
        return succeed(m.Done())

    async def tell_admins(self, message: m.CopiesFailing) -> None:
        """See `Acting`."""
        self.told_failing.append(message)

    def is_available(self, name: str) -> bool:
        """See `Acting`."""
        return name not in self.unavailable


class World:
    """n1, which mends itself, with n2 and n3 to fetch from."""

    def __init__(self, *, rate: float = 0.0, capacity_bytes: int = 2**40) -> None:
        self.clock = Clock()
        self.peers = Peers()
        self.blobs = MemoryBlobs(capacity_bytes=capacity_bytes)
        self.index = Index(SqliteDatabase(None), lambda: 0.0)
        self.files: dict[EntryId, f.File] = {}
        run_now(self.index.open())
        run_now(self.index.replace(Position(1, 0), [f.Folder(id=ROOT, owner="alice", parent=None, name="alice", created_at=0.0)]))
        self.acting = FakeActing(self)
        acting: Any = self.acting
        self.mending = Mending(
            clock=self.clock,
            name="n1",
            index=self.index,
            blobs=self.blobs,
            sources=Sources(
                clock=self.clock, name="n1", blobs=self.blobs, pool=cast(BulkPool, self.peers), rotten=lambda version, reason: None
            ),
            acting=acting,
            rate=lambda: rate,
        )
        self.index.listen(self.mending.learn)

    def learn(self, fact: f.Fact) -> None:
        """The next change of the feed."""
        after = self.index.position.revision + 1
        changed: list[Any] = []
        Deferred.fromCoroutine(self.index.apply_changes(1, [f.Change(revision=after, facts=(fact,))])).addBoth(changed.append)
        assert changed == [None]

    def file(self, number: int, content: bytes, *, on: tuple[str, ...] = ("n2", "n3"), here: bool = False) -> f.File:
        """A file that others hold and that n1 should have: it has it as far as the catalogue knows (`here`), or not yet."""
        names = (*on, "n1")
        made = f.File(
            id=EntryId(number.to_bytes(16)),
            owner="alice",
            parent=ROOT,
            name=f"file-{number}",
            created_at=0.0,
            version=Version(
                number=1,
                attempt=AttemptId((1000 + number).to_bytes(16)),
                size=len(content),
                digest=hashlib.sha256(content).digest(),
                algorithm=DigestAlgorithm.SHA256,
                committed_at=0.0,
                committed_by="alice",
                copies=tuple(Copy(node=name, priority=at, durable=name != "n1" or here) for at, name in enumerate(names)),
            ),
        )
        for name in on:
            self.peers.blobs.setdefault(name, {})[made.version.attempt] = content
        self.files[made.id] = made
        self.learn(made)
        return made

    def durable(self, id_: EntryId) -> None:
        """The catalogue has noted n1's copy."""
        file = self.files[id_]
        copies = tuple(attrs.evolve(copy, durable=True) for copy in file.version.copies)
        self.files[id_] = attrs.evolve(file, version=attrs.evolve(file.version, copies=copies))
        self.learn(self.files[id_])

    def begin(self, file: f.File) -> MemoryBlobWriter:
        """Somebody else begins to write the blob here."""
        writers: list[MemoryBlobWriter] = []
        self.blobs.begin(file.version.attempt, file.version.algorithm).addCallback(writers.append)
        return writers[0]

    def store(self, file: f.File, content: bytes) -> None:
        """Put a blob on n1."""
        writer = self.begin(file)
        writer.write(content)
        writer.finish(file.id, 1)

    def content(self, file: f.File) -> bytes | None:
        """What n1 has; None when it has nothing sound."""
        found: list[Any] = []

        async def read() -> bytes:
            reader = await self.blobs.open(file.version.attempt)
            source, data = reader.source(0, reader.size), b""
            while piece := await source.read():
                data += piece
            return data

        Deferred.fromCoroutine(read()).addBoth(found.append)
        return found[0] if isinstance(found[0], bytes) else None

    def repair(self) -> m.Repaired:
        """Have everything read."""
        found: list[m.Repaired] = []

        async def ask() -> m.Repaired:
            peer: Any = None
            repaired: m.Repaired = await self.mending.handlers[m.RepairSelf](peer, m.RepairSelf())
            return repaired

        Deferred.fromCoroutine(ask()).addCallback(found.append)
        assert found, "it waits"
        return found[0]

    @property
    def noted(self) -> list[EntryId]:
        """Files whose copies the catalogue was told of."""
        return [told.file for told in self.acting.told]


def test_what_is_pending_is_fetched_and_noted() -> None:
    """What was pending at the start, and what becomes pending later; nothing else is fetched."""
    world = World()
    first = world.file(1, b"1" * 2500)
    world.mending.start()
    second = world.file(2, b"2" * 2500)
    empty = world.file(3, b"")
    world.file(4, b"not ours", here=True)
    assert [world.content(file) for file in (first, second, empty)] == [b"1" * 2500, b"2" * 2500, b""]
    assert world.acting.told == [m.CopyMade(file=file.id, attempt=file.version.attempt) for file in (first, second, empty)]
    assert world.peers.fetched == [("n2", first.version.attempt), ("n2", second.version.attempt)]
    world.mending.stop()
    assert world.clock.getDelayedCalls() == []


def test_a_blob_that_is_here_is_not_fetched_again() -> None:
    """Only the catalogue did not know: a copy that arrived after the commit is noted."""
    world = World()
    file = world.file(1, b"came late")
    world.store(file, b"came late")
    world.mending.start()
    assert (world.peers.fetched, world.noted) == ([], [file.id])


def test_a_bad_blob_that_is_here_is_put_aside() -> None:
    """Rotten, or not the recorded version: another one is fetched."""
    world = World()
    rotten = world.file(1, b"a" * 2500)
    other = world.file(2, b"b" * 2500)
    world.store(rotten, b"a" * 2500)
    world.blobs.damage(rotten.version.attempt, 2000)
    world.store(other, b"c" * 2500)
    world.mending.start()
    assert [world.content(file) for file in (rotten, other)] == [b"a" * 2500, b"b" * 2500]
    assert set(world.blobs.quarantined) == {rotten.version.attempt, other.version.attempt}
    assert world.noted == [rotten.id, other.id]


def test_what_is_fetched_has_the_recorded_digest() -> None:
    """What a holder gives instead is put aside, and never counts as a copy; another holder is asked."""
    world = World()
    file = world.file(1, b"right")
    world.peers.blobs["n2"][file.version.attempt] = b"wrong"
    world.mending.start()
    assert world.content(file) == b"right"
    assert list(world.blobs.quarantined) == [file.version.attempt]
    assert world.noted == [file.id]
    world = World()
    file = world.file(1, b"right")
    for name in ("n2", "n3"):
        world.peers.blobs[name][file.version.attempt] = b"wrong"
    world.mending.start()
    assert (world.content(file), world.noted) == (None, [])
    world.peers.blobs["n3"][file.version.attempt] = b"right"
    world.clock.advance(AGAIN_S)
    assert (world.content(file), world.noted) == (b"right", [file.id])


def test_available_holders_are_asked_first() -> None:
    """And the next one when one has not what it should."""
    world = World()
    world.acting.unavailable = {"n2"}
    file = world.file(1, b"x", on=("n2", "n3"))
    world.mending.start()
    assert world.peers.fetched == [("n3", file.version.attempt)]
    world.peers.fetched.clear()
    world.acting.unavailable = set()
    del world.peers.blobs["n2"]
    file = world.file(2, b"y", on=("n3",))
    assert world.noted == [EntryId((1).to_bytes(16)), file.id]


def test_the_rate_is_kept() -> None:
    """Copying in the background takes as many bytes a second as it may, and no more."""
    world = World(rate=1000.0)
    file = world.file(1, b"r" * 5000)
    world.mending.start()
    for second in range(5):
        assert world.noted == [], f"after {second} s"
        world.clock.advance(1.0)
    assert world.noted == [file.id]
    assert world.clock.getDelayedCalls() == []


def test_copies_made_at_the_same_time_share_the_rate() -> None:
    """Several small files are under way beside each other, and together they are no faster than one."""
    world = World(rate=1000.0)
    files = [world.file(number, b"r" * 1000) for number in range(1, AT_ONCE + 1)]
    world.mending.start()
    assert len(world.peers.fetched) == AT_ONCE
    world.clock.pump([0.5] * (2 * AT_ONCE - 1))
    assert len(world.noted) < AT_ONCE
    world.clock.advance(0.5)
    assert set(world.noted) == {file.id for file in files}


def test_one_that_hangs_keeps_no_other_waiting() -> None:
    """A holder that does not answer holds up only what comes from it."""
    world = World()
    world.peers.silent = {"n9"}
    hanging = world.file(1, b"nobody says", on=("n9",))
    others = [world.file(number, b"somewhere") for number in range(2, 2 + 2 * AT_ONCE)]
    world.mending.start()
    assert world.noted == [file.id for file in others]
    world.mending.stop()
    assert world.content(hanging) is None


def test_one_that_cannot_be_fetched_keeps_no_other_waiting() -> None:
    """It is tried again a while later, again and again; what comes after it is fetched meanwhile."""
    world = World()
    nowhere = [world.file(number, b"nowhere", on=("n9",)) for number in range(3)]
    world.peers.blobs.clear()
    good = world.file(5, b"somewhere")
    world.mending.start()
    assert world.noted == [good.id]
    world.clock.advance(AGAIN_S)
    assert world.noted == [good.id]
    world.peers.blobs["n9"] = {file.version.attempt: b"nowhere" for file in nowhere}
    world.clock.advance(AGAIN_S)
    assert world.noted == [good.id, *(file.id for file in nowhere)]


def test_a_copy_that_could_not_be_noted_is_noted_later() -> None:
    """Without an admin server the blob is here and does not count yet; it is not fetched twice."""
    for problem in (Refusal(Code.CATALOGUE_UNAVAILABLE, "nobody answers"), OutcomeUnknown("lost")):
        world = World()
        world.acting.problem = problem
        file = world.file(1, b"here")
        world.mending.start()
        assert (world.content(file), world.noted) == (b"here", [])
        world.acting.problem = None
        world.clock.advance(AGAIN_S)
        assert world.noted == [file.id]
        assert len(world.peers.fetched) == 1


def test_a_blob_on_its_way_in_is_left_alone() -> None:
    """An upload's straggler may still be arriving when its commit says that it is pending: it is waited for."""
    world = World()
    file = world.file(1, b"straggler")
    writer = world.begin(file)
    world.mending.start()
    assert (world.noted, world.blobs.quarantined) == ([], {})
    writer.write(b"straggler")
    writer.finish(file.id, 1)
    world.clock.advance(AGAIN_S)
    assert (world.noted, world.blobs.quarantined, world.peers.fetched) == ([file.id], {}, [])


def test_what_is_deleted_meanwhile_is_not_fetched() -> None:
    """A version that is not current any more when its turn comes is nobody's copy."""
    world = World(rate=1000.0)
    first = [world.file(number, b"f" * 2000) for number in range(AT_ONCE)]
    second = world.file(AT_ONCE, b"s" * 2000)
    world.mending.start()
    world.learn(f.EntryGone(id=second.id))
    world.clock.pump([1.0] * (2 * AT_ONCE + 2))
    assert set(world.noted) == {file.id for file in first}
    assert {attempt for _, attempt in world.peers.fetched} == {file.version.attempt for file in first}


def test_a_full_disk_is_waited_out() -> None:
    """Nothing half fetched is left, and there may be room later."""
    world = World(capacity_bytes=1500)
    file = world.file(1, b"f" * 2000)
    world.mending.start()
    assert (world.content(file), world.noted) == (None, [])
    world.blobs.capacity_bytes = 10_000
    world.clock.advance(AGAIN_S)
    assert world.noted == [file.id]


def test_what_does_not_fit_is_told_of_before_anything_is_fetched() -> None:
    """How often it was tried, since when and why, again after each pass; what fits is made meanwhile, and what is over is not told of."""
    world = World(capacity_bytes=1500)
    large, small = world.file(1, b"l" * 2000), world.file(2, b"s" * 100)
    world.mending.start()
    assert (world.noted, world.peers.fetched) == ([small.id], [("n2", small.version.attempt)])
    world.clock.pump([AGAIN_S] * 2)
    failing = [told.copies[0] for told in world.acting.told_failing]
    assert [(one.file, one.failures, one.since_s, one.own_disk) for one in failing] == [
        (large.id, 1, 0.0, True),
        (large.id, 2, AGAIN_S, True),
        (large.id, 3, 2 * AGAIN_S, True),
    ]
    assert "2000 bytes do not fit" in failing[0].reason
    world.learn(f.EntryGone(id=large.id))
    world.clock.pump([AGAIN_S] * 2)
    assert len(world.acting.told_failing) == 3


def test_a_node_with_more_than_it_can_tell_of_goes_no_further() -> None:
    """A full disk has many pending copies: the first ones are told of, and their place is for others to take."""
    world = World(capacity_bytes=0)
    for number in range(FAILING_MAX + 5):
        world.file(number, b"x")
    world.mending.start()
    (told,) = world.acting.told_failing
    assert len(told.copies) == FAILING_MAX


def test_content_that_cannot_be_had_is_told_of_as_such() -> None:
    """It is not this node's disk that cannot take it; and while the catalogue cannot be asked, nothing is counted."""
    world = World()
    nowhere = world.file(1, b"nowhere", on=("n9",))
    world.peers.blobs.clear()
    world.mending.start()
    ((one,),) = [told.copies for told in world.acting.told_failing]
    assert (one.file, one.own_disk) == (nowhere.id, False)
    world.acting.problem = Refusal(Code.CATALOGUE_UNAVAILABLE, "nobody answers")
    world.peers.blobs["n9"] = {nowhere.version.attempt: b"nowhere"}
    world.clock.advance(AGAIN_S)
    assert len(world.acting.told_failing) == 1


def test_a_silent_holder_is_given_up() -> None:
    """Stopping leaves neither a timer nor half a blob."""
    world = World()
    world.peers.silent = {"n2", "n3"}
    file = world.file(1, b"f" * 2000)
    world.mending.start()
    world.clock.advance(FETCH_S / 2)
    world.mending.stop()
    assert world.clock.getDelayedCalls() == []
    assert (world.content(file), world.noted) == (None, [])
    world.peers.silent = set()
    world.mending.start()
    assert world.noted == [file.id]


def test_repair_reads_everything_and_fetches_what_is_bad() -> None:
    """Rotten, missing, or another version: each is fetched; what is sound stays; the rotten one is kept aside."""
    world = World()
    good, rotten, missing, other = (world.file(number, bytes([number]) * 2500, here=True) for number in range(4))
    world.store(good, b"\0" * 2500)
    world.store(rotten, b"\1" * 2500)
    world.blobs.damage(rotten.version.attempt, 1)
    world.store(other, b"another")
    world.file(9, b"pending: not part of it")
    assert world.repair() == m.Repaired(checked=4, fetched=3, lost=())
    for number, file in enumerate((good, rotten, missing, other)):
        assert world.content(file) == bytes([number]) * 2500
    assert set(world.blobs.quarantined) == {rotten.version.attempt, other.version.attempt}
    assert world.repair() == m.Repaired(checked=4, fetched=0, lost=())


def test_what_nobody_has_is_lost() -> None:
    """Repair names what it could not fetch from anybody, has the catalogue note that it is not here, and goes on with the others."""
    world = World()
    lost = world.file(1, b"the last one", on=(), here=True)
    gone = world.file(2, b"was on n2", on=("n2",), here=True)
    fine = world.file(3, b"on n3", on=("n3",), here=True)
    world.store(lost, b"the last one")
    world.blobs.damage(lost.version.attempt, 0)
    del world.peers.blobs["n2"]
    assert world.repair() == m.Repaired(checked=3, fetched=1, lost=(lost.id, gone.id))
    assert world.content(fine) == b"on n3"
    assert lost.version.attempt in world.blobs.quarantined
    assert world.acting.told_bad == [lost.id, gone.id]


def test_what_is_lost_is_named_though_the_catalogue_cannot_be_told() -> None:
    """The next repair tells it."""
    world = World()
    lost = world.file(1, b"the last one", on=(), here=True)
    world.acting.problem = Refusal(Code.CATALOGUE_UNAVAILABLE, "nobody answers")
    assert world.repair() == m.Repaired(checked=1, fetched=0, lost=(lost.id,))
    world.acting.problem = None
    assert world.repair() == m.Repaired(checked=1, fetched=0, lost=(lost.id,))
    assert world.acting.told_bad == [lost.id]

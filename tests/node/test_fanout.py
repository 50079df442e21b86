"""One upload's bytes on their way to several disks, and what is done when a replica is lost."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import BlobSummary, Copy, WholeBlob
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal, StreamBroken
from securifile.model.ids import AttemptId, EntryId
from securifile.node.fanout import Fanout, WholeFanout
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.sidecars import BlockChecksums, checksum_of
from securifile.protocol.bulk import BulkPool
from securifile.protocol.messages import BlobSent, BlobStored, StoreBlob

ATTEMPT = AttemptId(b"a" * 16)
FILE = EntryId(b"f" * 16)
CHUNKS = [bytes([number]) * 100_000 for number in range(1, 9)]
WHOLE = b"".join(CHUNKS)
DIGEST = hashlib.sha256(WHOLE).digest()


def blocks_of(data: bytes) -> bytes:
    """The checksums of the blocks of a blob."""
    checksums = BlockChecksums()
    checksums.update(data)
    return checksums.digest()


@attrs.define(eq=False)
class Replica:
    """One node's way of taking a blob."""

    name: str
    unreachable: bool = False
    connects_never: bool = False
    refuses_at: int | None = None
    """Refuses (disk full) with the write that would exceed so many bytes."""
    breaks_at: int | None = None
    hangs_at: int | None = None
    hangs_at_end: bool = False
    refuses_at_end: Exception | None = None
    rots: bool = False
    of_the_release_before: bool = False
    """Computes the digest itself; else it believes what it is told, and computes the checksum."""
    taken: bytearray = attrs.field(factory=bytearray)
    begun: int = 0
    aborted: int = 0
    hanging: list[Deferred[Any]] = attrs.field(factory=list)

    def hang(self) -> Deferred[Any]:
        waiting: Deferred[Any] = Deferred()
        self.hanging.append(waiting)
        return waiting


class FakeTransfer:
    """As `OutgoingTransfer`."""

    def __init__(self, replica: Replica, request: StoreBlob) -> None:
        self.vouched = request.vouched and not replica.of_the_release_before
        self._replica = replica

    def write(self, data: bytes) -> Deferred[None]:
        replica = self._replica
        after = len(replica.taken) + len(data)
        if replica.refuses_at is not None and after > replica.refuses_at:
            return fail(Refusal(Code.DISK_FULL, "no room"))
        if replica.breaks_at is not None and after > replica.breaks_at:
            return fail(StreamBroken("the cable"))
        replica.taken += data
        if replica.hangs_at is not None and after > replica.hangs_at:
            return replica.hang()
        return succeed(None)

    def finish(self, timeout_s: float, sent: BlobSent | None = None) -> Deferred[BlobStored]:
        replica = self._replica
        if replica.hangs_at_end:
            return replica.hang()
        if replica.refuses_at_end is not None:
            return fail(replica.refuses_at_end)
        data = bytes(replica.taken) + (b"!" if replica.rots else b"")
        if self.vouched:
            assert sent is not None
            return succeed(BlobStored(size=len(replica.taken), digest=sent.digest, checksum=checksum_of(blocks_of(data))))
        return succeed(BlobStored(size=len(replica.taken), digest=hashlib.sha256(data).digest()))

    def abort(self) -> None:
        self._replica.aborted += 1


class FakePool:
    """As `BulkPool`, for sending."""

    def __init__(self, replicas: dict[str, Replica]) -> None:
        self._replicas = replicas

    async def store(self, name: str, request: StoreBlob) -> FakeTransfer:
        replica = self._replicas[name]
        replica.begun += 1
        if replica.unreachable:
            raise PeerUnreachable(f"{name} is not there")
        if replica.connects_never:
            await replica.hang()
        assert request.attempt == ATTEMPT
        replica.taken.clear()
        return FakeTransfer(replica, request)

    def store_whole(self, name: str, blob: WholeBlob) -> Deferred[BlobStored]:
        async def store() -> BlobStored:
            request = StoreBlob(attempt=blob.attempt, file=blob.file, version=blob.version, algorithm=blob.algorithm, size=len(blob.data))
            transfer = await self.store(name, request)
            await transfer.write(blob.data)
            return await transfer.finish(1.0)

        return Deferred.fromCoroutine(store())


class World:
    """An upload to two replicas, n2 and n3, with the rest in reserve."""

    def __init__(
        self, *replicas: Replica, spare: Sequence[str] = ("n4", "n5"), chosen: Sequence[str] = ("n2", "n3"), whole: bool = False
    ) -> None:
        """Args:
        whole: whether the blob is stored in one go instead of streamed.
        """
        self.clock = Clock()
        self.replicas = {name: Replica(name) for name in (*chosen, *spare)} | {replica.name: replica for replica in replicas}
        self.gone: set[str] = set()
        self.chosen = chosen
        self.asked_for: list[list[str]] = []
        self.blobs = MemoryBlobs()
        writers: list[Any] = []
        pool = cast(BulkPool, FakePool(self.replicas))
        self.upload = self.whole if whole else self.streamed
        self.whole_fanout = WholeFanout(
            clock=self.clock,
            pool=pool,
            is_available=lambda name: name not in self.gone,
            blob=WholeBlob(attempt=ATTEMPT, file=FILE, version=1, algorithm=DigestAlgorithm.SHA256, data=WHOLE),
            replacement=self.replacement,
        )
        if whole:
            return
        self.blobs.begin(ATTEMPT, DigestAlgorithm.SHA256).addCallback(writers.append)
        self.writer = writers[0]
        self.fanout = Fanout(
            clock=self.clock,
            pool=pool,
            is_available=lambda name: name not in self.gone,
            request=StoreBlob(attempt=ATTEMPT, file=FILE, version=1, algorithm=DigestAlgorithm.SHA256, size=None, vouched=True),
            writer=self.writer,
            replacement=self.replacement,
        )

    def replacement(self, tried: Sequence[str]) -> str | None:
        """The first available node of those that were not tried."""
        self.asked_for.append(list(tried))
        assert len(self.asked_for) < 50, "it goes round and round"
        return next((name for name in self.replicas if name not in tried and name not in self.gone), None)

    async def whole(self) -> tuple[Copy, ...]:
        summary, copies = await self.whole_fanout.store(self.chosen, succeed(BlobSummary(size=len(WHOLE), digest=DIGEST)))
        assert summary.size == len(WHOLE)
        return copies

    async def streamed(self) -> tuple[Copy, ...]:
        await self.fanout.begin(self.chosen)
        for chunk in CHUNKS:
            await self.fanout.write(chunk)
        summary = await self.writer.finish(FILE, 1)
        return await self.fanout.finish(summary)

    def start(self, work: Callable[[], Awaitable[Any]] | None = None) -> tuple[Deferred[Any], list[Any]]:
        outcome: list[Any] = []
        running = Deferred.fromCoroutine(cast(Any, (work or self.upload)()))
        running.addBoth(outcome.append)
        return running, outcome

    def run(self) -> list[tuple[str, int, bool]]:
        """Node, priority and durability of each replica."""
        _, [copies] = self.start()
        if isinstance(copies, Failure):
            copies.raiseException()
        return told(copies)


def told(copies: tuple[Copy, ...]) -> list[tuple[str, int, bool]]:
    return [(copy.node, copy.priority, copy.durable) for copy in copies]


def test_every_replica_gets_the_bytes() -> None:
    """In order of priority, each with all of it, and so has this node."""
    world = World()
    assert world.run() == [("n2", 1, True), ("n3", 2, True)]
    assert bytes(world.replicas["n2"].taken) == bytes(world.replicas["n3"].taken) == bytes(world.writer.data) == WHOLE
    assert world.replicas["n4"].begun == 0
    assert world.clock.getDelayedCalls() == []


def test_a_replica_of_the_release_before() -> None:
    """It computes the digest, which is compared as the checksum is of the others."""
    assert World(Replica("n3", of_the_release_before=True)).run() == [("n2", 1, True), ("n3", 2, True)]


@pytest.mark.parametrize("whole", [False, True])
def test_no_replicas_are_wanted(whole: bool) -> None:
    """With r = 0 the bytes go to this node only."""
    world = World(chosen=(), whole=whole)
    assert world.run() == []
    assert world.replicas["n4"].begun == 0


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "faults",
    [
        {"unreachable": True},
        {"refuses_at": 0},
        {"refuses_at": 250_000},
        {"breaks_at": 250_000},
        {"refuses_at_end": Refusal(Code.DISK_FULL, "no room after all")},
        {"refuses_at_end": StreamBroken("lost")},
        {"refuses_at_end": DeadlineExceeded("a slow disk")},
        {"rots": True},
        {"rots": True, "of_the_release_before": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("lost", ["n2", "n3"])
def test_a_lost_replica_is_replaced(faults: dict[str, Any], lost: str, whole: bool) -> None:
    """However and whenever it is lost, another takes its place and priority and gets all the bytes from this node's disk."""
    world = World(Replica(lost, **faults), whole=whole)
    expected = {"n2": [("n4", 1, True), ("n3", 2, True)], "n3": [("n2", 1, True), ("n4", 2, True)]}
    assert world.run() == expected[lost]
    assert bytes(world.replicas["n4"].taken) == WHOLE
    assert world.clock.getDelayedCalls() == []
    if world.replicas[lost].begun and not faults.get("unreachable") and not whole:
        assert world.replicas[lost].aborted


@pytest.mark.parametrize("whole", [False, True])
def test_none_to_replace_with(whole: bool) -> None:
    """A replica that cannot be replaced is counted as pending, and the others as what they are."""
    world = World(Replica("n2", breaks_at=0), spare=(), whole=whole)
    assert world.run() == [("n2", 1, False), ("n3", 2, True)]


@pytest.mark.parametrize("whole", [False, True])
def test_all_are_lost(whole: bool) -> None:
    """With nobody left who takes it, every node is tried once, and none is durable."""
    names = ["n2", "n3", "n4", "n5", "n6"]
    world = World(*(Replica(name, refuses_at=0) for name in names), spare=names[2:], whole=whole)
    copies = world.run()
    assert [durable for _, _, durable in copies] == [False, False]
    assert len({name for name, _, _ in copies}) == 2
    assert [world.replicas[name].begun for name in names] == [1] * 5


@pytest.mark.parametrize("whole", [False, True])
def test_a_replacement_may_be_lost_as_well(whole: bool) -> None:
    """Then the next one is taken, and one that was lost before is not tried again."""
    world = World(Replica("n2", refuses_at=0), Replica("n4", rots=True), whole=whole)
    assert world.run() == [("n5", 1, True), ("n3", 2, True)]
    assert world.replicas["n2"].begun == world.replicas["n4"].begun == 1


@pytest.mark.parametrize("whole", [False, True])
def test_two_lost_replicas_get_two_different_replacements(whole: bool) -> None:
    """Never is a node given two replicas of one file."""
    world = World(Replica("n2", breaks_at=100_000), Replica("n3", unreachable=True), whole=whole)
    assert world.run() == [("n4", 1, True), ("n5", 2, True)]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("faults", [{"connects_never": True}, {"hangs_at": 250_000}, {"hangs_at_end": True}], ids=str)
def test_a_hanging_replica_holds_up_until_it_is_doubted(faults: dict[str, Any], whole: bool) -> None:
    """While the detector trusts it the upload waits; when it is doubted, the upload goes on without it at once."""
    world = World(Replica("n2", **faults), whole=whole)
    _, outcome = world.start()
    for _ in range(30):
        world.clock.advance(0.1)
    assert outcome == []
    world.gone.add("n2")
    world.clock.advance(0.1)
    assert told(outcome[0]) == [("n4", 1, True), ("n3", 2, True)]
    assert world.clock.getDelayedCalls() == []


def test_a_slow_replica_is_waited_for() -> None:
    """A chunk that takes its time is no reason to give a replica up."""
    world = World(Replica("n2", hangs_at=750_000))
    _, outcome = world.start()
    world.clock.pump([0.1] * 20)
    world.replicas["n2"].hanging[0].callback(None)
    assert told(outcome[0]) == [("n2", 1, True), ("n3", 2, True)]
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("chosen", [("n2",), ("n2", "n3")])
def test_a_cancelled_upload_says_so(chosen: Sequence[str]) -> None:
    """A client that goes away in the middle ends the upload with a cancellation, whatever the number of replicas."""
    world = World(*(Replica(name, hangs_at=250_000) for name in chosen), chosen=chosen)
    running, outcome = world.start()
    world.clock.advance(1.0)
    running.cancel()
    assert outcome[0].check(CancelledError), outcome[0]
    world.fanout.abort()
    assert all(world.replicas[name].aborted for name in chosen)
    assert world.clock.getDelayedCalls() == []


def test_an_error_that_is_no_replicas_comes_out_as_it_is() -> None:
    """This node's own disk failing is not blamed on a replica, nor wrapped in something else."""
    world = World(Replica("n2", refuses_at_end=OSError("the disk here")))
    with pytest.raises(OSError, match="the disk here"):
        world.run()


def test_a_body_that_breaks_off_breaks_off_everywhere() -> None:
    """`abort` makes every replica forget what it has."""
    world = World()

    async def half() -> None:
        await world.fanout.begin(["n2", "n3"])
        await world.fanout.write(CHUNKS[0])
        world.fanout.abort()

    world.start(half)
    assert (world.replicas["n2"].aborted, world.replicas["n3"].aborted) == (1, 1)

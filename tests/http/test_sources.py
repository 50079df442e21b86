"""The bytes of a version, from one holder after the other, and transfers that are cut off when the right to them ends."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.http.sources import FETCH_S, HEDGE_S, Sources, VersionSource
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, CorruptBlock, NoSuchBlob, PeerUnreachable, Refusal, StreamBroken
from securifile.model.ids import AttemptId, EntryId
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.sidecars import BLOCK_BYTES
from securifile.protocol.bulk import BulkPool
from securifile.protocol.messages import BlobFollows, FetchBlob

ATTEMPT = AttemptId(b"a" * 16)
WHOLE = b"".join(bytes([number]) * 100_000 for number in range(8))
PIECE = 30_000
VERSION = Version(
    number=1,
    attempt=ATTEMPT,
    size=len(WHOLE),
    digest=b"",
    algorithm=DigestAlgorithm.SHA256,
    committed_at=0.0,
    committed_by="ann",
    copies=tuple(Copy(node=f"n{number}", priority=number - 1, durable=True) for number in range(1, 4)),
)


@attrs.define(eq=False)
class Holder:
    """How another node gives the blob."""

    refuses: Exception | None = None
    connects_never: bool = False
    breaks_at: int | None = None
    hangs_at: int | None = None
    ends_at: int | None = None
    size: int = len(WHOLE)
    asked: list[FetchBlob] = attrs.field(factory=list)
    open: int = 0
    cancelled: int = 0


class FakeSource:
    """Bytes from a holder."""

    def __init__(self, holder: Holder, start: int, stop: int) -> None:
        self._holder, self._at, self._stop, self._open = holder, start, stop, True
        holder.open += 1

    def read(self) -> Deferred[bytes]:
        holder = self._holder
        if holder.breaks_at is not None and self._at >= holder.breaks_at:
            return fail(StreamBroken("lost"))
        if holder.hangs_at is not None and self._at >= holder.hangs_at:
            return self._hang()
        if holder.ends_at is not None and self._at >= holder.ends_at:
            return succeed(b"")
        data = WHOLE[self._at : min(self._at + PIECE, self._stop)]
        self._at += len(data)
        return succeed(data)

    def _hang(self) -> Deferred[bytes]:
        def cancelled(_: Any) -> None:
            self._holder.cancelled += 1

        return Deferred(cancelled)

    def close(self) -> None:
        self._holder.open -= self._open
        self._open = False


class FakePool:
    """As `BulkPool`, for fetching."""

    def __init__(self, holders: dict[str, Holder]) -> None:
        self._holders = holders

    async def fetch(self, name: str, request: FetchBlob, timeout_s: float) -> tuple[BlobFollows, FakeSource]:
        holder = self._holders[name]
        holder.asked.append(request)
        if holder.refuses is not None:
            raise holder.refuses
        if holder.connects_never:
            await Deferred(lambda _: setattr(holder, "cancelled", holder.cancelled + 1))
        assert request.stop is not None
        return BlobFollows(size=holder.size), FakeSource(holder, request.start, request.stop)


class World:
    """n1, which may hold the blob, and its ways to n2 and n3."""

    def __init__(self, n2: Holder | None = None, n3: Holder | None = None) -> None:
        self.clock = Clock()
        self.holders = {"n2": n2 or Holder(), "n3": n3 or Holder()}
        self.blobs = MemoryBlobs()
        self.rotten: list[str] = []
        self.sources = Sources(
            clock=self.clock,
            name="n1",
            blobs=self.blobs,
            pool=cast(BulkPool, FakePool(self.holders)),
            rotten=lambda version, reason: self.rotten.append(reason),
        )

    def store_here(self, data: bytes = WHOLE) -> None:
        writers: list[Any] = []
        self.blobs.begin(ATTEMPT, DigestAlgorithm.SHA256).addCallback(writers.append)
        writers[0].write(data)
        writers[0].finish(EntryId(b"f" * 16), 1)

    def open(self, *names: str, start: int = 0, stop: int = len(WHOLE)) -> VersionSource:
        return self.sources.open(VERSION, list(names), start, stop)

    def reading(self, source: VersionSource) -> list[Any]:
        """All bytes, or the failure, once there is an end."""
        outcome: list[Any] = []

        async def everything() -> bytes:
            data = bytearray()
            try:
                while piece := await source.read():
                    data += piece
                assert await source.read() == b""
            finally:
                source.close()
            return bytes(data)

        Deferred.fromCoroutine(everything()).addBoth(outcome.append)
        return outcome

    def at_rest(self) -> bool:
        return not self.clock.getDelayedCalls() and not any(holder.open for holder in self.holders.values())


def test_this_nodes_disk_is_read() -> None:
    """A blob that is here is not asked for elsewhere."""
    world = World()
    world.store_here()
    assert world.reading(world.open("n1", "n2")) == [WHOLE]
    assert world.holders["n2"].asked == []


def test_another_holder_is_asked() -> None:
    """For the range that is wanted and nothing more."""
    world = World()
    assert world.reading(world.open("n2", start=5, stop=100_005)) == [WHOLE[5:100_005]]
    assert world.holders["n2"].asked == [FetchBlob(attempt=ATTEMPT, start=5, stop=100_005)]
    assert world.at_rest()


def test_nothing_is_wanted() -> None:
    """An empty range needs no holder at all."""
    assert World().reading(World().open(start=7, stop=7)) == [b""]


@pytest.mark.parametrize(
    "faults",
    [
        {"refuses": PeerUnreachable("gone")},
        {"refuses": Refusal(Code.NOT_FOUND, "not here")},
        {"size": 7},
        {"breaks_at": 0},
        {"breaks_at": 90_000},
        {"ends_at": 90_000},
    ],
    ids=str,
)
def test_the_next_holder_goes_on_at_the_same_byte(faults: dict[str, Any]) -> None:
    """However and wherever a holder fails, the reader gets every byte once."""
    world = World(n2=Holder(**faults))
    source = world.open("n2", "n3", start=10)
    assert world.reading(source) == [WHOLE[10:]]
    assert source.tried == ["n2", "n3"]
    assert world.at_rest()
    assert world.rotten == []


@pytest.mark.parametrize("faults", [{"connects_never": True}, {"hangs_at": 90_000}], ids=str)
def test_a_hanging_holder_costs_a_moment(faults: dict[str, Any]) -> None:
    """After a few hundred milliseconds the next one is asked, and the hanging one is let go."""
    world = World(n2=Holder(**faults))
    outcome = world.reading(world.open("n2", "n3"))
    world.clock.advance(HEDGE_S - 0.01)
    assert not outcome
    world.clock.advance(0.02)
    assert outcome == [WHOLE]
    assert world.holders["n2"].cancelled == 1
    assert world.at_rest()


class FakeLane:
    """Counts what it takes, until it is closed."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_open = True

    @property
    def taken(self) -> int:
        return sum(map(len, self.pieces))

    def take(self, piece: bytes) -> bool:
        assert self.is_open
        self.pieces.append(piece)
        return True

    def close(self) -> int:
        self.is_open = False
        return self.taken


class PouringBlobs:
    """A disk whose worker gives 100,000 bytes at each step of the test, and then does what the test says."""

    def __init__(self, world: World) -> None:
        self._under = world.blobs
        self.pouring: list[tuple[Any, Deferred[None]]] = []
        self.at = 0
        self.cancelled = 0
        self.closed = 0

    def open(self, attempt: AttemptId) -> Deferred[Any]:
        return succeed(self)

    size = len(WHOLE)

    def source(self, start: int, stop: int) -> PouringBlobs:
        self.at = start
        return self

    def read(self) -> Deferred[bytes]:
        piece, self.at = WHOLE[self.at : self.at + PIECE], self.at + PIECE
        return succeed(piece)

    def pour(self, take: Any, bytes_max: int) -> Deferred[None]:
        def cancelled(_: Any) -> None:
            self.cancelled += 1

        answer: Deferred[None] = Deferred(cancelled)
        self.pouring.append((take, answer))
        return answer

    def step(self) -> None:
        self.pouring[-1][0](WHOLE[self.at : self.at + 100_000])
        self.at += 100_000

    def close(self) -> None:
        self.closed += 1


def pouring(*names: str) -> tuple[World, PouringBlobs, VersionSource, FakeLane, list[Any]]:
    world = World()
    disk = PouringBlobs(world)
    world.sources._blobs = disk
    source = world.open(*names)
    first: list[bytes] = []
    source.read().addCallback(first.append)
    assert first == [WHOLE[:PIECE]]
    lane = FakeLane()
    outcome: list[Any] = []
    source.pour(lane).addBoth(outcome.append)
    return world, disk, source, lane, outcome


def test_what_was_poured_is_not_read_again() -> None:
    """The next read goes on behind it; the lane is closed when the pouring is over."""
    world, disk, source, lane, outcome = pouring("n1", "n2")
    disk.step()
    disk.pouring[-1][1].callback(None)
    assert outcome == [100_000]
    assert not lane.is_open
    assert WHOLE[:PIECE] + b"".join(lane.pieces) + world.reading(source)[0] == WHOLE
    assert world.at_rest()


def test_a_disk_that_moves_is_not_late() -> None:
    """Patience is for standing still: a busy worker that gives something again and again is not given up."""
    world, disk, source, _lane, outcome = pouring("n1", "n2")
    for _ in range(3):
        world.clock.advance(HEDGE_S - 0.01)
        disk.step()
    assert not outcome
    disk.pouring[-1][1].callback(None)
    assert outcome == [300_000]
    source.close()
    assert world.at_rest()


@pytest.mark.parametrize("how", ["it hangs", "it is rotten"])
def test_another_holder_goes_on_behind_what_was_poured(how: str) -> None:
    """A disk that hangs, or a block that is bad: what was good went out, the rest comes from the next holder."""
    world, disk, source, lane, outcome = pouring("n1", "n2")
    disk.step()
    if how == "it hangs":
        world.clock.advance(HEDGE_S)
        world.clock.advance(HEDGE_S)
        assert disk.cancelled == 1
    else:
        disk.pouring[-1][1].errback(CorruptBlock("block 1 is bad", attempt=ATTEMPT, block=1))
        assert world.rotten == ["block 1 is bad"]
    assert outcome == [100_000]
    assert not lane.is_open
    assert WHOLE[:PIECE] + b"".join(lane.pieces) + world.reading(source)[0] == WHOLE
    assert [asked.start for asked in world.holders["n2"].asked] == [PIECE + 100_000]
    assert world.at_rest()


def test_a_holder_elsewhere_cannot_pour() -> None:
    """Then what comes next is read as ever."""
    world = World()
    source = world.open("n2")
    source.read()
    lane = FakeLane()
    outcome: list[Any] = []
    source.pour(lane).addBoth(outcome.append)
    assert outcome == [0]
    assert not lane.is_open
    source.close()


def test_the_only_holder_left_is_waited_for_longer() -> None:
    """Where there is no other, patience is worth more; and it ends."""
    world = World(n2=Holder(hangs_at=90_000))
    outcome = world.reading(world.open("n2"))
    world.clock.advance(FETCH_S - 0.1)
    assert not outcome
    world.clock.advance(0.2)
    assert outcome[0].check(Refusal)
    assert outcome[0].value.code is Code.NO_HOLDER
    assert outcome[0].value.evidence["tried"] == ["n2"]
    assert world.at_rest()


def test_a_rotten_block_is_never_delivered() -> None:
    """What is bad on this disk comes from the next holder in mid-stream, and is reported once."""
    world = World()
    world.store_here()
    world.blobs.damage(ATTEMPT, BLOCK_BYTES + 17)
    assert world.reading(world.open("n1", "n3")) == [WHOLE]
    [reason] = world.rotten
    assert "block 1" in reason
    assert [asked.start for asked in world.holders["n3"].asked] == [BLOCK_BYTES]


def test_a_missing_blob_is_reported() -> None:
    """A version that should be here and is not is asked of another holder, and somebody hears of it."""
    world = World()
    assert world.reading(world.open("n1", "n2")) == [WHOLE]
    assert len(world.rotten) == 1


def test_a_blob_of_another_size_is_not_this_version() -> None:
    """Too short or too long: not delivered."""
    world = World()
    world.store_here(WHOLE[:-1])
    assert world.reading(world.open("n1", "n2")) == [WHOLE]


def test_nobody_is_left() -> None:
    """When all fail the refusal names who was tried."""
    world = World(n2=Holder(breaks_at=90_000), n3=Holder(refuses=PeerUnreachable("gone")))
    outcome = world.reading(world.open("n1", "n2", "n3"))
    assert outcome[0].check(Refusal)
    assert outcome[0].value.evidence["tried"] == ["n1", "n2", "n3"]
    assert world.at_rest()


def test_a_reader_that_goes_away_lets_go_of_everything() -> None:
    """Cancelling a read in the middle is no failure of the holder: the next one is not asked."""
    world = World(n2=Holder(hangs_at=90_000))
    source = world.open("n2", "n3", start=90_000)
    outcome: list[Any] = []
    reading = source.read()
    reading.addBoth(outcome.append)
    reading.cancel()
    assert outcome[0].check(CancelledError)
    source.close()
    source.close()
    assert world.holders["n3"].asked == []
    assert world.at_rest()


def test_other_errors_are_no_holders_fault() -> None:
    """A bug comes out as it is."""
    world = World(n2=Holder(refuses=KeyError("a bug")))
    assert world.reading(world.open("n2", "n3"))[0].check(KeyError)
    assert not issubclass(KeyError, (CorruptBlock, NoSuchBlob))

"""An upload's bytes by way of a worker's thread: everywhere they belong, in order, and as well as by way of the reactor."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import deferLater

from securifile.http.sources import Sources
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Refusal, StreamBroken
from securifile.model.ids import AttemptId, EntryId
from securifile.model.servers import HostPort
from securifile.node.blobs import POURING_MAX, DiskBlobs
from securifile.node.bursts import BURST_BYTES, BURST_BYTES_MAX, Burst, take_in, take_in_bursts
from securifile.node.fanout import Fanout
from securifile.node.peer_blobs import PeerBlobs
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import FEATURES, VOUCHED, Connection, Purpose, Side
from securifile.protocol.frames import DATA_BYTES_MAX
from securifile.protocol.lanes import IncomingLane
from securifile.protocol.messages import BlobSent, StoreBlob
from securifile.protocol.openssl import PIECE_BYTES_MAX
from securifile.protocol.sniff import tls_only
from securifile.protocol.tls import CurrentCredentials, identify, tls_connector, tls_factory, uri_of
from securifile.protocol.tls_layer import WAIT_MS, Lane
from securifile.protocol.transport import ControlAndBulkFactory
from securifile.workers import ThreadWorker
from tests.protocol.certs import credentials
from tests.protocol.cluster import N1, N2

A = AttemptId(b"a" * 16)
FILE = EntryId(b"f" * 16)
PIECE = 256 * 1024
WHOLE = b"".join(number.to_bytes(4, "big") for number in range(3_000_000))


REQUEST = StoreBlob(attempt=A, file=FILE, version=1, algorithm=DigestAlgorithm.SHA256, size=len(WHOLE), vouched=True)


class FakeLane:
    """Gives pieces, as a `BodyLane` does, and takes them, as an `OutgoingLane` does."""

    def __init__(self, pieces: list[bytes], *, room: int = 1 << 40, gone_after: int = 1 << 40) -> None:
        self.pieces = pieces
        self.taken = b""
        self.room = room
        self.gone_after = gone_after
        self.closed = False

    def receive(self, bytes_max: int) -> memoryview:
        if self.closed:
            raise StreamBroken("taken back")
        if not self.pieces:
            return memoryview(b"")
        piece = self.pieces.pop(0)
        if len(piece) > bytes_max:
            self.pieces.insert(0, piece[bytes_max:])
        return memoryview(piece)[:bytes_max]

    def take(self, piece: memoryview) -> bool:
        if len(self.taken) + len(piece) > self.gone_after:
            raise StreamBroken("taken back")
        self.taken += piece
        return self.is_clear()

    def is_clear(self) -> bool:
        return len(self.taken) < self.room

    def close(self) -> None:
        self.closed = True


def through(burst: Burst) -> bytes:
    """All that comes out of it."""
    return b"".join(iter(lambda: bytes(burst.receive()), b""))


def test_every_receiver_gets_every_piece() -> None:
    """The replicas, the digests that the client asked for, and whoever writes."""
    one, other, hasher = FakeLane([]), FakeLane([]), hashlib.sha512()
    burst = Burst(FakeLane([b"ab", b"c", b"def"]), [one, other], [hasher])
    assert through(burst) == one.taken == other.taken == b"abcdef"
    assert (burst.received, burst.broken) == (6, [])
    assert hasher.digest() == hashlib.sha512(b"abcdef").digest()


def test_a_burst_is_bounded() -> None:
    """After some mebibytes others get their turn, if they wait for it, and else the reactor, however much there is."""
    source = FakeLane([bytes(PIECE)] * 200)
    burst = Burst(source, [], [], 0, lambda: True)
    assert len(through(burst)) == burst.received == BURST_BYTES
    assert len(through(Burst(source, [], []))) == BURST_BYTES_MAX


def test_a_burst_makes_way_for_others() -> None:
    """When others begin to wait it goes on to the next place where bursts end, and no further."""
    waiting = iter([False, False, True])
    burst = Burst(FakeLane([bytes(PIECE)] * 200), [], [], 1000, lambda: next(waiting))
    assert len(through(burst)) == 3 * BURST_BYTES - 1000


def test_bursts_end_at_the_same_places_of_a_blob() -> None:
    """Wherever they begin, the origin's and the replicas': else a replica's thread would wait for what comes only with the next burst."""
    source = FakeLane([bytes(PIECE)] * 100)
    assert len(through(Burst(source, [], [], 3 * BURST_BYTES + 1000, lambda: True))) == BURST_BYTES - 1000
    assert len(through(Burst(source, [], [], 4 * BURST_BYTES, lambda: True))) == BURST_BYTES
    source = FakeLane([bytes(PIECE)] * 200)
    assert len(through(Burst(source, [], [], 1000))) == BURST_BYTES_MAX - 1000


def test_a_receiver_without_room_ends_the_burst() -> None:
    """What it took it has; nothing is received that it would miss."""
    source, slow = FakeLane([b"ab", b"cd", b"ef"]), FakeLane([], room=3)
    assert through(Burst(source, [slow, FakeLane([])], [])) == slow.taken == b"abcd"
    assert source.pieces == [b"ef"]


def test_a_receiver_that_is_gone_does_not_end_it() -> None:
    """The others go on, and who missed something is named."""
    gone, other = FakeLane([], gone_after=3), FakeLane([])
    burst = Burst(FakeLane([b"ab", b"cd", b"ef"]), [gone, other], [])
    assert through(burst) == other.taken == b"abcdef"
    assert burst.broken == [gone]


def test_a_source_that_is_taken_back_ends_it() -> None:
    """Why, is told to who reads next."""
    source = FakeLane([b"ab"])
    source.close()
    assert through(Burst(source, [], [])) == b""


class Below:
    """As `tls_layer.Lane`: what another server says next."""

    def __init__(self, said: bytes) -> None:
        self.turn = nullcontext()
        self.patient: list[bool] = []
        self._said = said

    def check_open(self) -> None:
        pass

    def receive(self, count: int, *, patient: bool) -> memoryview:
        self.patient.append(patient)
        piece, self._said = self._said[:count], self._said[count:]
        return memoryview(piece)


def test_a_server_is_waited_for_in_the_middle_of_a_burst() -> None:
    """Not before its first byte: nobody knows when it has its next one."""
    sender, receiver = Connection(Side.CLIENT, N2, Purpose.BULK), Connection(Side.SERVER, N1)
    receiver.receive(sender.hello())
    sender.receive(receiver.accept())
    receiver.receive(sender.request(REQUEST)[1])
    below = Below(sender.data(b"abc") + sender.data(b"defg"))
    wire: Any = SimpleNamespace(connection=receiver)
    lane = IncomingLane(wire, cast(Lane, below))
    assert [bytes(lane.receive(most)) for most in (100, 2, 100, 100)] == [b"abc", b"de", b"fg", b""]
    # Headers and contents take turns; a header that does not come is the last.
    assert below.patient[:2] == [False, False]
    assert all(below.patient[2:])


@attrs.define
class Body:
    """A request's body that comes by lanes, after its first piece. It is its own lane."""

    rest: bytes
    poured: int = 0
    piece: int = PIECE
    """What it gives at once."""

    def read(self) -> Deferred[bytes]:
        data, self.rest = self.rest[:1000], self.rest[1000:]
        return succeed(data)

    def lane(self) -> Body | None:
        return self if self.rest else None

    def receive(self, bytes_max: int) -> memoryview:
        count = min(self.piece, bytes_max)
        data, self.rest = self.rest[:count], self.rest[count:]
        self.poured += len(data)
        return memoryview(data)

    def close(self) -> None:
        pass


@pytest.fixture
def worker() -> Iterator[ThreadWorker]:
    made = ThreadWorker(reactor, 4, "test")  # type: ignore[arg-type]
    yield made
    made.stop()


async def store_in(folder: Path, worker: ThreadWorker) -> DiskBlobs:
    blobs = DiskBlobs(directory=str(folder / "store"), worker=worker, clock=reactor, reserve_bytes=0)  # type: ignore[arg-type]
    await blobs.recover()
    return blobs


@pytest_twisted.ensureDeferred
async def test_what_was_poured_is_there(tmp_path: Path, worker: ThreadWorker) -> None:
    """Bytes written and bytes poured make one blob, whose blocks and digest are right; and nothing is poured into one that ended."""
    blobs = await store_in(tmp_path, worker)
    writer = await blobs.begin(A, DigestAlgorithm.SHA256)
    await writer.write(WHOLE[:1000])
    pieces = iter([memoryview(WHOLE[1000:300_000]), memoryview(WHOLE[300_000:300_001]), memoryview(b"")])
    await writer.pour(lambda: next(pieces))
    assert writer.received == 300_001
    await writer.write(WHOLE[300_001:])
    summary = await writer.finish(FILE, 1)
    assert summary.digest == hashlib.sha256(WHOLE).digest()
    reader = await blobs.open(A)
    source = reader.source(0, len(WHOLE))
    came = b""
    while data := await source.read():
        came += data
    reader.close()
    assert came == WHOLE
    with pytest.raises(StreamBroken):
        await writer.pour(lambda: memoryview(b"more"))


@pytest_twisted.ensureDeferred
async def test_few_threads_take_uploads_in_at_once(tmp_path: Path, worker: ThreadWorker) -> None:
    """The others wait for their turn, and every one gets it."""
    blobs = await store_in(tmp_path, worker)
    writers = [await blobs.begin(AttemptId(bytes([number]) * 16), DigestAlgorithm.SHA256) for number in range(8)]
    inside: list[int] = []
    most: list[int] = []
    waited: list[bool] = []

    def slow(number: int, pieces: list[bytes]) -> memoryview:
        if number not in inside:
            inside.append(number)
        most.append(len(inside))
        waited.append(writers[number].others_wait())
        piece = pieces.pop(0) if pieces else b""
        if not piece:
            inside.remove(number)
        return memoryview(piece)

    pours = [writer.pour(partial(slow, number, [bytes(PIECE)] * 8)) for number, writer in enumerate(writers)]
    await gatherResults(pours)
    assert max(most) <= POURING_MAX
    assert any(waited)
    assert not writers[0].others_wait()
    assert [writer.received for writer in writers] == [8 * PIECE] * 8
    for writer in writers:
        await writer.abandon()


@pytest_twisted.ensureDeferred
async def test_a_source_that_fails_gives_the_blob_up(tmp_path: Path, worker: ThreadWorker) -> None:
    """An error within a burst is the writer's, as one of the disk is: it is told, and nothing stays."""
    blobs = await store_in(tmp_path, worker)
    writer = await blobs.begin(A, DigestAlgorithm.SHA256)

    def fail() -> memoryview:
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        await writer.pour(fail)
    with pytest.raises(OSError, match="the disk"):
        await writer.finish(FILE, 1)
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_without_a_lane_nothing_is_taken(tmp_path: Path, worker: ThreadWorker) -> None:
    """Of a source or to a receiver that has none; and those that were made are closed."""
    writer = await (await store_in(tmp_path, worker)).begin(A, DigestAlgorithm.SHA256)
    receiver = FakeLane([])
    assert await take_in(object(), writer, [receiver]) is None
    assert receiver.closed
    assert await take_in(Body(rest=b"x"), writer, [None]) is None
    assert await take_in(Body(rest=b""), writer, []) is None
    assert await take_in(Body(rest=b"x"), object(), []) is None
    await writer.abandon()


@attrs.define
class Pausing(Body):
    """One whose sender makes a pause after each piece."""

    pauses: int = 0

    def receive(self, bytes_max: int) -> memoryview:
        return memoryview(b"") if self.poured > self.pauses * PIECE else super().receive(bytes_max)

    def ready(self) -> Deferred[None]:
        self.pauses += 1
        return succeed(None)


@pytest_twisted.ensureDeferred
async def test_what_comes_after_a_pause_is_taken_by_a_thread(tmp_path: Path, worker: ThreadWorker) -> None:
    """The reactor is told that something has come, and reads none of it, until there is nothing that a thread can take."""
    writer = await (await store_in(tmp_path, worker)).begin(A, DigestAlgorithm.SHA256)
    body = Pausing(rest=WHOLE[: 3 * PIECE])
    await take_in_bursts(body, writer)
    assert (writer.received, body.pauses, body.rest) == (3 * PIECE, 3, b"")
    await writer.abandon()


@attrs.define
class Replica:
    """n1, which takes blobs of peers."""

    blobs: DiskBlobs
    pool: BulkPool
    factory: ControlAndBulkFactory
    suspected: list[tuple[AttemptId, str]]

    async def digest(self) -> bytes:
        """Of its copy."""
        return (await self.blobs.sidecar(A)).digest


@asynccontextmanager
async def replica(folder: Path, worker: ThreadWorker, features: frozenset[str] = FEATURES) -> AsyncIterator[Replica]:
    """A replica that listens on loopback with TLS."""
    blobs = await store_in(folder / "replica", worker)
    staged: Any = None
    suspected: list[tuple[AttemptId, str]] = []
    factory = ControlAndBulkFactory(
        clock=reactor,  # type: ignore[arg-type]
        here=N1,
        is_member=lambda identity: True,
        handlers={},
        bulk=PeerBlobs(blobs, staged, lambda attempt, why: suspected.append((attempt, why))),
        identify=identify,
        features=features,
    )
    outer = tls_only(tls_factory(reactor, CurrentCredentials(credentials(uri_of(N1))), factory))
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(outer)
    pool = BulkPool(
        clock=reactor,  # type: ignore[arg-type]
        connector=tls_connector(reactor, CurrentCredentials(credentials(uri_of(N2)))),
        identify=identify,
        here=N2,
        locate=lambda name: (HostPort("127.0.0.1", port.getHost().port), N1),
    )
    try:
        yield Replica(blobs, pool, factory, suspected)
    finally:
        await pool.stop()
        await factory.close_all()
        await port.stopListening()


async def upload(body: Body, to: Replica, origin: DiskBlobs) -> bool:
    """As `Uploads` does; whether the replica has its copy."""
    writer = await origin.begin(A, DigestAlgorithm.SHA256)
    fanout = Fanout(
        clock=reactor,  # type: ignore[arg-type]
        pool=to.pool,
        is_available=lambda name: True,
        request=REQUEST,
        writer=writer,
        replacement=lambda tried: None,
    )
    await fanout.begin(["n1"])
    while data := await body.read():
        await fanout.write(data)
        while await fanout.pour(body):
            pass
    [copy] = await fanout.finish(await writer.finish(FILE, 1))
    return copy.durable


@pytest.mark.parametrize("piece", [DATA_BYTES_MAX, DATA_BYTES_MAX + 1, PIECE_BYTES_MAX])
@pytest_twisted.ensureDeferred
async def test_an_upload_through_threads_reaches_the_replica(tmp_path: Path, worker: ThreadWorker, piece: int) -> None:
    """By TLS: nearly all is sent by a thread and taken by one, whether a piece fits into a frame or not; both copies are whole, and the
    connection is used again.
    """
    async with replica(tmp_path, worker) as n1:
        origin = await store_in(tmp_path / "origin", worker)
        body = Body(rest=WHOLE, piece=piece)
        assert await upload(body, n1, origin)
        assert body.poured > 0.9 * len(WHOLE)
        assert await n1.digest() == hashlib.sha256(WHOLE).digest() == (await origin.sidecar(A)).digest
        assert n1.pool.idle == 1


@pytest_twisted.ensureDeferred
async def test_an_upload_to_a_replica_of_the_release_before(tmp_path: Path, worker: ThreadWorker) -> None:
    """It is not told the digest, and computes it."""
    async with replica(tmp_path, worker, FEATURES - {VOUCHED}) as n1:
        origin = await store_in(tmp_path / "origin", worker)
        assert await upload(Body(rest=WHOLE), n1, origin)
        assert await n1.digest() == hashlib.sha256(WHOLE).digest()


@pytest_twisted.ensureDeferred
async def test_a_replica_keeps_nothing_else_than_what_was_sent(tmp_path: Path, worker: ThreadWorker) -> None:
    """A sender that sent other bytes than it vouches for is refused, and so is one that vouches for nothing."""
    sent = BlobSent(size=len(WHOLE), digest=hashlib.sha256(WHOLE).digest(), checksum=b"c" * 32)
    async with replica(tmp_path, worker) as n1:
        for vouched in (sent, None):
            transfer = await n1.pool.store("n1", REQUEST)
            await transfer.write(WHOLE)
            with pytest.raises(Refusal):
                await transfer.finish(5, vouched)
            assert await n1.blobs.sidecars() == []


@pytest_twisted.ensureDeferred
async def test_a_replica_that_refuses_in_a_burst_is_lost_alone(tmp_path: Path, worker: ThreadWorker) -> None:
    """It says no while a thread sends to it; the origin's own copy is whole."""
    async with replica(tmp_path, worker) as n1:
        origin = await store_in(tmp_path / "origin", worker)
        taken = await n1.blobs.begin(A, DigestAlgorithm.SHA256)
        with pytest.raises(Refusal):
            await (await n1.pool.store("n1", REQUEST)).finish(5)
        assert not await upload(Body(rest=WHOLE), n1, origin)
        assert (await origin.sidecar(A)).digest == hashlib.sha256(WHOLE).digest()
        await taken.abandon()


@pytest_twisted.ensureDeferred
async def test_pieces_that_arrive_together_stay_in_order(tmp_path: Path, worker: ThreadWorker) -> None:
    """Who waits for a piece in the reactor's thread gets those that arrived with it before a thread receives what comes behind them."""
    async with replica(tmp_path, worker) as n1:
        transfer = await n1.pool.store("n1", attrs.evolve(REQUEST, vouched=False))
        pieces = [WHOLE[start : start + 10_007] for start in range(0, len(WHOLE), 10_007)]
        for first in range(0, len(pieces), 30):
            await gatherResults([transfer.write(piece) for piece in pieces[first : first + 30]])
            # A pause in which a lane's thread gives up waiting.
            await deferLater(reactor, 5 * WAIT_MS / 1000)  # type: ignore[arg-type]
        stored = await transfer.finish(5)
        assert (stored.size, stored.digest) == (len(WHOLE), hashlib.sha256(WHOLE).digest())


class ClientLane:
    """As a `Lane` to a client, who goes after so many bytes."""

    def __init__(self, gone_after: int = 1 << 40) -> None:
        self.got = b""
        self._gone_after = gone_after

    @property
    def taken(self) -> int:
        return len(self.got)

    def take(self, piece: memoryview) -> bool:
        if self.taken + len(piece) > self._gone_after:
            raise StreamBroken("taken back")
        self.got += piece
        return True

    def close(self) -> int:
        return self.taken


@attrs.define
class Holding:
    """Sources of n2, which relays what n1 has."""

    sources: Sources
    version: Version


async def relaying(to: Replica, worker: ThreadWorker) -> Holding:
    """n1 gets the blob."""
    writer = await to.blobs.begin(A, DigestAlgorithm.SHA256)
    await writer.write(WHOLE)
    summary = await writer.finish(FILE, 1)
    version = Version(
        number=1,
        attempt=A,
        size=len(WHOLE),
        digest=summary.digest,
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )
    none_here = SimpleNamespace(worker=worker)
    sources = Sources(clock=reactor, name="n2", blobs=none_here, pool=to.pool, rotten=lambda version, why: None)  # type: ignore[arg-type]
    return Holding(sources, version)


async def relayed(source: Any, lanes: Iterator[ClientLane]) -> tuple[bytes, int]:
    """All of it, as `Delivery` sends it, and how much of that came by lanes."""
    got, by_lanes = b"", 0
    while data := await source.read():
        got += data
        taken = 1
        while taken:
            lane = next(lanes)
            taken = await source.pour(lane)
            got += lane.got
            by_lanes += taken
    return got, by_lanes


@pytest_twisted.ensureDeferred
async def test_a_blob_is_relayed_by_threads(tmp_path: Path, worker: ThreadWorker) -> None:
    """The holder's thread gives it, another one passes it on: every byte once, in order; and the connection is used again."""
    async with replica(tmp_path, worker) as n1:
        holding = await relaying(n1, worker)
        for start, stop in ((0, len(WHOLE)), (1_000_001, 9_000_000)):
            source = holding.sources.open(holding.version, ["n1"], start, stop)
            got, by_lanes = await relayed(source, iter(ClientLane, None))
            assert got == WHOLE[start:stop]
            assert by_lanes > 0.5 * len(got)
            source.close()
        assert n1.pool.idle == 1


@pytest_twisted.ensureDeferred
async def test_what_was_lost_on_the_way_is_fetched_again(tmp_path: Path, worker: ThreadWorker) -> None:
    """A piece that was received and could not be passed on leaves no gap: the next holder goes on where the client is."""
    async with replica(tmp_path, worker) as n1:
        holding = await relaying(n1, worker)
        source = holding.sources.open(holding.version, ["n1", "n1"], 0, len(WHOLE))
        got, _ = await relayed(source, chain([ClientLane(2_000_000)], iter(ClientLane, None)))
        assert got == WHOLE
        assert source.tried == ["n1", "n1"]
        source.close()


@pytest_twisted.ensureDeferred
async def test_a_bad_block_ends_what_is_given_by_threads(tmp_path: Path, worker: ThreadWorker) -> None:
    """Every byte before it is good, none of it comes, and the holder suspects its blob."""
    async with replica(tmp_path, worker) as n1:
        holding = await relaying(n1, worker)
        [path] = [path for path in (tmp_path / "replica" / "store" / "blobs").glob("*/*") if path.suffix != ".meta"]
        with path.open("r+b") as file:
            file.seek(20 * PIECE + 5)
            file.write(b"rotten")
        source = holding.sources.open(holding.version, ["n1"], 0, len(WHOLE))
        lanes: list[ClientLane] = []
        first = await source.read()
        with pytest.raises(Refusal):
            while True:
                lanes.append(ClientLane())
                if not await source.pour(lanes[-1]):
                    lanes.append(ClientLane())
                    lanes[-1].got = await source.read()
        assert first + b"".join(lane.got for lane in lanes) == WHOLE[: 20 * PIECE]
        assert [attempt for attempt, _ in n1.suspected] == [A]

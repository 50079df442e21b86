"""Blobs between two servers on a network in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import WHOLE_BYTES_MAX, WholeBlob
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal, StreamBroken
from securifile.model.ids import AttemptId, EntryId
from securifile.model.interfaces import IByteSink, IByteSource
from securifile.model.staged import StagedUpload
from securifile.protocol.bulk import BulkPool, OutgoingTransfer
from securifile.protocol.connection import FEATURES, VOUCHED, WHOLE, PeerIdentity
from securifile.protocol.messages import AppendBlob, BlobAppended, BlobFollows, BlobSent, BlobStored, FetchBlob, StoreBlob
from securifile.protocol.streams import UNREAD_BYTES_MAX, Incoming
from securifile.protocol.wire import Traffic
from tests.protocol.cluster import N1, Rig

ATTEMPT = AttemptId(b"a" * 16)
STORE = StoreBlob(attempt=ATTEMPT, file=EntryId(b"f" * 16), version=1, algorithm=DigestAlgorithm.SHA256, size=None)
APPEND = AppendBlob(
    upload=StagedUpload(
        attempt=ATTEMPT, person="alice", path="alice/x", file=EntryId(b"f" * 16), algorithm=DigestAlgorithm.SHA256, created_at=0.0
    ),
    offset=5,
)
SENT = BlobSent(size=3, digest=b"d", checksum=b"c")
MIB = 1024 * 1024


@implementer(IByteSource)
class Source:
    """Chunks, then an end or an exception."""

    def __init__(self, chunks: list[bytes], problem: Exception | None = None) -> None:
        self.chunks = chunks
        self.problem = problem
        self.closed = False
        self.reads = 0

    def read(self) -> Deferred[bytes]:
        self.reads += 1
        if self.chunks:
            return succeed(self.chunks.pop(0))
        if self.problem is not None:
            deferred: Deferred[bytes] = Deferred()
            deferred.errback(self.problem)
            return deferred
        return succeed(b"")

    def close(self) -> None:
        self.closed = True


@attrs.define
class Blobs:
    """What a server does with bulk requests, to look at."""

    stored: list[bytes] = attrs.field(factory=list)
    groups: list[int] = attrs.field(factory=list)
    """How many whole blobs came together."""
    broken: list[Exception] = attrs.field(factory=list)
    source: Any = None
    refuse: Exception | None = None
    refuse_after: int | None = None
    vouched: list[bool] = attrs.field(factory=list)
    """Of each blob that was streamed, whether its sender tells its digest, and what it said at the end."""
    sent: list[Any] = attrs.field(factory=list)
    before_answer: Deferred[None] | None = None
    go_on: Deferred[None] | None = None

    async def store(self, peer: PeerIdentity, request: StoreBlob, source: Any) -> BlobStored:
        if self.refuse is not None and self.refuse_after is None:
            raise self.refuse
        data = bytearray()
        try:
            while chunk := await source.read():
                data += chunk
                if self.go_on is not None:
                    await self.go_on
                if self.refuse is not None and self.refuse_after is not None and len(data) >= self.refuse_after:
                    raise self.refuse
        except StreamBroken as error:
            self.broken.append(error)
            raise
        if self.before_answer is not None:
            await self.before_answer
        self.stored.append(bytes(data))
        self.vouched.append(request.vouched)
        self.sent.append(source.sent)
        return BlobStored(size=len(data), digest=hashlib.sha256(data).digest())

    async def append(self, peer: PeerIdentity, request: AppendBlob, source: Any) -> BlobAppended:
        data = bytearray()
        try:
            while chunk := await source.read():
                data += chunk
        finally:
            self.stored.append(bytes(data))
        return BlobAppended(offset=request.offset + len(data))

    async def store_all(self, peer: PeerIdentity, blobs: Sequence[WholeBlob]) -> Sequence[BlobStored | Exception]:
        if self.refuse is not None:
            raise self.refuse
        self.groups.append(len(blobs))
        if self.before_answer is not None:
            await self.before_answer
        self.stored += [blob.data for blob in blobs]
        return [
            Refusal(Code.EXISTS, "it is here") if blob.data == b"twice" else BlobStored(size=len(blob.data), digest=blob.data[:32])
            for blob in blobs
        ]

    async def fetch(self, peer: PeerIdentity, request: FetchBlob) -> tuple[BlobFollows, Any]:
        if self.refuse is not None:
            raise self.refuse
        if self.before_answer is not None:
            await self.before_answer
        return BlobFollows(size=1000), self.source


@pytest.fixture
def rig() -> Rig:
    return Rig()


def start(rig: Rig, blobs: Any, **options: Any) -> BulkPool:
    rig.serve(bulk=blobs)
    return rig.pool(**options)


def begin(rig: Rig, pool: BulkPool) -> OutgoingTransfer:
    return rig.result(pool.store("n1", STORE))


def whole(data: bytes) -> WholeBlob:
    return WholeBlob(attempt=ATTEMPT, file=EntryId(b"f" * 16), version=1, algorithm=DigestAlgorithm.SHA256, data=data)


async def _read_all(source: Any) -> bytes:
    data = bytearray()
    while chunk := await source.read():
        data += chunk
    return bytes(data)


async def _write_all(transfer: OutgoingTransfer, chunks: list[bytes]) -> BlobStored:
    for chunk in chunks:
        await transfer.write(chunk)
    return await transfer.finish(60)


async def _fetch_all(pool: BulkPool) -> tuple[BlobFollows, bytes]:
    follows, source = await pool.fetch("n1", FetchBlob(attempt=ATTEMPT), 5)
    return follows, await _read_all(source)


def test_store(rig: Rig) -> None:
    """What is written arrives, in frames of any size, and the answer comes after the end."""
    blobs = Blobs()
    pool = start(rig, blobs)
    transfer = begin(rig, pool)
    assert verifyObject(IByteSink, transfer)
    data = bytes(range(256)) * 4096 * 3
    stored = rig.result(_write_all(transfer, [data, b"x", b"", data]), steps=1000)
    assert stored == BlobStored(size=len(data) * 2 + 1, digest=hashlib.sha256(data + b"x" + data).digest())
    assert blobs.stored == [data + b"x" + data]


def test_empty_blob(rig: Rig) -> None:
    """A blob may be empty."""
    blobs = Blobs()
    assert rig.result(begin(rig, start(rig, blobs)).finish(5)).size == 0
    assert blobs.stored == [b""]


@pytest.mark.parametrize("features", [FEATURES, FEATURES - {VOUCHED}], ids=["this release", "the release before"])
def test_what_was_sent_is_said_at_the_end(rig: Rig, features: frozenset[str]) -> None:
    """To a server that relies on it; one of the release before is not told, and is not asked to."""
    blobs = Blobs()
    rig.serve(bulk=blobs, features=features)
    transfer = rig.result(rig.pool().store("n1", attrs.evolve(STORE, vouched=True)))
    rig.result(transfer.write(b"abc"))
    rig.result(transfer.finish(5, SENT))
    known = VOUCHED in features
    assert (blobs.stored, blobs.vouched, blobs.sent) == ([b"abc"], [known], [SENT if known else None])


def test_whole_blobs_go_together(rig: Rig) -> None:
    """What comes in one turn is one message, and what comes meanwhile the next, over one connection; each hears its own end."""
    blobs = Blobs(before_answer=Deferred())
    pool = start(rig, blobs)
    contents = (b"a", b"", b"twice", b"d" * WHOLE_BYTES_MAX)
    waiting = [pool.store_whole("n1", whole(data)) for data in contents[:2]]
    rig.settle()
    waiting += [pool.store_whole("n1", whole(data)) for data in contents[2:]]
    rig.settle()
    assert blobs.groups == [2]
    assert blobs.before_answer is not None
    blobs.before_answer.callback(None)
    rig.settle()
    assert blobs.groups == [2, 2]
    assert blobs.stored == list(contents)
    assert [rig.result(waiting[number]).size for number in (0, 1, 3)] == [1, 0, WHOLE_BYTES_MAX]
    with pytest.raises(Refusal, match="it is here"):
        rig.result(waiting[2])
    assert (pool.idle, len(rig.network.transports("n2"))) == (1, 1)
    assert len(rig.clock.getDelayedCalls()) == 1, "the idle connection's"


def test_whole_blobs_for_the_release_before(rig: Rig) -> None:
    """A server that does not know such messages is given one stream after the other."""
    blobs = Blobs()
    rig.serve(bulk=blobs, features=FEATURES - {WHOLE})
    pool = rig.pool()
    waiting = [pool.store_whole("n1", whole(data)) for data in (b"a", b"", b"c" * WHOLE_BYTES_MAX)]
    rig.settle()
    assert [rig.result(one).digest for one in waiting] == [hashlib.sha256(data).digest() for data in blobs.stored]
    assert (blobs.groups, len(blobs.stored)) == ([], 3)
    blobs.refuse = Refusal(Code.DISK_FULL, "no room")
    waiting = [pool.store_whole("n1", whole(data)) for data in (b"d", b"e")]
    rig.settle()
    for one in waiting:
        with pytest.raises(Refusal, match="no room"):
            rig.result(one)
    assert len(rig.network.transports("n2")) == 1


def test_whole_blobs_that_are_refused_all(rig: Rig) -> None:
    """Each hears of it, and the connection serves the next."""
    blobs = Blobs(refuse=Refusal(Code.DISK_FULL, "no room"))
    pool = start(rig, blobs)
    waiting = [pool.store_whole("n1", whole(data)) for data in (b"a", b"b", b"c")]
    rig.settle()
    for one in waiting:
        with pytest.raises(Refusal, match="no room"):
            rig.result(one)
    blobs.refuse = None
    assert rig.result(pool.store_whole("n1", whole(b"a"))).size == 1
    assert len(rig.network.transports("n2")) == 1


@pytest.mark.parametrize("host", ["n1", "n2"])
def test_whole_blobs_on_a_lost_connection(rig: Rig, host: str) -> None:
    """Those that are on their way may be stored there or not: they fail. The next ones connect anew. What was begun there goes on."""
    disk: Deferred[None] = Deferred()
    blobs = Blobs(before_answer=disk)
    pool = start(rig, blobs)
    waiting = pool.store_whole("n1", whole(b"a"))
    rig.settle()
    for transport in rig.network.transports(host):
        transport.abortConnection()
    rig.settle()
    with pytest.raises(StreamBroken):
        rig.result(waiting)
    blobs.before_answer = None
    assert rig.result(pool.store_whole("n1", whole(b"b"))).size == 1
    disk.callback(None)
    assert blobs.stored == [b"b", b"a"]


def test_whole_blobs_for_a_server_that_hangs(rig: Rig) -> None:
    """Nobody waits for ever. When nobody waits any more for what is on its way, the connection is cut, and the next ones get another."""
    blobs = Blobs(before_answer=Deferred())
    pool = start(rig, blobs)
    late = pool.store_whole("n1", whole(b"a"))
    rig.settle(59)
    assert not late.called
    rig.settle(4)
    with pytest.raises(DeadlineExceeded):
        rig.result(late)
    blobs.before_answer = Deferred()
    unwanted = pool.store_whole("n1", whole(b"b"))
    rig.settle()
    unwanted.addErrback(lambda failure: failure.trap(CancelledError))
    unwanted.cancel()
    rig.settle()
    assert rig.network.transports("n2") == []
    blobs.before_answer = None
    assert rig.result(pool.store_whole("n1", whole(b"c"))).size == 1


def test_fetch(rig: Rig) -> None:
    """What the server's source gives arrives, and then the end."""
    chunks = [b"a" * MIB, b"b", b"c" * 300_000]
    blobs = Blobs(source=Source(list(chunks)))
    follows, data = rig.result(_fetch_all(start(rig, blobs)), steps=1000)
    assert (follows, data) == (BlobFollows(size=1000), b"".join(chunks))
    assert blobs.source.closed


def test_bytes_are_counted(rig: Rig) -> None:
    """Both ends count what went over a connection, by its purpose: the contents, and little beside them."""
    blobs = Blobs(source=Source([b"y" * MIB]))
    mine = Traffic()
    pool = start(rig, blobs, traffic=mine)
    rig.result(_write_all(begin(rig, pool), [b"x" * MIB, b"x" * MIB]), steps=1000)
    rig.result(_fetch_all(pool), steps=1000)
    theirs = rig.traffic
    assert (mine.sent, mine.received) == (theirs.received, theirs.sent)
    assert 2 * MIB < mine.metrics["bulk_sent_bytes_total"] < 2.01 * MIB
    assert MIB < mine.metrics["bulk_received_bytes_total"] < 1.01 * MIB
    assert mine.metrics["control_sent_bytes_total"] == mine.metrics["control_received_bytes_total"] == 0


def test_connections_are_kept(rig: Rig) -> None:
    """Finished and refused transfers leave their connection to the next one; idle ones are closed after a while."""
    blobs = Blobs()
    pool = start(rig, blobs, idle_s=30)
    for _ in range(3):
        assert rig.result(_write_all(begin(rig, pool), [b"x"])).size == 1
        blobs.source = Source([b"y"])
        assert rig.result(_fetch_all(pool))[1] == b"y"
    blobs.refuse = Refusal(Code.NOT_FOUND, "no such blob")
    with pytest.raises(Refusal):
        rig.result(_fetch_all(pool))
    with pytest.raises(Refusal):
        rig.result(_write_all(begin(rig, pool), [b"x" * MIB]))
    rig.settle()
    assert (len(rig.network.transports("n2")), pool.idle) == (1, 1)
    rig.settle(31)
    assert (len(rig.network.transports("n2")), pool.idle) == (0, 0)
    assert rig.clock.getDelayedCalls() == []


def test_several_at_once(rig: Rig) -> None:
    """Transfers at the same time have connections of their own; only some are kept."""
    blobs = Blobs()
    pool = start(rig, blobs, idle_max=2)
    transfers = [begin(rig, pool) for _ in range(5)]
    for transfer in transfers:
        assert rig.result(_write_all(transfer, [b"x"])).size == 1
    rig.settle()
    assert (pool.idle, len(rig.network.transports("n2"))) == (2, 2)


def test_early_refusal(rig: Rig) -> None:
    """A refusal in mid-stream fails the next write or the finish; the connection serves the next transfer."""
    blobs = Blobs(refuse=Refusal(Code.DISK_FULL, "no room", free=3), refuse_after=100)
    pool = start(rig, blobs)
    transfer = begin(rig, pool)
    rig.result(transfer.write(b"x" * 200))
    rig.settle()
    with pytest.raises(Refusal) as caught:
        rig.result(transfer.write(b"y"))
    assert (caught.value.code, caught.value.evidence) == (Code.DISK_FULL, {"free": 3})
    with pytest.raises(Refusal):
        rig.result(transfer.finish(5))
    blobs.refuse = None
    assert rig.result(_write_all(begin(rig, pool), [b"x"])).size == 1
    assert len(rig.network.transports("n2")) == 1


def test_refusal_crosses_the_end(rig: Rig) -> None:
    """A refusal that crosses our data and our end on the way is the answer."""
    blobs = Blobs(refuse=Refusal(Code.DISK_FULL, "no room"), refuse_after=1)
    pool = start(rig, blobs)
    transfer = begin(rig, pool)
    transfer.write(b"x" * 10)
    finishing = transfer.finish(5)
    with pytest.raises(Refusal):
        rig.result(finishing)
    blobs.refuse = None
    assert rig.result(_write_all(begin(rig, pool), [b"x"])).size == 1


def test_abort(rig: Rig) -> None:
    """An aborted blob is broken at the receiver, never complete."""
    blobs = Blobs()
    transfer = begin(rig, start(rig, blobs))
    rig.result(transfer.write(b"x" * 10))
    rig.settle()
    transfer.abort()
    with pytest.raises(StreamBroken):
        rig.result(transfer.write(b"y"))
    rig.settle(3)
    assert blobs.stored == []
    assert len(blobs.broken) == 1
    assert rig.network.transports("n1") == []
    assert rig.clock.getDelayedCalls() == []


@pytest.mark.parametrize("host", ["n1", "n2"])
def test_lost(rig: Rig, host: str) -> None:
    """A lost connection breaks the stream at both ends."""
    blobs = Blobs()
    transfer = begin(rig, start(rig, blobs))
    rig.result(transfer.write(b"x" * 10))
    rig.settle()
    rig.network.crash(host)
    rig.settle()
    with pytest.raises(StreamBroken):
        rig.result(transfer.write(b"y"))
    with pytest.raises(StreamBroken):
        rig.result(transfer.finish(5))
    assert (blobs.stored, len(blobs.broken)) == ([], 1)


def test_source_breaks(rig: Rig) -> None:
    """When the server's source breaks in mid-stream, so does the reader's, after what came before; it is no end."""
    blobs = Blobs(source=Source([b"good"], OSError("rot")))
    pool = start(rig, blobs)
    _, source = rig.result(pool.fetch("n1", FetchBlob(attempt=ATTEMPT), 5))
    rig.settle()
    assert verifyObject(IByteSource, source)
    assert rig.result(source.read()) == b"good"
    with pytest.raises(StreamBroken, match="OSError"):
        rig.result(source.read())
    assert blobs.source.closed


def test_reader_closes_early(rig: Rig) -> None:
    """Closing the source early closes the connection, and the server's source."""
    blobs = Blobs(source=Source([b"x" * MIB] * 20))
    pool = start(rig, blobs)
    _, source = rig.result(pool.fetch("n1", FetchBlob(attempt=ATTEMPT), 5))
    rig.result(source.read())
    source.close()
    rig.settle()
    assert blobs.source.closed
    assert rig.network.transports("n1") == []
    with pytest.raises(StreamBroken):
        rig.result(source.read())


def test_slow_writer_waits(rig: Rig) -> None:
    """While the receiver does not consume, the sender waits, and what is under way is bounded."""
    blobs = Blobs(go_on=Deferred())
    transfer = begin(rig, start(rig, blobs))
    written = 0
    while True:
        waiting = transfer.write(b"x" * 262144)
        written += 262144
        rig.settle()
        if not waiting.called:
            break
        assert written < 4 * MIB
    assert written <= UNREAD_BYTES_MAX + 5 * 262144
    assert blobs.go_on is not None
    blobs.go_on.callback(None)
    rig.settle()
    assert waiting.called
    assert rig.result(transfer.finish(5)).size == written


def test_slow_reader_is_waited_for(rig: Rig) -> None:
    """While the reader does not consume, the server's source is not read, and all is delivered in the end."""
    blobs = Blobs(source=Source([b"x" * 262144] * 100))
    _, source = rig.result(start(rig, blobs).fetch("n1", FetchBlob(attempt=ATTEMPT), 5))
    rig.settle()
    assert blobs.source.reads < 12
    assert cast(Any, source).unread_bytes <= UNREAD_BYTES_MAX + 262144
    rig.settle(20)
    assert len(rig.result(_read_all(source), steps=10_000)) == 100 * 262144


def test_unread_end_frees_the_connection(rig: Rig) -> None:
    """When all has arrived, the connection serves the next transfer, even before the reader has taken everything."""
    blobs = Blobs(source=Source([b"x" * 262144] * 4 + [b"y"]))
    pool = start(rig, blobs)
    _, first = rig.result(pool.fetch("n1", FetchBlob(attempt=ATTEMPT), 5))
    rig.settle()
    assert pool.idle == 1
    blobs.source = Source([b"z"])
    assert rig.result(_fetch_all(pool))[1] == b"z"
    assert len(rig.result(_read_all(first))) == MIB + 1
    assert len(rig.network.transports("n2")) == 1


def test_stalled_sender(rig: Rig) -> None:
    """A sender that sends nothing for the time allowed is broken off."""
    blobs = Blobs()
    transfer = begin(rig, start(rig, blobs))
    rig.result(transfer.write(b"x"))
    rig.settle(29)
    assert blobs.broken == []
    rig.settle(2)
    assert len(blobs.broken) == 1
    with pytest.raises(StreamBroken):
        rig.result(transfer.finish(5))


def test_stalled_receiver(rig: Rig) -> None:
    """A receiver that takes nothing for the time allowed is broken off."""
    blobs = Blobs(go_on=Deferred())
    transfer = begin(rig, start(rig, blobs))
    outcomes: list[Any] = []
    for _ in range(8):
        waiting = transfer.write(b"x" * 262144)
        rig.settle()
        if not waiting.called:
            break
    waiting.addBoth(outcomes.append)
    rig.settle(31)
    [outcome] = outcomes
    assert isinstance(outcome, Failure)
    assert outcome.check(StreamBroken)


def test_late_answers(rig: Rig) -> None:
    """An answer that takes too long is a `DeadlineExceeded`, and the connection is not used again."""
    blobs = Blobs(before_answer=Deferred())
    pool = start(rig, blobs)
    finishing = begin(rig, pool).finish(2)
    rig.settle(2.5)
    with pytest.raises(DeadlineExceeded):
        rig.result(finishing)
    blobs.before_answer = Deferred()
    fetching = Deferred.fromCoroutine(pool.fetch("n1", FetchBlob(attempt=ATTEMPT), 2))
    rig.settle(2.5)
    with pytest.raises(DeadlineExceeded):
        rig.result(fetching)
    rig.settle()
    assert (pool.idle, rig.network.transports("n2")) == (0, [])


def test_handler_that_does_not_finish_reading(rig: Rig) -> None:
    """A handler that answers before the end is a bug, answered as one."""

    @attrs.define
    class Hasty(Blobs):
        async def store(self, peer: PeerIdentity, request: StoreBlob, source: Any) -> BlobStored:
            await source.read()
            return BlobStored(size=1, digest=b"")

    transfer = begin(rig, start(rig, Hasty()))
    rig.result(transfer.write(b"x"))
    rig.settle()
    with pytest.raises(Refusal) as caught:
        rig.result(transfer.finish(1))
    assert caught.value.code is Code.BUG


def test_no_blobs_here(rig: Rig) -> None:
    """A server without blobs refuses bulk requests."""
    rig.serve(bulk=None)
    pool = rig.pool()
    with pytest.raises(Refusal):
        rig.result(_fetch_all(pool))
    with pytest.raises(Refusal):
        rig.result(_write_all(begin(rig, pool), [b"x"]))


def test_unreachable(rig: Rig) -> None:
    """Where nobody listens, or nobody gets through, `PeerUnreachable` comes within the time for connecting."""
    pool = rig.pool()
    with pytest.raises(PeerUnreachable):
        begin(rig, pool)
    rig.network.cut("n1", "n2")
    waiting = Deferred.fromCoroutine(pool.store("n1", STORE))
    rig.settle(5.1)
    with pytest.raises(PeerUnreachable):
        rig.result(waiting)


def test_not_a_member(rig: Rig) -> None:
    """A removed server cannot move blobs."""
    rig.members.clear()
    with pytest.raises(PeerUnreachable, match="not a member"):
        begin(rig, start(rig, Blobs()))


def test_idle_connection_that_died(rig: Rig) -> None:
    """An idle connection that was lost is not used again."""
    pool = start(rig, Blobs())
    rig.result(_write_all(begin(rig, pool), [b"x"]))
    rig.network.crash("n1")
    rig.settle()
    assert pool.idle == 0
    assert rig.result(_write_all(begin(rig, pool), [b"x"])).size == 1


def test_stop(rig: Rig) -> None:
    """Stopping breaks what is under way and closes everything."""
    blobs = Blobs()
    pool = start(rig, blobs)
    rig.result(_write_all(begin(rig, pool), [b"x"]))
    first, second = begin(rig, pool), begin(rig, pool)
    rig.result(pool.stop())
    rig.settle(3)
    for transfer in (first, second):
        with pytest.raises(StreamBroken):
            rig.result(transfer.write(b"x"))
    with pytest.raises(PeerUnreachable):
        begin(rig, pool)
    assert len(blobs.broken) == 2
    assert rig.clock.getDelayedCalls() == []


def test_a_part_of_an_upload_is_appended(rig: Rig) -> None:
    """The part arrives as a stream, the answer says how far the upload is, and the connection is good for the next transfer."""
    blobs = Blobs()
    pool = start(rig, blobs)
    for _ in range(2):
        transfer = rig.result(pool.append("n1", APPEND))
        assert rig.result(_write_all(transfer, [b"abc", b"x" * MIB])) == BlobAppended(offset=5 + 3 + MIB)
    assert blobs.stored == [b"abc" + b"x" * MIB] * 2
    assert pool.idle == 1


def test_a_part_that_is_broken_off_has_arrived_as_far_as_it_was_sent(rig: Rig) -> None:
    """What was written before the sender gave up reaches the receiver, who may keep it."""
    blobs = Blobs()
    transfer = rig.result(start(rig, blobs).append("n1", APPEND))
    rig.result(transfer.write(b"abc"))
    transfer.abort()
    rig.settle()
    assert blobs.stored == [b"abc"]


def test_nothing_is_appended_at_a_server_that_knows_no_resumable_uploads(rig: Rig) -> None:
    """A server of an earlier release is left alone, and its connection is kept for what it does know."""
    blobs = Blobs()
    rig.serve(bulk=blobs, features=frozenset())
    pool = rig.pool()
    with pytest.raises(PeerUnreachable):
        rig.result(pool.append("n1", APPEND))
    assert pool.idle == 1
    assert rig.result(_write_all(begin(rig, pool), [b"abc"])).size == 3


def test_a_stream_that_is_watched_for_may_stall_no_longer_than_one_that_is_read() -> None:
    """Whoever waits until something has come hears of its end, and after a while in which nothing came the connection is cut."""
    clock = Clock()
    cut: list[float] = []
    wire: Any = SimpleNamespace(clock=clock, identity=N1, watch=lambda told: True, cut=lambda: cut.append(clock.seconds()))
    for broken in (True, False):
        incoming = Incoming(wire, 10.0, lambda: None)
        ready = incoming.ready()
        assert not ready.called
        if broken:
            clock.advance(10)
        else:
            incoming.finish(None)
        assert ready.called
        clock.advance(20)
    assert cut == [10.0]

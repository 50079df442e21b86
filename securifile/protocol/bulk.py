"""Blobs between servers: one transfer at a time on a connection of its own, so that no heartbeat waits behind a gigabyte.

    store    client  StoreBlob, data..., end  -->            <-- BlobStored          server
    append   client  AppendBlob, data..., end -->            <-- BlobAppended        server
    blobs    client  StoreBlobs               -->            <-- BlobsStored         server
    fetch    client  FetchBlob                -->            <-- BlobFollows, data..., end

TCP is the flow control. Who sends waits (`write` is a Deferred) while the transport's buffer is full; who receives stops reading from the
socket while more than `UNREAD_BYTES_MAX` is not consumed. So memory is about a chunk a stage, whatever the size of the blob.

A transfer in which nothing moves for `stall_s`, though this side waits for it, is broken. A broken transfer closes its
connection; a finished or refused one leaves it to the next.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.batches import Batches
from securifile.model.entries import WholeBlob
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal, StreamBroken
from securifile.model.interfaces import IByteSink, IByteSource
from securifile.model.servers import HostPort
from securifile.protocol.connection import (
    RESUMABLE,
    VOUCHED,
    WHOLE,
    AbortReceived,
    AnswerReceived,
    Connection,
    DataReceived,
    EndReceived,
    Event,
    PeerIdentity,
    Purpose,
    RequestReceived,
    RequestUnusable,
    Side,
    State,
)
from securifile.protocol.frames import DATA_BYTES_MAX
from securifile.protocol.lanes import OutgoingLane
from securifile.protocol.messages import (
    AppendBlob,
    BlobAppended,
    BlobFollows,
    BlobSent,
    BlobsStored,
    BlobStored,
    FetchBlob,
    Refused,
    StoreBlob,
    StoreBlobs,
)
from securifile.protocol.rpc import refusal_from, refused_from
from securifile.protocol.streams import Incoming, Outgoing
from securifile.protocol.wire import Connector, Identify, NotAcceptable, Traffic, Wire, claimed, open_wire

IDLE_MAX = 32
"""Idle connections kept for each server."""
IDLE_S = 30.0
CONNECT_S = 5.0
BURST_BYTES = 4 * 1024 * 1024
"""What a worker's thread gives to who fetches before others get their turn: a few milliseconds."""
WHOLE_MAX = 64
"""Whole blobs in one message; of bytes as many as fit into one frame of a stream."""
WHOLE_S = 60.0
"""How long a server may take to make them durable: a slow disk with a gigabyte in its cache."""
STALL_S = 60.0
"""Nothing moved for so long: a busy disk recovers sooner, a dead peer does not recover, and a person on a line of 10 kB/s, to whom the
blob is relayed, takes a frame in half of it."""


class BulkHandlers(Protocol):
    """What a server does with bulk requests."""

    async def store(self, peer: PeerIdentity, request: StoreBlob, source: Any) -> BlobStored:
        """Take the blob from `source` (an `IByteSource`) to its end. A `Refusal`, at any time, refuses it. Of a blob that is `vouched` the
        source's attribute `sent` has, at its end, what the sender says that it is.

        `source.read` raises `StreamBroken` when the sender aborts or goes away: leave nothing behind then.
        """

    async def append(self, peer: PeerIdentity, request: AppendBlob, source: Any) -> BlobAppended:
        """As `store`, for a part of a resumable upload."""

    async def store_all(self, peer: PeerIdentity, blobs: Sequence[WholeBlob]) -> Sequence[BlobStored | Exception]:
        """Take whole blobs; what became of each, in their order."""

    async def fetch(self, peer: PeerIdentity, request: FetchBlob) -> tuple[BlobFollows, Any]:
        """The blob's size and an `IByteSource` of the range, perhaps with a `pour` as a blob's own. A `Refusal` refuses it."""


# --- server ---


class BulkServer:
    """The server's end of a bulk connection: a session of a `Wire`."""

    _log = Logger()

    def __init__(self, wire: Wire, handlers: BulkHandlers | None, stall_s: float) -> None:
        self._wire = wire
        self._handlers = handlers
        self._stall_s = stall_s
        self._incoming: Incoming | None = None
        self._outgoing: Outgoing | None = None
        self._work: Deferred[None] | None = None
        self._gives = False
        """Whether the work is a fetch."""
        self._ready = True

    def handle(self, event: Event) -> None:
        """Something arrived."""
        if isinstance(event, RequestReceived):
            self._begin(event)
        elif isinstance(event, RequestUnusable):
            self._wire.send(self._wire.connection.answer(event.id, event.refused))
        elif isinstance(event, DataReceived) and self._incoming is not None:
            self._incoming.feed(event.data)
        elif isinstance(event, EndReceived) and self._incoming is not None:
            self._incoming.finish(event.message)
        elif isinstance(event, AbortReceived) and self._incoming is not None:
            self._incoming.fail(StreamBroken(f"{self._wire.identity} broke it off: {event.refused.detail}"))

    def writable(self, ready: bool) -> None:
        """The transport is full, or has drained."""
        self._ready = ready
        if self._outgoing is not None:
            self._outgoing.writable(ready)

    def lost(self, reason: Exception) -> None:
        """The connection is gone."""
        broken = StreamBroken(str(reason))
        if self._incoming is not None:
            self._incoming.fail(broken)
        if self._outgoing is not None:
            self._outgoing.fail(broken)
        if self._work is not None and self._gives:
            # A store sees it in its source and can clean up, or is whole here and may become durable for nothing;
            # a fetch may wait for the disk, and nobody wants it any more.
            self._work.cancel()

    def _begin(self, event: RequestReceived) -> None:
        self._gives = isinstance(event.message, FetchBlob)
        if isinstance(event.message, StoreBlob | AppendBlob):
            self._incoming = Incoming(self._wire, self._stall_s, lambda: None)
            work = self._store(event.id, event.message, self._incoming)
        elif isinstance(event.message, StoreBlobs):
            work = self._store_all(event.id, event.message)
        else:
            work = self._fetch(event.id, event.message)
        self._work = Deferred.fromCoroutine(work)
        self._work.addErrback(self._failed)

    async def _store(self, number: int, request: StoreBlob | AppendBlob, incoming: Incoming) -> None:
        answer: BlobStored | BlobAppended | Refused
        try:
            if self._handlers is None:
                raise Refusal(Code.UNKNOWN_MESSAGE, "this server keeps no blobs")
            if isinstance(request, StoreBlob):
                answer = await self._handlers.store(self._wire.identity, request, incoming)
            else:
                answer = await self._handlers.append(self._wire.identity, request, incoming)
            if self._wire.connection.state is State.UPLOADING:
                raise RuntimeError("the handler did not read the stream to its end")
        except Exception as error:
            answer = self._refused(error, "store")
        self._incoming = None
        if self._wire.usable:
            # Sent before the rest of a refused stream is let in: the core passes it over from here on.
            self._wire.send(self._wire.connection.answer(number, answer))
        incoming.close()

    async def _store_all(self, number: int, request: StoreBlobs) -> None:
        answer: BlobsStored | Refused
        try:
            if self._handlers is None:
                raise Refusal(Code.UNKNOWN_MESSAGE, "this server keeps no blobs")
            ended = await self._handlers.store_all(self._wire.identity, request.blobs)
            answer = BlobsStored(results=tuple(one if isinstance(one, BlobStored) else self._refused(one, "store") for one in ended))
        except Exception as error:
            answer = self._refused(error, "store")
        if self._wire.usable:
            self._wire.send(self._wire.connection.answer(number, answer))

    async def _fetch(self, number: int, request: Any) -> None:
        try:
            if self._handlers is None or not isinstance(request, FetchBlob):
                raise Refusal(Code.UNKNOWN_MESSAGE, f"this server does not take {type(request).__name__} on a bulk connection")
            answer, source = await self._handlers.fetch(self._wire.identity, request)
        except CancelledError:
            raise
        except Exception as error:
            if self._wire.usable:
                self._wire.send(self._wire.connection.answer(number, self._refused(error, "fetch")))
            return
        try:
            if not self._wire.usable:
                return
            self._outgoing = Outgoing(self._wire, self._stall_s)
            self._outgoing.writable(self._ready)
            self._wire.send(self._wire.connection.answer(number, answer))
            while data := await source.read():
                await self._outgoing.write(data)
                if hasattr(source, "pour"):
                    await self._pour(source, self._outgoing)
            if not self._wire.usable:
                return
            self._wire.send(self._wire.connection.end())
        except CancelledError:
            raise
        except Exception as error:
            if self._wire.usable and self._wire.connection.state is State.DOWNLOADING:
                self._wire.send(self._wire.connection.abort(self._refused(error, "fetch")))
        finally:
            self._outgoing = None
            source.close()

    async def _pour(self, source: Any, outgoing: Outgoing) -> None:
        """Have worker's threads give what comes next, burst after burst, as far as that is possible."""
        while (lane := outgoing.lane()) is not None:
            try:
                await source.pour(lane.take_patiently, BURST_BYTES)
            finally:
                lane.close()
            if not lane.taken:
                return
            await outgoing.write(b"")

    def _refused(self, error: Exception, what: str) -> Refused:
        if isinstance(error, Refusal):
            return refused_from(error)
        if isinstance(error, StreamBroken):
            return Refused(code=Code.BAD_REQUEST.value, detail=str(error))
        self._log.failure("a bulk {what} for {peer} failed", Failure(error), what=what, peer=self._wire.identity)
        return Refused(code=Code.BUG.value, detail=f"{what} failed: {type(error).__name__}; see this server's log")

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("a bulk transfer with {peer} failed", failure, peer=self._wire.identity)
            self._wire.cut()


# --- client ---


class _BulkClient:
    """The client's end of a bulk connection: a session of a `Wire`."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.stale: Callable[[], None] = lambda: None
        """Called when the connection is lost while idle."""
        self.key: tuple[HostPort, PeerIdentity] | None = None
        """Under what the pool keeps it."""
        self._ready = True
        self._answer: Deferred[Any] | None = None
        self._incoming: Incoming | None = None
        self._outgoing: Outgoing | None = None

    @property
    def usable(self) -> bool:
        """Whether another transfer can be made."""
        return self.wire.usable and self.wire.connection.state is State.IDLE

    def begin(
        self, message: StoreBlob | StoreBlobs | AppendBlob | FetchBlob, outgoing: Outgoing | None, incoming: Incoming | None
    ) -> Deferred[Any]:
        """Ask; fires with the answer, fails with `Refusal` or `StreamBroken`."""
        self._outgoing, self._incoming = outgoing, incoming
        if outgoing is not None:
            outgoing.writable(self._ready)
        answer: Deferred[Any] = Deferred(self._give_up)
        self._answer = answer
        self.wire.send(self.wire.connection.request(message)[1])
        return answer

    def _give_up(self, answer: Deferred[Any]) -> None:
        self._answer = None
        self.wire.cut()

    def handle(self, event: Event) -> None:
        """Something arrived."""
        if isinstance(event, AnswerReceived):
            answer, self._answer = self._answer, None
            refused = isinstance(event.message, Refused)
            if refused and self.wire.connection.state is State.REFUSED:
                # Early: end our stream, so that the connection can be used again.
                self.wire.send(self.wire.connection.abort(Refused(code=Code.BAD_REQUEST.value, detail="refused")))
            if refused and self._outgoing is not None:
                self._outgoing.fail(refusal_from(event.message))
            if answer is not None:
                if refused:
                    answer.errback(refusal_from(event.message))
                else:
                    answer.callback(event.message)
        elif isinstance(event, DataReceived) and self._incoming is not None:
            self._incoming.feed(event.data)
        elif isinstance(event, EndReceived) and self._incoming is not None:
            # First, because the reader may want the connection again at once.
            self.stale()
            self._incoming.finish(event.message)
        elif isinstance(event, AbortReceived) and self._incoming is not None:
            self.stale()
            self._incoming.fail(StreamBroken(f"{self.wire.identity} broke it off: {refusal_from(event.refused)}"))

    def writable(self, ready: bool) -> None:
        """The transport is full, or has drained."""
        self._ready = ready
        if self._outgoing is not None:
            self._outgoing.writable(ready)

    def lost(self, reason: Exception) -> None:
        """The connection is gone."""
        broken = StreamBroken(str(reason))
        if self._outgoing is not None:
            self._outgoing.fail(broken)
        if self._incoming is not None:
            self._incoming.fail(broken)
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(broken)
        self.stale()


@implementer(IByteSink)
class OutgoingTransfer:
    """A blob on its way to another server."""

    def __init__(
        self, client: _BulkClient, request: StoreBlob | AppendBlob, stall_s: float, give_back: Callable[[_BulkClient], None]
    ) -> None:
        self.vouched = isinstance(request, StoreBlob) and request.vouched
        """Whether the other end relies on what `finish` is given."""
        self._client = client
        self._answers = BlobStored if isinstance(request, StoreBlob) else BlobAppended
        self._give_back = give_back
        self._outgoing = Outgoing(client.wire, stall_s)
        self._done = False
        self._result: Any = None
        self._finishing: Deferred[Any] | None = None
        client.begin(request, self._outgoing, None).addBoth(self._answered)

    def write(self, data: bytes) -> Deferred[None]:
        """Send bytes; fires when more is welcome.

        Raises:
            Refusal: the server refuses the blob, possibly before its end.
            StreamBroken: the connection is lost or stalled.
        """
        return self._outgoing.write(data)

    def room(self) -> Deferred[None]:
        """Fires when more is welcome; fails as `write` does."""
        return self._outgoing.write(b"")

    def lane(self) -> OutgoingLane | None:
        """A way for a worker's thread to send what comes next, until it is closed; None when there is none now."""
        return None if self._done or self._finishing is not None else self._outgoing.lane()

    def finish(self, timeout_s: float, sent: BlobSent | None = None) -> Deferred[Any]:
        """The blob, or the part of an upload, is complete; what the server made of it: `BlobStored` or `BlobAppended`.

        Args:
            sent: what was sent; told if the transfer is `vouched`.

        Raises:
            Refusal: it is not stored there.
            DeadlineExceeded: no answer in time; it may be stored there.
            StreamBroken: the connection was lost; it may be stored there.
        """
        if self._done:
            return fail(self._result) if isinstance(self._result, Failure) else succeed(self._result)
        wire = self._client.wire
        if not wire.usable:
            return fail(StreamBroken(f"the connection to {wire.identity} is closed"))
        finishing: Deferred[Any] = Deferred(lambda _: self._give_up())
        self._finishing = finishing
        wire.send(wire.connection.end(sent if self.vouched else None))
        late = wire.clock.callLater(timeout_s, self._late, timeout_s)

        def no_longer_late(result: Any) -> Any:
            if late.active():
                late.cancel()
            return result

        return finishing.addBoth(no_longer_late)

    def abort(self) -> None:
        """Break it off: the server forgets the blob. Harmless when it is finished."""
        if self._done:
            return
        wire = self._client.wire
        aborted = StreamBroken("broken off by this side")
        self._outgoing.fail(aborted)
        if wire.usable and wire.connection.state is State.UPLOADING:
            wire.send(wire.connection.abort(Refused(code=Code.BAD_REQUEST.value, detail="broken off by the sender")))
        wire.close(Code.BAD_REQUEST, "the transfer was broken off by the sender")

    def _give_up(self) -> None:
        """Nobody waits for the answer any more, which may come all the same."""
        self._finishing = None
        self.abort()

    def _late(self, timeout_s: float) -> None:
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.errback(DeadlineExceeded(f"{self._client.wire.identity} did not confirm the blob within {timeout_s:g} s"))
            self._client.wire.cut()

    def _answered(self, result: Any) -> None:
        self._done, self._result = True, result
        finishing, self._finishing = self._finishing, None
        self._give_back(self._client)
        if finishing is not None:
            if isinstance(result, Failure):
                finishing.errback(result)
            elif isinstance(result, self._answers):
                finishing.callback(result)
            else:
                finishing.errback(StreamBroken(f"an answer of the wrong kind: {type(result).__name__}"))


class BulkPool:
    """Bulk connections to other servers, kept for a while when idle.

    Args:
        clock: timers.
        connector: how to connect.
        here: who we are.
        locate: address and identity of a server by its name; raises `PeerUnreachable` when it is not known.
        identify: how the other end proves who it is; `claimed` when TLS is off.
        idle_max: idle connections kept for each server.
        idle_s: how long.
        stall_s: see above.
        connect_s: how long connecting may take.
        traffic: where the bytes of the connections are counted.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        connector: Connector,
        here: PeerIdentity,
        locate: Callable[[str], tuple[HostPort, PeerIdentity]],
        identify: Identify = claimed,
        idle_max: int = IDLE_MAX,
        idle_s: float = IDLE_S,
        stall_s: float = STALL_S,
        connect_s: float = CONNECT_S,
        traffic: Traffic | None = None,
    ) -> None:
        self._clock = clock
        self._connector = connector
        self._here = here
        self._locate = locate
        self._identify = identify
        self._idle_max = idle_max
        self._idle_s = idle_s
        self._stall_s = stall_s
        self._connect_s = connect_s
        self._traffic = traffic
        self._whole: dict[str, Batches[WholeBlob, BlobStored]] = {}
        """By the name of the server that they are for."""
        self._idle: dict[tuple[HostPort, PeerIdentity], list[tuple[_BulkClient, IDelayedCall]]] = {}
        self._all: dict[_BulkClient, None] = {}
        self._stopped = False

    @property
    def idle(self) -> int:
        """Idle connections, of all servers."""
        return sum(map(len, self._idle.values()))

    async def store(self, server_name: str, request: StoreBlob) -> OutgoingTransfer:
        """Begin to send a blob to a server; one that is `vouched` is so if that server's release can. Raises `PeerUnreachable`."""
        client = await self._client(server_name)
        if VOUCHED not in client.wire.connection.features:
            request = attrs.evolve(request, vouched=False)
        return OutgoingTransfer(client, request, self._stall_s, self._give_back)

    def store_whole(self, server_name: str, blob: WholeBlob) -> Deferred[BlobStored]:
        """Send a whole blob to a server. Those that come while others are on their way to it go there together.

        Raises:
            Refusal: it is not stored there.
            DeadlineExceeded, StreamBroken: no answer; it may be stored there.
            PeerUnreachable: it was not sent.
        """
        batches = self._whole.get(server_name)
        if batches is None:
            batches = self._whole[server_name] = Batches(
                lambda blobs: Deferred.fromCoroutine(self._store_all(server_name, blobs)),
                size=lambda blob: len(blob.data),
                items_max=WHOLE_MAX,
                bytes_max=DATA_BYTES_MAX,
                soon=lambda begin: self._clock.callLater(0, begin),
            )
        return batches.do(blob)

    async def _store_all(self, server_name: str, blobs: Sequence[WholeBlob]) -> Sequence[BlobStored | Exception]:
        client = await self._client(server_name)
        if WHOLE not in client.wire.connection.features:
            self._give_back(client)
            return [await self._store_streamed(server_name, blob) for blob in blobs]
        answer = client.begin(StoreBlobs(blobs=tuple(blobs)), None, None)
        late = self._clock.callLater(WHOLE_S, answer.cancel)
        try:
            stored = await answer
        except CancelledError:
            if late.active():
                raise
            raise DeadlineExceeded(f"{server_name} did not confirm the blobs within {WHOLE_S:g} s") from None
        finally:
            if late.active():
                late.cancel()
            self._give_back(client)
        if not isinstance(stored, BlobsStored) or len(stored.results) != len(blobs):
            client.wire.cut()
            raise StreamBroken(f"an answer of the wrong kind: {type(stored).__name__}")
        return [refusal_from(one) if isinstance(one, Refused) else one for one in stored.results]

    async def _store_streamed(self, server_name: str, blob: WholeBlob) -> BlobStored | Exception:
        """To a server of the release before."""
        transfer = await self.store(
            server_name,
            StoreBlob(attempt=blob.attempt, file=blob.file, version=blob.version, algorithm=blob.algorithm, size=len(blob.data)),
        )
        try:
            if blob.data:
                await transfer.write(blob.data)
            stored: BlobStored = await transfer.finish(WHOLE_S)
        except CancelledError:
            raise
        except Exception as error:
            return error
        return stored

    async def append(self, server_name: str, request: AppendBlob) -> OutgoingTransfer:
        """Begin to send a part of a resumable upload. Raises `PeerUnreachable`, also when that server's release has none."""
        client = await self._client(server_name)
        if RESUMABLE not in client.wire.connection.features:
            self._give_back(client)
            raise PeerUnreachable(f"{server_name} knows no resumable uploads: update it first")
        return OutgoingTransfer(client, request, self._stall_s, self._give_back)

    async def fetch(self, server_name: str, request: FetchBlob, timeout_s: float) -> tuple[BlobFollows, IByteSource]:
        """Ask a server for a blob.

        The source must be read to its end or closed; closing it early closes its connection.

        Raises:
            Refusal: the server does not give it.
            DeadlineExceeded: no answer within `timeout_s`.
            PeerUnreachable, StreamBroken: not connected, or lost before the answer.
        """
        client = await self._client(server_name)
        incoming = Incoming(client.wire, self._stall_s, client.wire.cut)
        answer = client.begin(request, None, incoming)
        late = self._clock.callLater(timeout_s, answer.cancel)
        # The last byte of the stream, or a refusal, sets the connection free.
        client.stale = lambda: self._give_back(client)
        try:
            follows = await answer
        except Refusal:
            self._give_back(client)
            raise
        except CancelledError:
            if late.active():
                raise
            raise DeadlineExceeded(f"{server_name} did not answer within {timeout_s:g} s") from None
        finally:
            if late.active():
                late.cancel()
        if not isinstance(follows, BlobFollows):
            client.wire.cut()
            raise StreamBroken(f"an answer of the wrong kind: {type(follows).__name__}")
        return follows, cast(IByteSource, incoming)

    def stop(self) -> Deferred[None]:
        """Close all connections, with what is under way on them; fires when they are gone."""
        self._stopped = True
        gone: Sequence[Awaitable[None]] = [client.wire.when_gone() for client in self._all]
        for client in list(self._all):
            client.wire.close(Code.SHUTTING_DOWN, f"{self._here} is shutting down")
        return gatherResults(list(cast(Any, gone))).addCallback(lambda _: None)

    async def _client(self, server_name: str) -> _BulkClient:
        if self._stopped:
            raise PeerUnreachable("this server is shutting down")
        address, expected = self._locate(server_name)
        waiting = self._idle.get((address, expected), [])
        while waiting:
            client, expiry = waiting.pop()
            expiry.cancel()
            client.stale = lambda: None
            if client.usable:
                return client

        def judge(identity: PeerIdentity) -> None:
            if identity != expected:
                raise NotAcceptable(f"expected {expected}, found {identity}")

        wire = Wire(
            clock=self._clock,
            connection=Connection(Side.CLIENT, self._here, Purpose.BULK),
            identify=self._identify,
            judge=judge,
            open_session=_BulkClient,
            traffic=self._traffic,
        )
        await open_wire(self._connector(address, expected), wire, self._connect_s)
        client = cast(_BulkClient, wire.session)
        client.key = (address, expected)
        self._all[client] = None
        wire.when_gone().addCallback(lambda _: self._all.pop(client, None))
        if self._stopped:
            wire.cut()
            raise PeerUnreachable("this server is shutting down")
        return client

    def _give_back(self, client: _BulkClient) -> None:
        """A transfer has ended."""
        client.stale = lambda: None
        if client.wire.gone:
            return
        if not client.usable or self._stopped:
            client.wire.close(Code.SHUTTING_DOWN, "the transfer has ended early")
            return
        assert client.key is not None
        waiting = self._idle.setdefault(client.key, [])
        if len(waiting) >= self._idle_max:
            client.wire.close(Code.SHUTTING_DOWN, "idle")
            return
        entry = (client, self._clock.callLater(self._idle_s, self._expire, client))
        waiting.append(entry)
        client.stale = lambda: self._remove(client)

    def _remove(self, client: _BulkClient) -> None:
        assert client.key is not None
        waiting = self._idle.get(client.key, [])
        for entry in list(waiting):
            if entry[0] is client:
                waiting.remove(entry)
                if entry[1].active():
                    entry[1].cancel()
        if not waiting:
            self._idle.pop(client.key, None)

    def _expire(self, client: _BulkClient) -> None:
        self._remove(client)
        client.wire.close(Code.SHUTTING_DOWN, "idle")

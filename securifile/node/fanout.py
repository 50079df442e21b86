"""One upload's bytes, to this node's disk and to the replicas at the same time.

A body streams once; a small one is whole in memory, and goes everywhere at the same time. A replica that refuses, breaks or is not
available any more is let go; another takes its place at the end, from what this node has on its disk or in memory. A hanging replica
holds the upload up only until the failure detector doubts it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, FirstError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.model.digests import Hasher
from securifile.model.entries import BlobSummary, Copy, WholeBlob
from securifile.model.errors import DeadlineExceeded, PeerUnreachable, Refusal, StreamBroken
from securifile.node.bursts import take_in
from securifile.protocol.bulk import BulkPool, OutgoingTransfer
from securifile.protocol.messages import BlobSent, BlobStored, StoreBlob

_log = Logger()

T = TypeVar("T")

FINISH_S = 60.0
"""How long a replica may take to fsync: a slow disk with a gigabyte in its cache."""

LOOK_S = 0.1
"""How often a waiting transfer looks whether its replica is still available."""

LOST = (Refusal, StreamBroken, PeerUnreachable, DeadlineExceeded)
"""How a replica can fail."""


class Leg(Protocol):
    """One of several nodes that do the same."""

    node: str
    lost: bool

    def abort(self) -> object:
        """It does not matter any more."""


L = TypeVar("L", bound=Leg)


class Together:
    """Does something with several nodes at once, and lets go of those that fail or are not available any more."""

    def __init__(self, clock: IReactorTime, is_available: Callable[[str], bool]) -> None:
        self._clock = clock
        self._is_available = is_available

    async def each(self, legs: Sequence[L], work: Callable[[L], Any]) -> None:
        """Do it with every one that is not lost."""
        working = [Deferred.fromCoroutine(self.guarded(leg, work)) for leg in legs if not leg.lost]
        if len(working) == 1:
            await working[0]
        elif working:
            together = DeferredList(working, fireOnOneErrback=True, consumeErrors=True)
            try:
                await together
            except FirstError as first:
                for one in working:
                    one.cancel()
                first.subFailure.raiseException()

    async def guarded(self, leg: L, work: Callable[[L], Any]) -> None:
        """Do it with one; it may be lost afterwards."""
        try:
            await work(leg)
        except LOST as error:
            _log.info("{node} is lost to an upload: {problem}", node=leg.node, problem=str(error))
            leg.lost = True
            leg.abort()

    async def while_available(self, node: str, waited: Deferred[T]) -> T:
        """The result, or `PeerUnreachable` as soon as the node is not available any more."""
        if waited.called:
            return await waited
        gone = False
        timer: Any = None

        def look() -> None:
            nonlocal timer, gone
            if self._is_available(node):
                timer = self._clock.callLater(LOOK_S, look)
            else:
                gone = True
                waited.cancel()

        timer = self._clock.callLater(LOOK_S, look)
        try:
            return await waited
        except (CancelledError, *LOST) as error:
            if gone:
                raise PeerUnreachable(f"{node} does not answer heartbeats") from error
            raise
        finally:
            if timer.active():
                timer.cancel()


Replacement = Callable[[Sequence[str]], str | None]
"""Gives another node for a replica, none of those given; None when there is none."""


@attrs.define(kw_only=True)
class _Leg:
    """One replica of the upload."""

    node: str
    stored: BlobStored | None = None
    """What it made of a whole blob."""
    transfer: OutgoingTransfer | None = None
    lost: bool = False

    def abort(self) -> None:
        """Break its transfer off."""
        if self.transfer is not None:
            self.transfer.abort()


class Fanout:
    """The replicas of one upload that streams."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        pool: BulkPool,
        is_available: Callable[[str], bool],
        request: StoreBlob,
        writer: Any,
        replacement: Replacement,
    ) -> None:
        """Args:
        writer: this node's own `IBlobWriter` of the same blob.
        """
        self._pool = pool
        self._together = Together(clock, is_available)
        self._request = request
        self._writer = writer
        self._replacement = replacement
        self._legs: list[_Leg] = []
        self._tried: list[str] = []
        """Every node that was given the blob; one that was lost is not tried again."""

    async def begin(self, nodes: Sequence[str]) -> None:
        """Connect to the replicas, in order of priority. One that cannot be reached is replaced at the end."""
        self._legs = [_Leg(node=node) for node in nodes]
        self._tried = list(nodes)
        await self._together.each(self._legs, self._open)

    async def write(self, data: bytes) -> None:
        """Send a chunk everywhere; returns when everybody wants more."""
        await self._writer.write(data)
        await self._together.each(self._legs, lambda leg: self._send(leg, data))

    async def pour(self, source: Any, hashers: Sequence[Hasher] = ()) -> int:
        """Have a worker's thread send what `source` gives next everywhere, for a burst; how many bytes. With 0 what comes next has to be
        read and written. A replica that has no room for a moment ends the burst, and is waited for before the next.
        """
        await self._together.each(self._legs, self._until_room)
        legs = [leg for leg in self._legs if not leg.lost]
        lanes = [leg.transfer.lane() for leg in legs if leg.transfer is not None]
        burst = await take_in(source, self._writer, lanes, hashers)
        if burst is None:
            return 0
        missed = [leg for leg, lane in zip(legs, lanes, strict=True) if lane in burst.broken]
        await self._together.each(missed, self._why_lost)
        return burst.received

    async def finish(self, summary: BlobSummary) -> tuple[Copy, ...]:
        """The replicas, in order of priority, durable where they said so; the lost ones replaced as far as possible.

        Args:
            summary: what this node's own copy turned out to be; a replica that computed another checksum (or digest, where its release
                computes one) does not count.
        """
        await self._together.each(self._legs, lambda leg: self._complete(leg, summary))
        await _replace_lost(self._legs, self._tried, self._replacement, lambda leg: self._replay(leg, summary))
        return _copies(self._legs)

    def abort(self) -> None:
        """Break all transfers off."""
        for leg in self._legs:
            leg.abort()

    async def _open(self, leg: _Leg) -> None:
        leg.transfer = await self._together.while_available(leg.node, Deferred.fromCoroutine(self._pool.store(leg.node, self._request)))

    async def _send(self, leg: _Leg, data: bytes) -> None:
        assert leg.transfer is not None
        await self._together.while_available(leg.node, leg.transfer.write(data))

    async def _until_room(self, leg: _Leg) -> None:
        assert leg.transfer is not None
        await self._together.while_available(leg.node, leg.transfer.room())

    async def _why_lost(self, leg: _Leg) -> None:
        assert leg.transfer is not None
        await leg.transfer.room()
        raise StreamBroken(f"the connection to {leg.node} was used for something else")

    async def _complete(self, leg: _Leg, summary: BlobSummary) -> None:
        assert leg.transfer is not None
        assert summary.checksum is not None, "a writer computes it"
        sent = BlobSent(size=summary.size, digest=summary.digest, checksum=summary.checksum)
        stored: BlobStored = await self._together.while_available(leg.node, leg.transfer.finish(FINISH_S, sent))
        _check(leg.node, stored, summary, vouched=leg.transfer.vouched)

    async def _replay(self, leg: _Leg, summary: BlobSummary) -> None:
        async def again(leg: _Leg) -> None:
            await self._open(leg)
            source = self._writer.replay()
            try:
                while data := await source.read():
                    await self._send(leg, data)
            finally:
                source.close()
            await self._complete(leg, summary)

        await self._together.guarded(leg, again)


class WholeFanout:
    """The replicas of a blob that is whole in memory."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        pool: BulkPool,
        is_available: Callable[[str], bool],
        blob: WholeBlob,
        replacement: Replacement,
    ) -> None:
        self._pool = pool
        self._together = Together(clock, is_available)
        self._blob = blob
        self._replacement = replacement

    async def store(self, nodes: Sequence[str], own: Deferred[BlobSummary]) -> tuple[BlobSummary, tuple[Copy, ...]]:
        """Store it on all of these at once, while `own` stores it here.

        Returns:
            What this node's own copy turned out to be, and the replicas: as `Fanout.finish`.
        """
        legs, tried = [_Leg(node=node) for node in nodes], list(nodes)
        await self._together.each(legs, self._send)
        summary = await own

        async def compare(leg: _Leg) -> None:
            assert leg.stored is not None
            _check(leg.node, leg.stored, summary, vouched=False)

        async def again(leg: _Leg) -> None:
            await self._together.guarded(leg, self._send)
            await self._together.each([leg], compare)

        await self._together.each(legs, compare)
        await _replace_lost(legs, tried, self._replacement, again)
        return summary, _copies(legs)

    async def _send(self, leg: _Leg) -> None:
        leg.stored = await self._together.while_available(leg.node, self._pool.store_whole(leg.node, self._blob))


def _check(node: str, stored: BlobStored, summary: BlobSummary, *, vouched: bool) -> None:
    """Whether it stored what this node has. The digest says nothing of a blob that is `vouched`: it was told."""
    if (stored.size, stored.digest) != (summary.size, summary.digest) or (vouched and stored.checksum != summary.checksum):
        raise StreamBroken(f"{node} stored {stored.size} bytes with another digest")


async def _replace_lost(legs: Sequence[_Leg], tried: list[str], replacement: Replacement, again: Callable[[_Leg], Awaitable[None]]) -> None:
    for leg in legs:
        while leg.lost:
            other = replacement(tried)
            if other is None:
                break
            _log.info("replica {lost} is replaced by {other}", lost=leg.node, other=other)
            tried.append(other)
            leg.node, leg.lost = other, False
            await again(leg)


def _copies(legs: Sequence[_Leg]) -> tuple[Copy, ...]:
    return tuple(Copy(node=leg.node, priority=number, durable=not leg.lost) for number, leg in enumerate(legs, 1))

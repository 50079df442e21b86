"""Where the bytes of a version come from: this node's disk, or another holder, or one after the other.

A response is bound to one blob from its first byte. When a source breaks, or a block on this disk turns out to be rotten,
the next holder goes on at the same byte, and the reader notices nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from securifile.http.whole import Whole
from securifile.model.entries import Version
from securifile.model.errors import Code, CorruptBlock, DeadlineExceeded, NoSuchBlob, PeerUnreachable, Refusal, StreamBroken
from securifile.model.interfaces import IByteSource, IWorker
from securifile.protocol.bulk import BulkPool
from securifile.protocol.messages import FetchBlob

HEDGE_S = 0.3
"""When a holder has sent nothing for so long, the next one is asked: a hanging server costs a reader less than half a second."""

FETCH_S = 5.0
"""How long the only holder left may take."""

SMALL_BYTES_MAX = 64 * 1024
"""What `IBlobStore.small` gives whole."""

BURST_BYTES = 4 * 1024 * 1024
"""What a worker's thread sends before others get their turn: a few milliseconds."""

BROKEN = (CorruptBlock, NoSuchBlob, StreamBroken, PeerUnreachable, DeadlineExceeded, Refusal, OSError)
"""How a source can fail."""


class Sources:
    """Opens versions for reading on one server."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        blobs: Any,
        pool: BulkPool,
        rotten: Callable[[Version, str], None],
    ) -> None:
        """Args:
        rotten: told of a version whose blob on this disk must not be used any more, and why.
        """
        self._clock = clock
        self._name = name
        self._blobs = blobs
        self._pool = pool
        self._rotten = rotten

    def open(self, version: Version, holders: list[str], start: int, stop: int) -> VersionSource:
        """The bytes [start, stop) of a version, from `holders` in this order."""
        return VersionSource(self, version, holders, start, stop)

    async def begin(self, holder: str, version: Version, start: int, stop: int, timeout_s: float) -> tuple[Any, Callable[[], None]]:
        """An `IByteSource` at one holder, and what closes it. Raises one of `BROKEN`."""
        if holder == self._name and version.size <= SMALL_BYTES_MAX:
            whole = await self._blobs.small(version.attempt)
            if len(whole) != version.size:
                raise StreamBroken(f"the blob here has {len(whole)} bytes or more, the version {version.size}")
            return Whole(whole[start:stop]), lambda: None
        if holder == self._name:
            reader = await self._blobs.open(version.attempt)
            if reader.size != version.size:
                reader.close()
                raise StreamBroken(f"the blob here has {reader.size} bytes, the version {version.size}")
            source = reader.source(start, stop)

            def close() -> None:
                source.close()
                reader.close()

            return source, close
        follows, fetched = await self._pool.fetch(holder, FetchBlob(attempt=version.attempt, start=start, stop=stop), timeout_s)
        if follows.size != version.size:
            fetched.close()
            raise StreamBroken(f"{holder} has {follows.size} bytes, the version {version.size}")
        worker = getattr(self._blobs, "worker", None)
        return (fetched if worker is None else _Relayed(fetched, worker)), fetched.close

    def failed(self, holder: str, version: Version, error: BaseException) -> None:
        """A holder could not give the bytes."""
        self._log.warn("{holder} cannot give {attempt}: {problem}", holder=holder, attempt=str(version.attempt), problem=repr(error))
        if holder == self._name and isinstance(error, CorruptBlock | NoSuchBlob):
            self._rotten(version, str(error))

    async def within(self, waited: Deferred[Any], seconds: float) -> Any:
        """The result, or `DeadlineExceeded`, with what was waited for cancelled."""
        if waited.called:
            return await waited
        timer = self._clock.callLater(seconds, waited.cancel)
        try:
            return await waited
        except CancelledError:
            if timer.active():
                raise
            raise DeadlineExceeded(f"nothing came for {seconds:g} s") from None
        finally:
            if timer.active():
                timer.cancel()

    async def while_it_moves(self, waited: Deferred[Any], moved: Callable[[], int], seconds: float) -> None:
        """Wait; `DeadlineExceeded` when `moved` is the same for so long, with what was waited for cancelled."""
        seen = moved()
        timer: IDelayedCall

        def look() -> None:
            nonlocal seen, timer
            if moved() == seen:
                waited.cancel()
            else:
                seen = moved()
                timer = self._clock.callLater(seconds, look)

        timer = self._clock.callLater(seconds, look)
        try:
            await waited
        except CancelledError:
            if timer.active():
                raise
            raise DeadlineExceeded(f"nothing came for {seconds:g} s") from None
        finally:
            if timer.active():
                timer.cancel()


@implementer(IByteSource)
class _Relayed:
    """What another holder sends; where possible a worker's thread passes it on."""

    def __init__(self, fetched: Any, worker: IWorker) -> None:
        self._fetched = fetched
        self._worker = worker
        self._has_gap = False

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`."""
        if self._has_gap:
            return fail(StreamBroken("a piece of it was taken back on its way"))
        data: Deferred[bytes] = self._fetched.read()
        return data

    def pour(self, take: Callable[[memoryview], bool], bytes_max: int) -> Deferred[None]:
        """Give what comes next to `take`, until that wants no more, or the holder makes a pause, or `bytes_max` were given. What `take`
        refuses by `StreamBroken` is gone, and nothing more can be read.
        """
        return Deferred.fromCoroutine(self._pour(take, bytes_max))

    async def _pour(self, take: Callable[[memoryview], bool], bytes_max: int) -> None:
        if self._has_gap:
            return
        await self._fetched.ready()
        lane = self._fetched.lane()
        if lane is not None:
            try:
                await self._worker.do(self._pass_on, lane, take, bytes_max)
            finally:
                lane.close()

    def _pass_on(self, lane: Any, take: Callable[[memoryview], bool], bytes_max: int) -> None:
        """In a worker's thread."""
        given = 0
        piece: memoryview | None = None
        with suppress(StreamBroken):  # who took one of both back knows why, and tells whoever reads or writes next
            while given < bytes_max and (piece := lane.receive(bytes_max - given)):
                wants_more = take(piece)
                given += len(piece)
                piece = None
                if not wants_more:
                    break
        self._has_gap = bool(piece)

    def close(self) -> None:
        """See `IByteSource`."""
        self._fetched.close()


class VersionSource:
    """An `IByteSource` over a part of a version that survives the loss of a holder."""

    def __init__(self, sources: Sources, version: Version, holders: list[str], start: int, stop: int) -> None:
        self._sources = sources
        self._version = version
        self._holders = list(holders)
        self._at = start
        self._stop = stop
        self._source: Any = None
        self._close: Callable[[], None] = lambda: None
        self.tried: list[str] = []
        """Holders that were asked, in order; the last one is in use."""

    def read(self) -> Deferred[bytes]:
        """See `IByteSource`. Raises `Refusal` NO_HOLDER when nobody is left who can give the bytes."""
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> bytes:
        while self._at < self._stop:
            if self._source is None:
                await self._next()
            patience_s = HEDGE_S if self._holders else FETCH_S
            try:
                data: bytes = await self._sources.within(self._source.read(), patience_s)
                if not data:
                    raise StreamBroken(f"{self.tried[-1]} ended before the end of the blob")
            except BROKEN as error:
                self._sources.failed(self.tried[-1], self._version, error)
                self.close()
                continue
            self._at += len(data)
            return data
        return b""

    def pour(self, lane: Any) -> Deferred[int]:
        """Let a worker's thread give what comes next to a `Lane`, where the present source can do that, and close the lane.

        A source that breaks meanwhile has given what was good; the next `read` goes on behind it, at another holder.
        """
        return Deferred.fromCoroutine(self._pour(lane))

    async def _pour(self, lane: Any) -> int:
        pour = getattr(self._source, "pour", None)
        try:
            if pour is not None and self._at < self._stop:
                await self._sources.while_it_moves(pour(lane.take, BURST_BYTES), lambda: lane.taken, HEDGE_S if self._holders else FETCH_S)
        except BROKEN as error:
            self._sources.failed(self.tried[-1], self._version, error)
            self.close()
        finally:
            taken: int = lane.close()
            self._at += taken
        return taken

    async def _next(self) -> None:
        """Go to the next holder that begins to give."""
        while self._holders:
            holder = self._holders.pop(0)
            self.tried.append(holder)
            patience_s = HEDGE_S if self._holders else FETCH_S
            opening = Deferred.fromCoroutine(self._sources.begin(holder, self._version, self._at, self._stop, patience_s))
            try:
                self._source, self._close = await self._sources.within(opening, patience_s)
            except BROKEN as error:
                self._sources.failed(holder, self._version, error)
                continue
            return
        raise Refusal(
            Code.NO_HOLDER,
            "No server that has this file can give it now. Try again later.",
            retry_after_s=2.0,
            tried=self.tried,
        )

    def close(self) -> None:
        """See `IByteSource`."""
        close, self._close, self._source = self._close, lambda: None, None
        close()

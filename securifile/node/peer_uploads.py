"""Resumable uploads for peers: what a holder does for whoever coordinates a request (`resumable.py`)."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal, StreamBroken
from securifile.model.staged import StagedUpload
from securifile.node.descriptors import detached
from securifile.node.staged import StagedUploads
from securifile.protocol import messages as m
from securifile.protocol.bulk import BulkPool
from securifile.protocol.rpc import Handlers, Peer

FETCH_S = 60.0
"""How long the source may take to answer: when it was restarted it reads all it has first."""


class PeerUploads:
    """The handlers for control connections."""

    def __init__(self, staged: StagedUploads, pool: BulkPool) -> None:
        self._staged = staged
        self._pool = pool

    @property
    def handlers(self) -> Handlers:
        """What it answers."""
        return {m.UploadLook: self._look, m.UploadCatchUp: self._catch_up, m.UploadSeal: self._seal, m.UploadDrop: self._drop}

    async def _look(self, peer: Peer, message: m.UploadLook) -> m.UploadFound:
        found = await self._staged.look(message.attempt, message.person)
        return m.UploadFound() if found is None else m.UploadFound(upload=found.upload, note=found.note, sealed=found.sealed)

    async def _catch_up(self, peer: Peer, message: m.UploadCatchUp) -> m.BlobAppended:
        return m.BlobAppended(offset=await self.catch_up(message.upload, message.offset, message.length, message.source))

    async def _seal(self, peer: Peer, message: m.UploadSeal) -> m.BlobStored:
        summary = await self._staged.seal(message.attempt, message.file, message.version, message.size)
        return m.BlobStored(size=summary.size, digest=summary.digest)

    async def _drop(self, peer: Peer, message: m.UploadDrop) -> m.Done:
        await self._staged.drop(message.attempt)
        return m.Done()

    def catch_up(self, upload: StagedUpload, offset: int, length: int | None, source: str | None) -> Deferred[int]:
        """Make this node a holder that has everything before `offset`. Raises `Refusal`."""
        return detached(self._fetch(upload, offset, length, source))

    async def _fetch(self, upload: StagedUpload, offset: int, length: int | None, source: str | None) -> int:
        found = await self._staged.look(upload.attempt, upload.person)
        start = 0 if found is None else found.note.offset
        append = await self._staged.begin(upload, start, length=length, checked=False)
        try:
            if start < offset and source is not None:
                fetch = m.FetchBlob(attempt=upload.attempt, start=start, stop=offset)
                _, stream = await self._pool.fetch(source, fetch, FETCH_S)
                try:
                    while data := await stream.read():
                        await append.write(data)
                finally:
                    stream.close()
            return await append.finish()
        except (StreamBroken, PeerUnreachable, DeadlineExceeded) as error:
            raise Refusal(Code.NO_HOLDER, f"what is missing of {upload.attempt} could not be fetched from {source}: {error}") from error
        finally:
            await append.abort()

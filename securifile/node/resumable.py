"""Resumable uploads, as the node that gets a request about one coordinates it: `docs/decisions/0015-resumable-uploads.md`.

    gather       ask every node how far it is; the longest prefix is the truth
    strengthen   until enough holders have that prefix: others catch up, a lost holder is replaced
    take         send the bytes to all of them at the same time; acknowledged is what enough of them have fsynced
    complete     lock, judge, seal, compare digests, commit, spread: as a `PUT` ends

The coordinator keeps nothing in memory between requests, so that any node can take the next one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.http.exchange import Access
from securifile.http.request import Request
from securifile.http.targets import Target, parse_place
from securifile.http.transfers import Transfers
from securifile.http.tus import Append as Asked
from securifile.http.tus import Checksum, Creation, Final, Partial, judge_append, mismatch
from securifile.model.entries import BlobSummary, Copy
from securifile.model.errors import Code, DeadlineExceeded, NoSuchBlob, OutcomeUnknown, PeerUnreachable, Refusal, StreamBroken
from securifile.model.facts import File
from securifile.model.ids import AttemptId, EntryId
from securifile.model.placement import place
from securifile.model.staged import Note, StagedUpload
from securifile.node.acting import Acting, file_of, no_catalogue
from securifile.node.cluster import Cluster
from securifile.node.fanout import FINISH_S, LOST, Together
from securifile.node.locks import Lock
from securifile.node.peer_uploads import FETCH_S, PeerUploads
from securifile.node.staged import Append, StagedUploads
from securifile.node.uploads import OUTCOME_AGAIN_S, OUTCOME_S, QUOTA_LOOK_BYTES, Header, Plan, Uploads
from securifile.protocol import messages as m
from securifile.protocol.bulk import BulkPool, OutgoingTransfer

LOOK_S = 10.0
"""How long a node may take to end an append and to tell how far it is: an fsync of what is in its cache."""

CATCH_UP_S = 3600.0
"""How long fetching what is missing may take, as long as the node answers heartbeats."""

SEAL_S = 600.0
"""How long sealing may take, as long as the node answers heartbeats: one that was restarted reads all it has first."""

CATCH_UP_BYTES = 64 * 1024 * 1024
"""A holder that lacks no more is brought up in any case; with more only when it is needed, since the client waits."""


@attrs.frozen(kw_only=True)
class State:
    """Where an upload is."""

    upload: StagedUpload
    note: Note
    committed: m.Committed | None = None
    """When it has become a version."""

    @property
    def file(self) -> File | None:
        """The file with the version that it became."""
        return None if self.committed is None else file_of(self.committed)


@attrs.define
class _Seen:
    """What the nodes told of an upload."""

    upload: StagedUpload
    holders: dict[str, m.UploadFound]
    note: Note
    """The longest prefix."""

    def has_all(self, node: str) -> bool:
        found = self.holders.get(node)
        return found is not None and found.note is not None and found.note.offset == self.note.offset


class _Body(Protocol):
    """Where the bytes come from."""

    async def read(self) -> bytes:
        """The next ones; empty at the end."""


@attrs.define(kw_only=True, eq=False)
class _Leg:
    """One holder that takes the bytes."""

    node: str
    way: Append | OutgoingTransfer | None = None
    lost: bool = False
    offset: int | None = None
    """What it has confirmed at the end."""

    def abort(self) -> None:
        """What has come is kept, unless there is a checksum for it."""
        if self.way is not None:
            self.way.abort()


class Resumable:
    """The coordinator on one node."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        name: str,
        cluster: Cluster,
        acting: Acting,
        uploads: Uploads,
        staged: StagedUploads,
        peers: PeerUploads,
        pool: BulkPool,
        transfers: Transfers,
        random: Callable[[int], bytes],
        below: Callable[[int], int],
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._name = name
        self._cluster = cluster
        self._acting = acting
        self._uploads = uploads
        self._staged = staged
        self._peers = peers
        self._pool = pool
        self._transfers = transfers
        self._random = random
        self._below = below
        self._together = Together(clock, cluster.is_available)
        self._reachable = Together(clock, self._reaches)

    # --- what people ask ---

    async def create(
        self, request: Request, access: Access, asked: Creation, begun: Callable[[StagedUpload], None] = lambda upload: None
    ) -> State:
        """Begin an upload; take the bytes that came along; complete it when they are all. Raises `Refusal`.

        Args:
            begun: told of the upload once enough nodes know it, before a byte is taken.
        """
        if isinstance(asked.concat, Final):
            return await self._concatenate(access, asked, asked.concat)
        upload = self._new(access, asked, AttemptId(self._random(16)))
        seen = await self._begin(access, upload, asked.length)
        begun(upload)
        body = None
        if request.has_body:
            body = _FromClient(self._uploads, request)
        return await self._take(request, access, seen, asked.length, body, asked.checksum)

    async def look(self, access: Access, attempt: AttemptId) -> State:
        """How far it is. What this tells is on enough disks; an upload that has all its bytes is completed.

        Raises:
            Refusal: NOT_FOUND, GONE; NO_HOLDER when somebody who may know does not answer; or why it cannot be completed.
        """
        seen = await self._known(access, attempt)
        committed = await self._committed(seen)
        if committed is not None:
            return State(upload=seen.upload, note=seen.note, committed=committed)
        if seen.upload.path is not None and seen.note.offset == seen.note.length:
            return await self._take(None, access, seen, seen.note.length, None, None)
        await self._strengthen(seen, seen.note.length)
        return State(upload=seen.upload, note=seen.note)

    async def append(self, request: Request, access: Access, attempt: AttemptId, asked: Asked) -> State:
        """Take bytes. Raises `Refusal`: CONFLICT when they do not begin where the upload is."""
        seen = await self._known(access, attempt)
        if seen.upload.concat is not None and seen.upload.concat != "partial":
            raise Refusal(Code.FORBIDDEN, "A final upload takes no bytes: it is made of its parts (tus, concatenation).")
        committed = await self._committed(seen)
        length = judge_append(
            asked, offset=seen.note.offset, length=seen.note.length, body=request.content_length, has_body=request.has_body
        )
        if committed is not None:
            return State(upload=seen.upload, note=seen.note, committed=committed)
        repeated = asked.offset < seen.note.offset
        body = _FromClient(self._uploads, request) if request.has_body and not repeated else None
        return await self._take(request, access, seen, length, body, asked.checksum)

    async def terminate(self, access: Access, attempt: AttemptId) -> None:
        """End it: it will never be committed, and what there is of it is dropped. Of one that was completed only the URL ends."""
        await self._known(access, attempt)
        await self._acting.ask_admin(m.OutcomeAsk(attempt=attempt, abandon=True))
        await self._drop(attempt)

    # --- gathering ---

    def _reaches(self, node: str) -> bool:
        return node == self._name or self._cluster.heartbeats.is_answering(node)

    async def _gather(self, access: Access, attempt: AttemptId) -> tuple[_Seen | None, list[str]]:
        """What all nodes tell of an upload of the caller's, whatever they are held for; and those that did not answer."""
        person = access.signed_in.username
        own = await self._staged.look(attempt, person)
        found: dict[str, m.UploadFound] = {}
        silent: list[str] = []
        if own is not None:
            found[self._name] = m.UploadFound(upload=own.upload, note=own.note, sealed=own.sealed)

        async def ask(node: str) -> None:
            try:
                asking = self._cluster.links.ask(node, m.UploadLook(attempt=attempt, person=person), LOOK_S)
                answer: m.UploadFound = await self._reachable.while_available(node, asking)
            except (PeerUnreachable, DeadlineExceeded):
                silent.append(node)
            except Refusal:
                return  # a release that knows no uploads has none
            else:
                if answer.upload is not None and answer.note is not None:
                    found[node] = answer

        await self._all(ask, [node for node in self._cluster.roster.nodes if node != self._name])
        if not found:
            return None, silent
        holders = dict(sorted(found.items()))
        notes = [one.note for one in holders.values() if one.note is not None]
        upload = next(one.upload for one in holders.values() if one.upload is not None)
        note = Note(
            offset=max(one.offset for one in notes),
            length=next((one.length for one in notes if one.length is not None), None),
            expires_at=max(one.expires_at for one in notes),
        )
        return _Seen(upload, holders, note), silent

    async def _all(self, work: Callable[[str], Awaitable[None]], nodes: Sequence[str]) -> None:
        legs = [_Leg(node=node) for node in nodes]
        await self._together.each(legs, lambda leg: work(leg.node))

    async def _known(self, access: Access, attempt: AttemptId) -> _Seen:
        """What is known of an upload of the caller's. Raises `Refusal`."""
        seen, silent = await self._gather(access, attempt)
        if seen is not None:
            access.path = seen.upload.path
            return seen
        # What was acknowledged is on so many that one of them answers, unless as many are silent.
        if len(silent) >= self._cluster.roster.settings.copies_needed:
            raise Refusal(
                Code.NO_HOLDER,
                f"No node that answers knows this upload, and {', '.join(sorted(silent))} did not answer. Try again.",
                retry_after_s=2.0,
                silent=sorted(silent),
            )
        if self._acting.has_catalogue():
            outcome: m.Outcome = await self._acting.ask_admin(m.OutcomeAsk(attempt=attempt, abandon=False))
            if outcome.committed is not None and file_of(outcome.committed).version.committed_by == access.signed_in.username:
                raise Refusal(Code.GONE, "This upload has ended. Begin a new one, if you need to.")
        raise Refusal(Code.NOT_FOUND, "There is no such upload, or none of yours. It may have expired; begin a new one.")

    async def _committed(self, seen: _Seen) -> m.Committed | None:
        """What became of it, if it can have ended. Raises `Refusal` GONE when it was given up."""
        if not any(found.sealed for found in seen.holders.values()):
            return None
        outcome: m.Outcome = await self._acting.ask_admin(m.OutcomeAsk(attempt=seen.upload.attempt, abandon=False))
        if outcome.ended == "abandoned":
            raise Refusal(Code.GONE, "This upload was ended. Begin a new one.")
        if outcome.committed is not None:
            # Its first answer may have been lost before every node knew of the version.
            await self._spread(outcome.committed)
        return outcome.committed

    async def _spread(self, committed: m.Committed) -> None:
        """Have it known everywhere before it is answered.

        An upload may be committed in the course of any of its requests, through any node, and again when an answer was lost. So nobody
        tells of it that it is under way, and who coordinates it lets the origin know when that is over.
        """
        await self._acting.spread_version(committed, here=True)
        self._cluster.settling.tell(file_of(committed).version)

    # --- enough holders ---

    async def _strengthen(self, seen: _Seen, length: int | None) -> list[str]:
        """Nodes that have everything so far, the one that was asked first if it is one of them. Raises `Refusal` when they are too few."""
        settings = self._cluster.roster.settings
        offset = seen.note.offset
        sources = [node for node in seen.holders if seen.has_all(node)]
        ready = sorted((node for node in sources if self._cluster.is_available(node)), key=lambda node: (node != self._name, node))
        wanted = settings.copies_wanted if offset <= CATCH_UP_BYTES else settings.copies_needed
        tried = set(sources)
        while True:
            behind = [node for node in seen.holders if node not in tried and self._cluster.is_available(node)]
            near = [node for node in behind if self._missing(seen, node) <= CATCH_UP_BYTES]
            if len(ready) < wanted:
                candidates = [*near, *behind, *await self._fresh(tried | set(behind), length or offset)]
            else:
                candidates = near if len(ready) < settings.copies_wanted else []
            if not candidates:
                break
            node = candidates[0]
            tried.add(node)
            for source in sources if offset else [None]:
                # One that cannot give it, perhaps because it rotted there, is no reason to do without the others.
                if await self._catch_up(node, seen, length, source):
                    ready.append(node)
                    break
        if len(ready) < settings.copies_needed:
            raise Refusal(
                Code.NO_ROOM,
                f"Only {len(ready)} running nodes can keep this upload, {settings.copies_needed} are needed. Try again.",
                retry_after_s=2.0,
                needed=settings.copies_needed,
            )
        return ready[: settings.copies_wanted]

    def _missing(self, seen: _Seen, node: str) -> int:
        note = seen.holders[node].note
        return seen.note.offset - (0 if note is None else note.offset)

    async def _fresh(self, tried: set[str], size: int) -> list[str]:
        """Nodes with room that hold nothing of it yet, this one first."""
        own: list[str] = []
        if self._name not in tried and (await self._staged.space()).available_bytes >= size:
            own = [self._name]
        room = {node: available for node, available in self._cluster.room.items() if node not in tried}
        return [*own, *place(len(room), room=room, size=size, preferred=(), below=self._below)]

    async def _catch_up(self, node: str, seen: _Seen, length: int | None, source: str | None) -> bool:
        upload, offset = seen.upload, seen.note.offset
        try:
            if node == self._name:
                reached = await self._peers.catch_up(upload, offset, length, source)
            else:
                message = m.UploadCatchUp(upload=upload, offset=offset, length=length, source=source)
                asking = self._cluster.links.ask(node, message, CATCH_UP_S)
                answer: m.BlobAppended = await self._together.while_available(node, asking)
                reached = answer.offset
        except LOST as error:
            if source is None and isinstance(error, Refusal) and error.code is Code.TOO_MANY_REQUESTS:
                raise
            self._log.info("{node} cannot hold {attempt}: {problem}", node=node, attempt=str(upload.attempt), problem=str(error))
            return False
        return reached >= offset

    # --- taking bytes ---

    def _new(self, access: Access, asked: Creation, attempt: AttemptId) -> StagedUpload:
        algorithm = self._cluster.roster.settings.digest
        return StagedUpload(
            attempt=attempt,
            person=access.signed_in.username,
            path=None if isinstance(asked.concat, Partial) else str(asked.target(access.signed_in.username)),
            file=EntryId(self._random(16)),
            algorithm=algorithm,
            created_at=self._wall(),
            length=asked.length,
            metadata=asked.metadata,
            concat=asked.concat_text,
            if_match=asked.if_match,
            if_none_match=asked.if_none_match,
            digest=asked.digests.get(algorithm),
        )

    async def _begin(self, access: Access, upload: StagedUpload, length: int | None) -> _Seen:
        """Judge, and make it known to enough holders."""
        if not self._acting.has_catalogue():
            raise no_catalogue()
        if upload.path is not None:
            plan = await self._uploads.plan(header_of(upload), access, parse_place(upload.path))
            await self._uploads.check_quota(plan, length or 0)
            self._uploads.check_majority()
        seen = _Seen(upload, {}, Note(offset=0, length=length, expires_at=self._staged.expiry()))
        try:
            ready = await self._strengthen(seen, length)
        except Refusal:
            await self._drop(upload.attempt)
            raise
        for node in ready:
            seen.holders[node] = m.UploadFound(upload=upload, note=seen.note)
        return seen

    async def _take(
        self, request: Request | None, access: Access, seen: _Seen, length: int | None, body: _Body | None, checksum: Checksum | None
    ) -> State:
        """Bytes to the holders, and the commit when they were the last; the path is locked meanwhile."""
        upload, note = seen.upload, seen.note
        ready = await self._strengthen(seen, length)
        if upload.path is None:
            note = await self._stream(request, access, seen, ready, length, body, checksum, None)
            return State(upload=upload, note=note)
        target = parse_place(upload.path)
        plan = await self._plan(upload, access, target)
        lock = await self._cluster.locks.take(plan.lock, upload.attempt, access.signed_in.username, self._uploads.first_granter(plan))
        self._uploads.under_way.add(upload.attempt)
        committed: m.Committed | None = None
        try:
            if body is not None or length != note.length:
                note = await self._stream(request, access, seen, ready, length, body, checksum, plan)
            if note.offset == note.length:
                committed = await self._complete(access, upload, plan, lock, ready, note.offset)
        finally:
            self._uploads.under_way.discard(upload.attempt)
            lock.release()
        if committed is not None:
            access.event, access.changed = "write", True
            await self._spread(committed)
            # Whoever had a part of it and took no part in the end keeps it for nothing.
            await self._drop(upload.attempt, [node for node in seen.holders if node not in ready])
        return State(upload=upload, note=note, committed=committed)

    async def _plan(self, upload: StagedUpload, access: Access, target: Target) -> Plan:
        plan = await self._uploads.plan(header_of(upload), access, target)
        return attrs.evolve(plan, file=upload.file) if plan.before is None else plan

    async def _stream(
        self,
        request: Request | None,
        access: Access,
        seen: _Seen,
        ready: list[str],
        length: int | None,
        body: _Body | None,
        checksum: Checksum | None,
        plan: Plan | None,
    ) -> Note:
        """The bytes once to all; what enough of them have fsynced. `ready` is without those that were lost, afterwards."""
        offset = seen.note.offset
        message = m.AppendBlob(upload=seen.upload, offset=offset, length=length, checked=checksum is not None)
        legs = [_Leg(node=node) for node in ready]
        needed = self._cluster.roster.settings.copies_needed
        hasher = None if checksum is None else checksum.hasher()
        received = looked_at = 0

        def enough() -> None:
            if sum(not leg.lost for leg in legs) < needed:
                raise Refusal(Code.NO_ROOM, "Too many holders of this upload were lost. Look how far it is, then go on.", retry_after_s=1.0)

        try:
            await self._together.each(legs, lambda leg: self._open(leg, message))
            enough()
            async with self._watching(request, access, plan, body):
                while body is not None and (data := await body.read()):
                    received += len(data)
                    if length is not None and offset + received > length:
                        raise Refusal(Code.TOO_LARGE, f"The upload is {length} bytes long, and more than that came.", length=length)
                    if length is None and plan is not None and received - looked_at >= QUOTA_LOOK_BYTES:
                        looked_at = received
                        await self._uploads.check_quota(plan, offset + received)
                    if hasher is not None:
                        hasher.update(data)
                    await self._together.each(legs, lambda leg, data=data: self._send(leg, data))  # type: ignore[misc]
                    enough()
            access.bytes = received
            if checksum is not None and hasher is not None and hasher.digest() != checksum.digest:
                raise mismatch(checksum)
            await self._together.each(legs, lambda leg: self._finish(leg))
        except BaseException:
            # A client that went away is the usual case: holders keep what has come.
            for leg in legs:
                leg.abort()
            raise
        reached = offset + received
        ready[:] = [leg.node for leg in legs if not leg.lost and leg.offset is not None and leg.offset >= reached]
        for leg in legs:
            leg.lost = leg.node not in ready
        enough()
        return Note(offset=reached, length=length, expires_at=self._staged.expiry())

    @asynccontextmanager
    async def _watching(self, request: Request | None, access: Access, plan: Plan | None, body: _Body | None) -> AsyncIterator[None]:
        """While inside, the transfer is cut off when the right to it ends."""
        if request is None or plan is None or not isinstance(body, _FromClient):
            yield
            return
        transfer = self._uploads.watch(request, access, plan, body.reasons)
        with self._transfers.watched(transfer):
            if self._transfers.changed_at >= request.begun_at:
                # Since the rights were judged nobody watched: the lock and the holders may have taken seconds.
                await transfer.check()
            yield

    async def _open(self, leg: _Leg, message: m.AppendBlob) -> None:
        if leg.node == self._name:
            opening: Deferred[Any] = self._staged.begin(message.upload, message.offset, length=message.length, checked=message.checked)
        else:
            opening = Deferred.fromCoroutine(self._pool.append(leg.node, message))
        leg.way = await self._together.while_available(leg.node, opening)

    async def _send(self, leg: _Leg, data: bytes) -> None:
        assert leg.way is not None
        await self._together.while_available(leg.node, leg.way.write(data))

    async def _finish(self, leg: _Leg) -> None:
        way = leg.way
        if isinstance(way, Append):
            leg.offset = await way.finish()
        else:
            assert way is not None
            answer: m.BlobAppended = await self._together.while_available(leg.node, way.finish(FINISH_S))
            leg.offset = answer.offset

    # --- the end ---

    async def _complete(self, access: Access, upload: StagedUpload, locked: Plan, lock: Lock, ready: list[str], size: int) -> m.Committed:
        """All bytes are there, and the path is locked: make it a version."""
        assert upload.path is not None
        if not self._acting.has_catalogue():
            raise no_catalogue()
        plan = await self._plan(upload, access, parse_place(upload.path))
        if plan.lock != locked.lock:
            raise Refusal(Code.CONFLICT, "Someone else created or deleted this path at the same time. Look at it, then go on.")
        await self._uploads.check_quota(plan, size)
        self._uploads.check_majority()
        seals: dict[str, BlobSummary] = {}

        async def seal(node: str) -> None:
            if node == self._name:
                seals[node] = await self._staged.seal(upload.attempt, plan.file, plan.number, size)
                return
            message = m.UploadSeal(attempt=upload.attempt, file=plan.file, version=plan.number, size=size)
            stored: m.BlobStored = await self._together.while_available(node, self._cluster.links.ask(node, message, SEAL_S))
            seals[node] = BlobSummary(size=stored.size, digest=stored.digest)

        await self._all(seal, ready)
        digest, holders = agreed({node: summary for node, summary in seals.items() if summary.size == size}, ready)
        if digest is not None and upload.digest not in (None, digest):
            await self._give_up(upload.attempt)
            raise Refusal(
                Code.BAD_DIGEST,
                f"The digest of what arrived is {digest.hex()}, not the one of Repr-Digest. The upload has ended; begin a new one.",
            )
        needed = self._cluster.roster.settings.copies_needed
        if digest is None or len(holders) < needed:
            raise Refusal(
                Code.NO_ROOM,
                f"Only {len(holders)} of the {needed} copies needed agree. Nothing is lost; ask for the upload again.",
                retry_after_s=1.0,
                durable=len(holders),
            )
        commit = m.Commit(
            attempt=upload.attempt,
            person=upload.person,
            owner=plan.owner,
            parent=plan.parent,
            name=plan.name,
            file=plan.file,
            number=plan.number,
            size=size,
            digest=digest,
            algorithm=upload.algorithm,
            copies=self._copies(holders, plan, size),
        )
        await lock.confirm()
        return await self._commit(commit)

    def _copies(self, holders: list[str], plan: Plan, size: int) -> tuple[Copy, ...]:
        """Those that have it, and as many more as are wanted: they are to fetch it."""
        missing = self._cluster.roster.settings.copies_wanted - len(holders)
        room = {node: available for node, available in self._cluster.room.items() if node not in holders}
        preferred = () if plan.before is None else plan.before.version.holders
        pending = place(missing, room=room, size=size, preferred=preferred, below=self._below) if missing > 0 else []
        return tuple(Copy(node=node, priority=number, durable=number < len(holders)) for number, node in enumerate([*holders, *pending]))

    async def _commit(self, commit: m.Commit) -> m.Committed:
        """Commit, and again while the answer is lost: the same attempt gets the same answer."""
        until = self._clock.seconds() + OUTCOME_S
        lost: OutcomeUnknown | None = None
        while True:
            try:
                committed: m.Committed = await self._acting.ask_admin(commit)
                return committed
            except OutcomeUnknown as unknown:
                lost = unknown
            except Refusal as refusal:
                if refusal.code is Code.ATTEMPT_ABANDONED:
                    raise Refusal(Code.GONE, "This upload was ended. Begin a new one.") from refusal
                if refusal.code is Code.OUTCOME_UNKNOWN:
                    lost = OutcomeUnknown(refusal.detail)
                elif lost is None or refusal.code is not Code.CATALOGUE_UNAVAILABLE:
                    raise
            if self._clock.seconds() >= until:
                raise lost
            await deferLater(self._clock, OUTCOME_AGAIN_S)

    async def _give_up(self, attempt: AttemptId) -> None:
        await self._acting.ask_admin(m.OutcomeAsk(attempt=attempt, abandon=True))
        await self._drop(attempt)

    async def _drop(self, attempt: AttemptId, nodes: Sequence[str] | None = None) -> None:
        """Let these holders forget it; None: everybody."""

        async def drop(node: str) -> None:
            if node == self._name:
                await self._staged.drop(attempt)
            else:
                asking = self._cluster.links.ask(node, m.UploadDrop(attempt=attempt), LOOK_S)
                await self._reachable.while_available(node, asking)

        await self._all(drop, self._cluster.roster.nodes if nodes is None else nodes)

    # --- concatenation ---

    async def _concatenate(self, access: Access, asked: Creation, final: Final) -> State:
        """An upload whose bytes are those of its parts. Asked for twice, it is one."""
        target = asked.target(access.signed_in.username)
        said = "\0".join([access.signed_in.username, str(target), str(asked.if_match), str(asked.if_none_match), *map(str, final.parts)])
        attempt = AttemptId(hashlib.sha256(b"final\0" + said.encode()).digest()[:16])
        seen, _ = await self._gather(access, attempt)
        if seen is not None:
            committed = await self._committed(seen)
            if committed is not None:
                return State(upload=seen.upload, note=seen.note, committed=committed)
        parts = [await self._part(access, part) for part in final.parts]
        length = sum(part.note.offset for part in parts)
        if seen is None:
            seen = await self._begin(access, self._new(access, attrs.evolve(asked, length=length), attempt), length)
        body = _FromParts(self, parts, seen.note.offset)
        try:
            state = await self._take(None, access, seen, length, body, None)
        finally:
            body.close()
        for part in final.parts:
            await self._drop(part)
        return state

    async def _part(self, access: Access, attempt: AttemptId) -> _Seen:
        seen = await self._known(access, attempt)
        if seen.upload.concat != "partial":
            raise Refusal(Code.BAD_REQUEST, f"{attempt} is not a partial upload (Upload-Concat: partial).")
        if seen.note.offset != seen.note.length:
            raise Refusal(
                Code.CONFLICT, f"The part {attempt} is not complete: {seen.note.offset} of {seen.note.length} bytes.", retry_after_s=1.0
            )
        return seen

    async def source_of(self, seen: _Seen, start: int) -> Any:
        """An `IByteSource` over an upload from `start`, from any holder that has all of it. Raises `Refusal`."""
        attempt, stop = seen.upload.attempt, seen.note.offset
        for node in sorted((node for node in seen.holders if seen.has_all(node)), key=lambda node: node != self._name):
            try:
                if node == self._name:
                    return (await self._staged.read(attempt, start, stop))[1]
                return (await self._pool.fetch(node, m.FetchBlob(attempt=attempt, start=start, stop=stop), FETCH_S))[1]
            except (*LOST, NoSuchBlob) as error:
                self._log.info("{node} does not give {attempt}: {problem}", node=node, attempt=str(attempt), problem=str(error))
        raise Refusal(Code.NO_HOLDER, f"No holder gives the part {attempt} now. Try again.", retry_after_s=2.0)


class _FromClient:
    """The body of a request."""

    def __init__(self, uploads: Uploads, request: Request) -> None:
        self.reasons: list[str] = []
        """Why it was cut off."""
        self._uploads = uploads
        self._request = request

    async def read(self) -> bytes:
        """See `_Body`."""
        return await self._uploads.read_body(self._request, self.reasons)


class _FromParts:
    """The bytes of partial uploads, one after the other, from an offset on."""

    def __init__(self, resumable: Resumable, parts: list[_Seen], start: int) -> None:
        self._resumable = resumable
        self._parts = parts
        self._skip = start
        self._source: Any = None

    async def read(self) -> bytes:
        """See `_Body`."""
        while True:
            if self._source is None:
                if not self._parts:
                    return b""
                part, self._parts = self._parts[0], self._parts[1:]
                size = part.note.offset
                if self._skip >= size:
                    self._skip -= size
                    continue
                self._source = await self._resumable.source_of(part, self._skip)
                self._skip = 0
            try:
                data: bytes = await self._source.read()
            except StreamBroken as error:
                raise Refusal(Code.NO_HOLDER, f"A part could not be read to its end: {error}. Try again.", retry_after_s=1.0) from error
            if data:
                return data
            self._source = None

    def close(self) -> None:
        """No more is wanted."""
        if self._source is not None:
            self._source.close()


def header_of(upload: StagedUpload) -> Header:
    """The headers that the upload was created with, as far as they matter for what it becomes."""
    return {"if-match": upload.if_match, "if-none-match": upload.if_none_match}.get


def agreed(seals: dict[str, BlobSummary], order: Sequence[str]) -> tuple[bytes | None, list[str]]:
    """The digest that most holders have, and those that have it, in `order`. Equally many: nobody can say which is right.

    Returns:
        None and nobody when there is none.
    """
    count = Counter(summary.digest for summary in seals.values()).most_common(2)
    if not count or (len(count) == 2 and count[0][1] == count[1][1]):
        return None, []
    digest = count[0][0]
    return digest, [node for node in order if node in seals and seals[node].digest == digest]

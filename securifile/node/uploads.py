"""The write path: from the head of a `PUT` to an answer that means "durable, everywhere known".

1 judge      from the head alone: may they, is there quota, is this the right node; refuse or redirect before the body
2 lock       the file, on every running server; the version to be made is fixed here
3 stream     once: to this disk, through the digest, and to the replicas
4 seal       fsync everywhere, and compare the checksums
5 commit     at the catalogue, a compare-and-swap; a lost answer is asked for
6 spread     tell every server, and answer when no node can serve the version before
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from securifile.http.answers import uploaded_json
from securifile.http.authentication import Authenticator, Caller
from securifile.http.digest_fields import format_digest, parse_digests
from securifile.http.exchange import Access, Answer
from securifile.http.lookup import Lookup, authorise
from securifile.http.ranges import Verdict, etag_of, evaluate, parse_preconditions
from securifile.http.redirects import Redirector, check_ticket
from securifile.http.request import Request
from securifile.http.targets import Target
from securifile.http.transfers import Transfer, Transfers
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import WHOLE_BYTES_MAX, BlobSummary, Copy, WholeBlob
from securifile.model.errors import Code, OutcomeUnknown, Refusal, StreamBroken
from securifile.model.facts import File, Folder
from securifile.model.ids import AttemptId, EntryId
from securifile.model.leases import first_granter, new_path_key
from securifile.model.placement import place
from securifile.model.roles import Action, Role
from securifile.model.serving import serving_order
from securifile.node.acting import Acting, file_of, no_catalogue
from securifile.node.cluster import Cluster
from securifile.node.company import Company, Guest
from securifile.node.fanout import Fanout, WholeFanout
from securifile.node.locks import Lock
from securifile.protocol import messages as m
from securifile.protocol.bulk import BulkPool
from securifile.sql import directory

KEY_LENGTH_MAX = 255
"""Of an Idempotency-Key: a UUID many times over."""

OUTCOME_S = 10.0
"""How long the outcome of a commit is asked for before the client hears that it is unknown."""

OUTCOME_AGAIN_S = 0.2

COMPANY_S = 0.02
"""How long a small upload that could be stored now waits for those that are being locked, at most: what a node takes to read and to judge
some tens of them. One that comes alone has nobody to wait for."""

Header = Callable[[str], str | None]
"""Gives a header of a request by its name in small letters."""

QUOTA_LOOK_BYTES = 8 * 1024 * 1024
"""How often the quota is looked at while a body of unknown length comes: what it may be exceeded by for a moment."""


@attrs.frozen(kw_only=True)
class Plan:
    """What an upload is to become."""

    owner: str
    parent: EntryId
    name: str
    file: EntryId
    before: File | None
    """The file as it is; None for a new path."""
    lock: bytes
    """What is locked while it is under way."""

    @property
    def number(self) -> int:
        """The version it makes."""
        return 1 if self.before is None else self.before.version.number + 1


@attrs.frozen(kw_only=True)
class Asked:
    """What the head of the request says, beside the path."""

    size: int | None
    digests: dict[DigestAlgorithm, bytes]
    key: str | None
    request: bytes
    """Hash of what must be equal when an Idempotency-Key comes again."""
    relay: bool

    @property
    def is_small(self) -> bool:
        """Whether the body is whole in memory before it is stored."""
        return self.size is not None and self.size <= WHOLE_BYTES_MAX


class Uploads:
    """Takes uploads on one node."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        cluster: Cluster,
        acting: Acting,
        lookup: Lookup,
        blobs: Any,
        pool: BulkPool,
        redirector: Redirector,
        authenticator: Authenticator,
        transfers: Transfers,
        random: Callable[[int], bytes],
        below: Callable[[int], int],
    ) -> None:
        self._clock = clock
        self._name = name
        self._cluster = cluster
        self._acting = acting
        self._lookup = lookup
        self._blobs = blobs
        self._pool = pool
        self._redirector = redirector
        self._authenticator = authenticator
        self._transfers = transfers
        self._random = random
        self._below = below
        self._company = Company(clock, COMPANY_S)
        """Of small uploads, on their way to where they are stored."""
        self.under_way: set[AttemptId] = set()
        """Attempts that began here and have not ended: nobody may ask the catalogue to abandon them."""

    async def put(self, request: Request, access: Access, target: Target) -> Answer:
        """Answer `PUT` of a file. Raises `Refusal`, or `OutcomeUnknown` when the commit's fate is not known."""
        asked = self._read_head(request, access, target)
        answered = await self._answered_before(access, asked, target)
        if answered is not None:
            return answered
        plan = await self.plan(request.header, access, target)
        elsewhere = await self._judge(request, access, target, plan, asked)
        if elsewhere is not None:
            return elsewhere
        attempt = AttemptId(self._random(16))
        guest = self._company.expect() if asked.is_small else None
        try:
            committed = await self._lock_and_make(request, access, target, plan, asked, attempt, guest)
        finally:
            if guest is not None:
                guest.leave()
        await self._acting.spread_version(committed, here=committed.attempt == attempt)
        return self._answer(access, committed, target)

    async def _lock_and_make(
        self, request: Request, access: Access, target: Target, plan: Plan, asked: Asked, attempt: AttemptId, guest: Guest | None
    ) -> m.Committed:
        first = self.first_granter(plan)
        lock = await self._cluster.locks.take(plan.lock, attempt, access.signed_in.username, first)
        self.under_way.add(attempt)
        try:
            fixed = await self.plan(request.header, access, target)
            if fixed.lock != plan.lock:
                raise Refusal(Code.CONFLICT, "Someone else created or deleted this path at the same time. Look at it, then upload again.")
            committed = await self._make(request, access, fixed, asked, attempt, lock, guest)
            if committed.attempt == attempt:
                lock.release(committed.known_by)
            return committed
        finally:
            self.under_way.discard(attempt)
            lock.release()

    def first_granter(self, plan: Plan) -> str:
        """Whose lease comes first: the acting origin's, even when this node relays, so that two starters ask the same one."""
        if plan.before is not None:
            return next(iter(serving_order(plan.before.version, self._cluster.is_available)), self._name)
        return first_granter(plan.lock, self._cluster.roster.running or [self._name])

    # --- 1: judge ---

    def _read_head(self, request: Request, access: Access, target: Target) -> Asked:
        if target.is_root:
            raise Refusal(Code.IS_A_FOLDER, "This is a folder. Name a file in it.")
        if request.header("content-range") is not None:
            raise Refusal(Code.BAD_REQUEST, "A part of a file cannot be uploaded with PUT (RFC 9110, 14.5). Upload the whole file.")
        if request.content_length is None and not request.has_body:
            # To HTTP this is an empty body. Of a file it is nearly always a mistake, and would empty what is there.
            raise Refusal(Code.LENGTH_REQUIRED, "Send the file as the body, with its Content-Length or in chunks.")
        key = request.header("idempotency-key")
        if key is not None and not (1 <= len(key) <= KEY_LENGTH_MAX and key.isprintable()):
            raise Refusal(Code.BAD_REQUEST, f"An Idempotency-Key has 1 to {KEY_LENGTH_MAX} printable characters.")
        conditions = "\0".join(str(request.header(name)) for name in ("if-match", "if-none-match"))
        same = f"{access.signed_in.username}\0{target}\0{conditions}"
        digests = request.header("repr-digest")
        return Asked(
            size=request.content_length,
            digests={} if digests is None else parse_digests(digests),
            key=key,
            request=hashlib.sha256(same.encode()).digest(),
            relay=request.query("relay") == "1",
        )

    async def _answered_before(self, access: Access, asked: Asked, target: Target) -> Answer | None:
        if asked.key is None:
            return None
        outcome: m.Outcome = await self._acting.ask_admin(m.KeyAsk(person=access.signed_in.username, key=asked.key, request=asked.request))
        if outcome.committed is None:
            return None
        access.path, access.detail = str(target), "answered from memory"
        # Its first answer may have been lost before every node knew of the version.
        await self._acting.spread_version(outcome.committed, here=False)
        return self._answer(access, outcome.committed, target)

    async def plan(self, header: Header, access: Access, target: Target) -> Plan:
        """What an upload with these headers would become now, if the person may and the preconditions hold. Raises `Refusal`."""
        where, role = await self._lookup.look(access, target)
        entry = where.entry
        if isinstance(entry, Folder):
            authorise(role, Action.READ)
            raise Refusal(Code.IS_A_FOLDER, "There is a folder at this path.")
        if entry is None:
            parent = self._lookup.parent_of(where, role)
            plan = Plan(
                owner=target.owner,
                parent=parent.id,
                name=target.name,
                file=EntryId(self._random(16)),
                before=None,
                lock=new_path_key(parent.id, target.name),
            )
            check_ticket(access.signed_in, parent.id, plan.number, name=plan.name)
        else:
            authorise(role, Action.MODIFY)
            plan = Plan(owner=entry.owner, parent=entry.parent, name=entry.name, file=entry.id, before=entry, lock=entry.id.value)
            check_ticket(access.signed_in, entry.id, plan.number)
        etag = None if plan.before is None else etag_of(plan.before.id, plan.before.version.number)
        if evaluate(parse_preconditions(header), "PUT", etag) is not Verdict.PROCEED:
            raise Refusal(Code.PRECONDITION_FAILED, "The precondition does not hold.")
        return plan

    async def _judge(self, request: Request, access: Access, target: Target, plan: Plan, asked: Asked) -> Answer | None:
        """Refuse or redirect; None when the upload is to be taken here."""
        if not self._acting.has_catalogue():
            raise no_catalogue()
        await self.check_quota(plan, asked.size or 0)
        caller = access.signed_in
        if plan.before is not None:
            order = serving_order(plan.before.version, self._cluster.is_available)
            if not order:
                raise Refusal(
                    Code.NO_HOLDER,
                    "No server that has this file is running. Try again later.",
                    retry_after_s=5.0,
                    tried=list(plan.before.version.holders),
                )
            if order[0] != self._name and not asked.relay:
                return self._redirector.to(request, caller, target, node=order[0], file=plan.before.id, version=plan.number)
        self.check_majority()
        needed = self._cluster.roster.settings.copies_needed
        size = asked.size or 0
        with_room = [node for node, available in self._cluster.room.items() if available >= size]
        if 1 + len(with_room) < needed:
            raise Refusal(
                Code.NO_ROOM,
                f"Only {1 + len(with_room)} running nodes have room for this, {needed} are needed.",
                retry_after_s=5.0,
                needed=needed,
            )
        space = await self._blobs.space()
        if size > space.available_bytes:
            if with_room and not asked.relay:
                return self._to_room(request, caller, target, plan, with_room)
            raise Refusal(Code.DISK_FULL, "This node's disk has no room for that. Upload through another node.", node=self._name)
        return None

    def _to_room(self, request: Request, caller: Caller, target: Target, plan: Plan, with_room: list[str]) -> Answer:
        """Send an upload that does not fit here to a node on which it does; of a file that is there, rather to one that holds it."""
        if plan.before is None:
            return self._redirector.to(request, caller, target, node=with_room[0], file=plan.parent, name=plan.name, version=plan.number)
        holders = [name for name in plan.before.version.holders if name in with_room]
        node = (holders or with_room)[0]
        # Else it would send the upload back, to the first in line.
        return self._redirector.to(request, caller, target, node=node, file=plan.before.id, version=plan.number, relay=True)

    def check_majority(self) -> None:
        """Refuse early what could not be answered: too few nodes can be told of a new version (`model/spreading.py`)."""
        admitted = self._cluster.roster.admitted
        reachable = sum(self._cluster.is_available(name) for name in admitted)
        if (len(admitted) - reachable) * 2 > len(admitted):
            raise Refusal(
                Code.NO_ROOM,
                f"Only {reachable} of {len(admitted)} nodes can be reached, too few to tell of a new version. Try again.",
                retry_after_s=5.0,
                reachable=reachable,
                nodes=len(admitted),
            )

    async def check_quota(self, plan: Plan, size: int) -> None:
        """Refuse a size that the owner's quota has no room for."""
        owner = await self._acting.recall(("person", plan.owner), lambda sql: directory.person(sql, plan.owner), of_files=False)
        if owner is None or owner.quota_bytes is None:
            return
        used = (await self._acting.read(lambda sql: directory.usage(sql, plan.owner))).bytes
        before = plan.before.version.size if plan.before is not None else 0
        if used - before + size > owner.quota_bytes and size > before:
            raise Refusal(
                Code.QUOTA,
                f"This needs {used - before + size} bytes, and the quota of {plan.owner} is {owner.quota_bytes}.",
                quota=owner.quota_bytes,
                used=used,
            )

    # --- 3 and 4: stream and seal ---

    async def _make(
        self, request: Request, access: Access, plan: Plan, asked: Asked, attempt: AttemptId, lock: Lock, guest: Guest | None
    ) -> m.Committed:
        settings = self._cluster.roster.settings
        size = asked.size or 0
        preferred = () if plan.before is None else plan.before.version.holders
        chosen = place(settings.replicas, room=self._cluster.room, size=size, preferred=preferred, below=self._below)

        def replacement(tried: Sequence[str]) -> str | None:
            room = {node: available for node, available in self._cluster.room.items() if node not in tried}
            found = place(1, room=room, size=size, preferred=preferred, below=self._below)
            return found[0] if found else None

        if guest is not None:
            return await self._make_whole(request, access, plan, asked, attempt, lock, chosen, replacement, guest)
        writer = await self._blobs.begin(attempt, settings.digest)
        fanout = Fanout(
            clock=self._clock,
            pool=self._pool,
            is_available=self._cluster.is_available,
            request=m.StoreBlob(
                attempt=attempt, file=plan.file, version=plan.number, algorithm=settings.digest, size=asked.size, vouched=True
            ),
            writer=writer,
            replacement=replacement,
        )
        try:
            await fanout.begin(chosen)
            summary = await self._stream(request, access, asked, fanout, writer, plan)
            replicas = await fanout.finish(summary)
            return await self._commit_durable(access, plan, asked, attempt, lock, summary, replicas)
        except OutcomeUnknown:
            raise
        except BaseException:
            fanout.abort()
            await writer.abandon()
            self._give_up(attempt)
            raise

    async def _make_whole(
        self,
        request: Request,
        access: Access,
        plan: Plan,
        asked: Asked,
        attempt: AttemptId,
        lock: Lock,
        chosen: Sequence[str],
        replacement: Callable[[Sequence[str]], str | None],
        guest: Guest,
    ) -> m.Committed:
        """As the rest of `_make`, for a body that is small: it is stored everywhere at once when it is complete."""
        if not request.body.ended:
            # A client that is slow holds up nobody.
            guest.leave()
        reasons: list[str] = []
        pieces: list[bytes] = []
        transfer = self.watch(request, access, plan, reasons)
        with self._transfers.watched(transfer):
            await self._check_again(request, transfer)
            while data := await self.read_body(request, reasons):
                pieces.append(data)
        algorithm = self._cluster.roster.settings.digest
        blob = WholeBlob(attempt=attempt, file=plan.file, version=plan.number, algorithm=algorithm, data=b"".join(pieces))
        access.bytes = len(blob.data)
        for other, expected in asked.digests.items():
            hasher = other.hasher()
            hasher.update(blob.data)
            _check_digest(other, hasher.digest(), expected)
        await guest.arrive()
        fanout = WholeFanout(
            clock=self._clock, pool=self._pool, is_available=self._cluster.is_available, blob=blob, replacement=replacement
        )
        own = self._blobs.keep(blob)
        try:
            summary, replicas = await fanout.store(chosen, own)
            return await self._commit_durable(access, plan, asked, attempt, lock, summary, replicas)
        except OutcomeUnknown:
            raise
        except BaseException:
            own.addErrback(lambda _: None)  # said already, or nobody's any more
            self._give_up(attempt)
            raise

    async def _commit_durable(
        self,
        access: Access,
        plan: Plan,
        asked: Asked,
        attempt: AttemptId,
        lock: Lock,
        summary: BlobSummary,
        replicas: Sequence[Copy],
    ) -> m.Committed:
        """Commit, if there are as many copies as are needed."""
        settings = self._cluster.roster.settings
        copies = (Copy(node=self._name, priority=0, durable=True), *replicas)
        durable = sum(copy.durable for copy in copies)
        if durable < settings.copies_needed:
            raise Refusal(
                Code.NO_ROOM,
                f"Only {durable} of the {settings.copies_needed} copies needed could be made. Nothing was stored; upload again.",
                retry_after_s=1.0,
                durable=durable,
            )
        await lock.confirm()
        return await self._commit(access, plan, asked, attempt, settings.digest, summary, copies)

    async def _stream(self, request: Request, access: Access, asked: Asked, fanout: Fanout, writer: Any, plan: Plan) -> BlobSummary:
        checks = {algorithm: algorithm.hasher() for algorithm in asked.digests if algorithm != self._cluster.roster.settings.digest}
        reasons: list[str] = []
        transfer = self.watch(request, access, plan, reasons)
        with self._transfers.watched(transfer):
            await self._check_again(request, transfer)
            looked_at = 0
            while data := await self.read_body(request, reasons):
                for hasher in checks.values():
                    hasher.update(data)
                await fanout.write(data)
                while await fanout.pour(request.body, tuple(checks.values())):
                    pass
                if asked.size is None and writer.received - looked_at >= QUOTA_LOOK_BYTES:
                    # Nobody said how much will come: an endless body must not fill the disks first and be refused then.
                    looked_at = writer.received
                    await self.check_quota(plan, looked_at)
        access.bytes = writer.received
        summary: BlobSummary = await writer.finish(plan.file, plan.number)
        for algorithm, expected in asked.digests.items():
            _check_digest(algorithm, checks[algorithm].digest() if algorithm in checks else summary.digest, expected)
        return summary

    async def _check_again(self, request: Request, transfer: Transfer) -> None:
        """Since the rights were judged nobody watched: the lock and the replicas may have taken seconds. Raises `Refusal`."""
        if self._transfers.changed_at >= request.begun_at:
            await transfer.check()

    def watch(self, request: Request, access: Access, plan: Plan, reasons: list[str]) -> Transfer:
        """The upload as it is watched: cut off when the right to it ends, with the reason in `reasons`."""
        entry, action = (plan.parent, Action.CREATE) if plan.before is None else (plan.file, Action.MODIFY)

        def cut(reason: str) -> None:
            reasons.append(reason)
            request.body.break_off(reason)

        async def role(sql: Any) -> Role | None:
            return await directory.role_along(sql, access.signed_in.username, await directory.ancestry(sql, entry))

        async def check() -> None:
            access.caller = await self._authenticator.again(access.signed_in)
            key = ("role", entry, access.signed_in.username)
            authorise(await self._acting.recall(key, role, of_files=plan.before is not None), action)

        def has_ended() -> bool:
            return access.signed_in.has_ended(self._acting.wall())

        # A moment without standing ends no upload: whether this node is running is judged at the commit.
        return Transfer(entry=entry, check=check, cut=cut, has_ended=has_ended, needs_standing=False)

    async def read_body(self, request: Request, reasons: list[str]) -> bytes:
        """The next bytes; a `Refusal` when `watch` has cut the upload off, and said why in `reasons`."""
        try:
            data: bytes = await request.body.read()
        except StreamBroken:
            if not reasons:
                raise
        if reasons:
            raise Refusal(Code.FORBIDDEN, f"The upload was cut off: {reasons[0]}")
        return data

    def _give_up(self, attempt: AttemptId) -> None:
        """End the attempt: nothing of it is committed, and holders may delete what they have."""
        ending = Deferred.fromCoroutine(self._acting.ask_admin(m.OutcomeAsk(attempt=attempt, abandon=True)))
        ending.addCallback(lambda outcome: self._blobs.drop(attempt) if outcome.ended == "abandoned" else None)
        # The blobs stay staged where nobody could be asked; the housekeeping asks again.
        ending.addErrback(lambda failure: failure.trap(Refusal, OutcomeUnknown))
        ending.addErrback(lambda failure: self._log.failure("an upload could not be given up", failure))

    # --- 5: commit ---

    async def _commit(
        self,
        access: Access,
        plan: Plan,
        asked: Asked,
        attempt: AttemptId,
        algorithm: DigestAlgorithm,
        summary: BlobSummary,
        copies: tuple[Copy, ...],
    ) -> m.Committed:
        commit = m.Commit(
            attempt=attempt,
            person=access.signed_in.username,
            owner=plan.owner,
            parent=plan.parent,
            name=plan.name,
            file=plan.file,
            number=plan.number,
            size=summary.size,
            digest=summary.digest,
            algorithm=algorithm,
            copies=copies,
            key=asked.key,
            request=asked.request,
        )
        settling = self._cluster.settling
        settling.begin(attempt)
        try:
            committed = await self._ask_for_commit(commit)
        except BaseException:
            settling.give_up(attempt)
            raise
        if committed.attempt != attempt:
            settling.give_up(attempt)
            self._log.info("attempt {attempt} was answered by {winner}", attempt=attempt, winner=committed.attempt)
        return committed

    async def _ask_for_commit(self, commit: m.Commit) -> m.Committed:
        try:
            committed: m.Committed = await self._acting.ask_admin(commit)
            return committed
        except OutcomeUnknown as lost:
            return await self._outcome(commit.attempt, lost)
        except Refusal as refusal:
            if refusal.code is not Code.OUTCOME_UNKNOWN:
                raise
            return await self._outcome(commit.attempt, OutcomeUnknown(refusal.detail))

    async def _outcome(self, attempt: AttemptId, lost: OutcomeUnknown) -> m.Committed:
        """What became of a commit whose answer was lost. Raises `OutcomeUnknown` when nobody can tell in time."""
        until = self._clock.seconds() + OUTCOME_S
        while self._clock.seconds() < until:
            try:
                outcome: m.Outcome = await self._acting.ask_admin(m.OutcomeAsk(attempt=attempt, abandon=True), OUTCOME_S)
            except (Refusal, OutcomeUnknown):
                await deferLater(self._clock, OUTCOME_AGAIN_S)
                continue
            if outcome.committed is not None:
                return outcome.committed
            raise no_catalogue()
        raise lost

    # --- 6: answer ---

    def _answer(self, access: Access, committed: m.Committed, target: Target) -> Answer:
        file = file_of(committed)
        access.entry = file.id
        headers = [(b"ETag", etag_of(file.id, file.version.number).encode("ascii"))]
        digest = format_digest(file.version.algorithm, file.version.digest)
        if digest is not None:
            headers.append((b"Repr-Digest", digest.encode("ascii")))
        if committed.created:
            headers.append((b"Location", target.url().encode("ascii")))
        value = uploaded_json(file, str(target), self._cluster.roster.settings.copies_wanted)
        return Answer(status=201 if committed.created else 200, value=value, headers=tuple(headers))


def _check_digest(algorithm: DigestAlgorithm, found: bytes, expected: bytes) -> None:
    if found != expected:
        raise Refusal(
            Code.BAD_DIGEST,
            f"The {algorithm} digest of what arrived is {found.hex()}, not the {expected.hex()} of Repr-Digest. Upload again.",
        )

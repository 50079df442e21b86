"""Verification: this node as challenger of a returning one, and as prover when it returns itself.

The rules are in `model/verification.py`; here disks are read and questions sent. The challenger asks in batches, and reads its own
copies meanwhile. The prover reads each blob once a rejoin, however many challengers ask for it. What no challenger holds, it is
asked to check against the recorded digests itself.

Only the prover computes the recorded digest, which is the slow one. The challenger's own bytes are compared with the prover's by the
keyed digest, and are vouched for by their blocks' checksums and the digest in their sidecar, as in a scrub. When that is not enough
to tell whose copy is bad, it computes the digest as well, before anybody is blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import attrs
from blake3 import blake3
from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Version
from securifile.model.errors import Code, CorruptBlock, DeadlineExceeded, NoSuchBlob, PeerUnreachable, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId
from securifile.model.proofs import BadCopy, Proof, Reading, Report, Verdict
from securifile.model.settings import ClusterSettings
from securifile.model.verification import judge, picked_blocks, unreadable
from securifile.node.index import Index
from securifile.node.sidecars import BLOCK_BYTES
from securifile.protocol import messages as m
from securifile.protocol.heartbeats import Ask
from securifile.protocol.rpc import Handlers, Peer
from securifile.sql import directory

BATCH_FILES = 200
BATCH_BYTES = 64 * 1024 * 1024
"""A batch is read within a second or two, so that a prover that makes no progress is noticed soon."""

PAGE = 1000
"""Copies listed in one go: some tens of milliseconds, on a busy machine, of the thread that answers heartbeats, too."""

PROGRESS_S = 15.0
"""A prover that has not answered for so long, beyond the time its disk needs, has been interrupted."""

AGAIN_S = 0.5
"""A connection that is not up is tried again so often: after a power cut, those between nodes come up one by one."""

SLOWEST_BYTES_S = 4 * 1024 * 1024
"""A disk that gives less than this is broken."""

READ_BYTES_S = 200 * 1024 * 1024
"""What reading and hashing is reckoned with when the depth is chosen: a core with SHA-256, or a good disk."""

NAMED_MAX = 100
"""Bad copies named in a report; they are all counted."""

READINGS = 2
"""Blobs that are read at a time, whoever asks: a core for each on a small machine, and still nearly in order for a disk that turns."""

UNREADABLE = (CorruptBlock, OSError)

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class _Judged:
    verdict: Verdict
    own_bad: bool
    reason: str


def _batches(files: Sequence[directory.Held]) -> list[list[directory.Held]]:
    batches: list[list[directory.Held]] = []
    size = 0
    for held in files:
        if not batches or len(batches[-1]) >= BATCH_FILES or size + held.size > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(held)
        size += held.size
    return batches


class Verification:
    """Challenges and proofs of one node."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        name: str,
        index: Index,
        blobs: Any,
        ask: Ask,
        settings: Callable[[], ClusterSettings],
        own_copy_bad: Callable[[AttemptId, str], None],
        checked: Callable[[AttemptId], None] = lambda attempt: None,
    ) -> None:
        """Args:
        own_copy_bad: told of a copy on this node's disk that turned out to be rotten.
        checked: told of each blob that was read whole and has the recorded digest.
        """
        self._clock = clock
        self._name = name
        self._index = index
        self._blobs = blobs
        self._ask = ask
        self._settings = settings
        self._own_copy_bad = own_copy_bad
        self._checked = checked
        self._nonce = b""
        self._at_the_disk = DeferredSemaphore(READINGS)
        self._readings: dict[tuple[AttemptId, bool], Deferred[Any]] = {}

    @property
    def handlers(self) -> Handlers:
        """What others ask."""
        return {m.Verify: self._verify, m.Challenge: self._prove}

    # --- challenger ---

    async def _verify(self, peer: Peer, asked: m.Verify) -> m.Verified:
        await self._index.reached(asked.position)
        files = await self._list(asked)
        total = sum(held.size for held in files)
        whole = total <= self._settings().verification_budget_s * READ_BYTES_S
        self._log.info("verifying {subject}: {files} files, {bytes} bytes", subject=asked.subject, files=len(files), bytes=total)
        bad: list[BadCopy] = []
        own_bad = 0
        interrupted: str | None = None
        unheard = False
        judged = 0
        for listed in _batches(files):
            # What one of the two does not hold any more since the list was made is nobody's to prove.
            current = await directory.files(self._index.sql, [held.file.value for held in listed])
            batch = [file for file in current if {self._name, asked.subject} <= set(file.version.holders)]
            if not batch:
                continue
            try:
                found = await self._judged(asked, batch, whole)
            except PeerUnreachable as error:
                if not judged:
                    # It is we who cannot get there; others can, or it would not be verified.
                    raise Refusal(Code.NOT_RUNNING, f"{asked.subject} cannot be reached from {self._name}: {error}") from error
                interrupted, unheard = str(error), True
                break
            except (DeadlineExceeded, Refusal) as error:
                interrupted = str(error)
                # Its own disk is no way that could be cut.
                unheard = isinstance(error, DeadlineExceeded) and asked.subject != self._name
                break
            judged += len(found)
            for file, one in zip(batch, found, strict=True):
                own_bad += one.own_bad
                if one.own_bad:
                    self._own_copy_bad(file.version.attempt, "found rotten while another node was verified")
                if one.verdict.is_bad:
                    bad.append(BadCopy(file=file.id, attempt=file.version.attempt, verdict=one.verdict, reason=one.reason))
        report = Report(
            challenger=self._name,
            files=len(files),
            bytes=total,
            whole=whole,
            bad=tuple(bad[:NAMED_MAX]),
            bad_count=len(bad),
            own_bad=own_bad,
            interrupted=interrupted,
            unheard=unheard,
        )
        self._log.info(
            "verified {subject}: {files} files, {bad} of them bad; {own} bad here",
            subject=asked.subject,
            files=report.files,
            bad=report.bad_count,
            own=report.own_bad,
            report=report,
        )
        return m.Verified(report=report)

    async def _list(self, asked: m.Verify) -> list[directory.Held]:
        """What to ask for: what both hold; or of the own copies what no challenger holds. Between pages others get a turn."""
        is_own = asked.subject == self._name
        others = asked.challengers if is_own else (asked.subject,)
        found: list[directory.Held] = []
        after = b""
        while True:
            page = await directory.held_by(self._index.sql, self._name, others, after, PAGE)
            found += [held for held in page if held.elsewhere is not is_own]
            if len(page) < PAGE:
                return found
            after = page[-1].file.value
            await deferLater(self._clock, 0)

    async def _judged(self, asked: m.Verify, files: Sequence[File], whole: bool) -> list[_Judged]:
        """Ask for these and judge the answers.

        Where both copies are sound in themselves and differ, both sides read the file whole, with the recorded digest, before anybody is
        blamed.
        """
        is_own = asked.subject == self._name
        reading = _all([self._own(asked.nonce, file.version, whole) for file in files] if not is_own else [])
        try:
            proofs = await self._settled_proofs(asked, files, whole)
        except BaseException:
            reading.cancel()
            reading.addErrback(lambda failure: None)
            raise
        owns: Sequence[Reading | None] = await reading or [None] * len(files)
        now = {file.id: file for file in await directory.files(self._index.sql, [file.id.value for file in files])}
        found = []
        for file, proof, own in zip(files, proofs, owns, strict=True):
            verdict, own_bad = self._judge(asked, file, proof, own, now.get(file.id), whole)
            if verdict is None:
                self._log.warn(
                    "the copies of {file} differ: it is read whole here and on {subject}", file=str(file.id), subject=asked.subject
                )
                (proof,) = await self._settled_proofs(asked, [file], True)
                own = await self._read(asked.nonce, file.version.attempt, file.version.algorithm)
                known = await directory.entry_by_id(self._index.sql, file.id)
                verdict, own_bad = self._judge(asked, file, proof, own, known if isinstance(known, File) else None, True)
                assert verdict is not None, "with the recorded digest of both there is a verdict"
            found.append(_Judged(verdict=verdict, own_bad=own_bad, reason=proof.problem if verdict is Verdict.CORRUPT else ""))
        return found

    async def _settled_proofs(self, asked: m.Verify, files: Sequence[File], whole: bool) -> list[Proof]:
        """Proofs that say something. A prover that cannot read just now is asked again, and if that does not pass has been interrupted."""
        until = self._clock.seconds() + PROGRESS_S
        found: dict[AttemptId, Proof] = {}
        left = list(files)
        while True:
            for proof in await self._proofs(asked, left, whole):
                found[proof.attempt] = proof
            left = [file for file in left if found[file.version.attempt].passing]
            if not left:
                return [found[file.version.attempt] for file in files]
            if self._clock.seconds() + AGAIN_S > until:
                problem = found[left[0].version.attempt].problem
                raise Refusal(Code.NOT_RUNNING, f"{asked.subject} cannot read {len(left)} files now: {problem}")
            await deferLater(self._clock, AGAIN_S)

    async def _proofs(self, asked: m.Verify, files: Sequence[File], whole: bool) -> tuple[Proof, ...]:
        challenge = m.Challenge(
            nonce=asked.nonce,
            whole=whole,
            items=tuple(m.ChallengeItem(file=file.id, attempt=file.version.attempt, algorithm=file.version.algorithm) for file in files),
        )
        timeout_s = PROGRESS_S + sum(file.version.size for file in files) / SLOWEST_BYTES_S
        if asked.subject == self._name:
            return (await self._ask_itself(challenge, timeout_s)).proofs
        answer: m.Proofs = await self._reach(asked.subject, challenge, timeout_s)
        if [proof.attempt for proof in answer.proofs] != [item.attempt for item in challenge.items]:
            raise Refusal(Code.BUG, f"{asked.subject} answers for other files than it was asked for")
        return answer.proofs

    async def _ask_itself(self, challenge: m.Challenge, timeout_s: float) -> m.Proofs:
        """A disk that hangs must not be waited for by anybody, its own node included."""

        def late(_: object, waited_s: float) -> Failure:
            return Failure(DeadlineExceeded(f"the disk of {self._name} gave nothing for {waited_s:g} s"))

        return await Deferred.fromCoroutine(self._answer(challenge)).addTimeout(timeout_s, self._clock, late)

    async def _reach(self, subject: str, challenge: m.Challenge, timeout_s: float) -> m.Proofs:
        """The answer; a connection that is not there, or was lost, may come back for as long as the answer might have taken."""
        until = self._clock.seconds() + timeout_s
        while True:
            try:
                answer: m.Proofs = await self._ask(subject, challenge, timeout_s)
                return answer
            except PeerUnreachable:
                if self._clock.seconds() + AGAIN_S > until:
                    raise
            await deferLater(self._clock, AGAIN_S)

    def _judge(
        self, asked: m.Verify, file: File, proof: Proof, own: Reading | None, now: File | None, whole: bool
    ) -> tuple[Verdict | None, bool]:
        """Judge one proof by what the index says `now` of the file."""
        version = file.version
        holders = () if now is None or now.version.attempt != version.attempt else now.version.holders
        if self._name not in holders:
            # Meanwhile somebody else was given our copy, and what is here may have been dropped.
            own = None
        still = asked.subject in holders
        return judge(proof, number=version.number, digest=version.digest, whole=whole, own=own, still_current=still)

    async def _own(self, nonce: bytes, version: Version, whole: bool) -> Reading:
        """The challenger's own copy: keyed; of whole files vouched for by its checksums, or with its plain digest where they do not."""
        own = await self._read(nonce, version.attempt, None, picked=not whole)
        if whole and own.keyed and own.noted != version.digest:
            own = await self._read(nonce, version.attempt, version.algorithm)
        if whole and own.keyed and (own.plain or own.noted) == version.digest:
            self._checked(version.attempt)
        return own

    # --- prover ---

    async def _prove(self, peer: Peer, asked: m.Challenge) -> m.Proofs:
        return await self._answer(asked)

    async def _answer(self, asked: m.Challenge) -> m.Proofs:
        if asked.nonce != self._nonce:
            self._nonce, self._readings = asked.nonce, {}
        recorded: dict[AttemptId, bytes] = {}
        if asked.whole:
            for file in await directory.files(self._index.sql, [item.file.value for item in asked.items]):
                recorded[file.version.attempt] = file.version.digest
        return m.Proofs(proofs=tuple(await _all([self._proof(asked, item, recorded.get(item.attempt)) for item in asked.items])))

    async def _proof(self, asked: m.Challenge, item: m.ChallengeItem, recorded: bytes | None) -> Proof:
        key = item.attempt, asked.whole
        reading = self._readings.get(key)
        if reading is None:
            reading = self._readings[key] = Deferred.fromCoroutine(self._proving(asked, item, recorded))
            # Whoever waits for it must be told, and not wait for ever.
            reading.addErrback(_Broken)
        # A second challenger waits for the same reading: it must not be consumed by the first.
        shared: Deferred[Reading] = Deferred()
        reading.addCallback(_passing_on(shared))
        found = await shared
        if found.passing:
            # Nothing was read: whoever asks again has it tried again.
            self._readings.pop(key, None)
        if not found.present:
            current = await directory.entry_by_id(self._index.sql, item.file)
            knows = current.version.number if isinstance(current, File) else None
            return Proof(attempt=item.attempt, present=False, knows=knows)
        return Proof(attempt=item.attempt, present=True, plain=found.plain, keyed=found.keyed, problem=found.problem, passing=found.passing)

    async def _proving(self, asked: m.Challenge, item: m.ChallengeItem, recorded: bytes | None) -> Reading:
        found = await self._read(asked.nonce, item.attempt, item.algorithm if asked.whole else None, picked=not asked.whole)
        if recorded is not None and found.plain == recorded:
            self._checked(item.attempt)
        return found

    # --- the disk ---

    async def _read(self, nonce: bytes, attempt: AttemptId, algorithm: DigestAlgorithm | None, *, picked: bool = False) -> Reading:
        """The keyed digest of a blob, or of blocks picked by the nonce, and with an algorithm the plain one, from one reading."""
        plain, keyed = None if algorithm is None else algorithm.hasher(), blake3(key=nonce)

        def take(data: bytes) -> None:
            if plain is not None:
                plain.update(data)
            keyed.update(data)

        def parts(size: int) -> Sequence[tuple[int, int]]:
            if not picked:
                return [(0, size)]
            blocks = picked_blocks(nonce, attempt, -(-size // BLOCK_BYTES))
            return [(block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, size)) for block in blocks]

        try:
            async with self._at_the_disk:
                sidecar = await self._blobs.feed(attempt, take, parts)
        except NoSuchBlob:
            return Reading(present=False)
        except UNREADABLE as error:
            return unreadable(error)
        return Reading(plain=b"" if plain is None else plain.digest(), keyed=keyed.digest(), noted=sidecar.digest)


def _all(work: Sequence[Coroutine[Any, Any, T]]) -> Deferred[list[T]]:
    """The results of all, or the first error. May be cancelled, with all that is still under way."""
    doing = gatherResults([Deferred.fromCoroutine(one) for one in work], consumeErrors=True)

    def failed(failure: Failure) -> Failure:
        error = failure.value
        return error.subFailure if isinstance(error, FirstError) else failure

    return doing.addErrback(failed)


@attrs.frozen
class _Broken:
    """A reading that failed in a way nobody foresaw, kept for all who ask."""

    failure: Failure


def _passing_on(waiting: Deferred[Any]) -> Callable[[Any], Any]:
    def pass_on(result: Any) -> Any:
        if not waiting.called:
            waiting.callback(result.failure if isinstance(result, _Broken) else result)
        return result

    return pass_on

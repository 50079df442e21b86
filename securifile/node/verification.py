"""Verification: this node as challenger of a returning one.

The rules are in `model/verification.py`; here questions are sent, and disks read (`readings.py`; the prover's side is `proving.py`). The
challenger asks in batches, and has always asked for the next one when it reads its own copies of the last. What no challenger holds, the
returning node is asked to check against the recorded digests itself.

Only the prover computes the recorded digest, which is the slow one. Where it has that, the challenger's own bytes are compared with the
prover's by the keyed digest and by nothing else. Where it has not, they have to be known for sound by themselves: each block is
compared with its checksum, and the sidecar's digest with the record, as in a scrub. When that is not enough to tell whose copy is
bad, the challenger computes the digest as well, before anybody is blamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Fact, File
from securifile.model.ids import AttemptId, EntryId
from securifile.model.proofs import BadCopy, Proof, Reading, Report, Verdict
from securifile.model.settings import ClusterSettings
from securifile.model.verification import judge, vouches
from securifile.node.index import Index
from securifile.node.proving import Prover
from securifile.node.readings import Question, Readings
from securifile.protocol import messages as m
from securifile.protocol.heartbeats import Ask
from securifile.protocol.rpc import Handlers, Peer
from securifile.sql import directory

BATCH_FILES = 200
BATCH_BYTES = 32 * 1024 * 1024
"""A batch is read within a second or so, so that a prover that makes no progress is noticed soon."""

AHEAD = 2
"""Batches asked for at a time: while the challenger reads its own copies of one, the prover has the next to read."""

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


@attrs.frozen(kw_only=True)
class _Judged:
    verdict: Verdict
    own_bad: bool
    reason: str


@attrs.frozen
class _Batch:
    """Files that are asked for together, as they were in the index when it had learned so much."""

    files: Sequence[File]
    learned: int


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
        self._ask = ask
        self._settings = settings
        self._own_copy_bad = own_copy_bad
        self._checked = checked
        self._readings = Readings(blobs)
        self._learned = 0
        """Facts that the index was told of: as long as there is none, what it said of files is what it says now."""
        index.listen(self._learn)
        self._prover = Prover(index=index, readings=self._readings, checked=checked)

    @property
    def handlers(self) -> Handlers:
        """What others ask."""
        return {m.Verify: self._verify, m.Challenge: self._prove}

    def _learn(self, fact: Fact) -> None:
        self._learned += 1

    async def _prove(self, peer: Peer, asked: m.Challenge) -> m.Proofs:
        return await self._prover.answer(asked)

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
        ahead = _Ahead(files, partial(self._current, asked), partial(self._settled_proofs, asked, whole))
        try:
            while True:
                try:
                    answered = await ahead.next()
                    if answered is None:
                        break
                    batch, proofs = answered
                    found = await self._judged(asked, batch, proofs, whole)
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
                for file, one in zip(batch.files, found, strict=True):
                    own_bad += one.own_bad
                    if one.own_bad:
                        self._own_copy_bad(file.version.attempt, "found rotten while another node was verified")
                    if one.verdict.is_bad:
                        bad.append(BadCopy(file=file.id, attempt=file.version.attempt, verdict=one.verdict, reason=one.reason))
        finally:
            ahead.stop()
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

    async def _current(self, asked: m.Verify, listed: Sequence[directory.Held]) -> _Batch:
        """What one of the two does not hold any more since the list was made is nobody's to prove."""
        learned = self._learned
        current = await directory.files(self._index.sql, [held.file.value for held in listed])
        return _Batch([file for file in current if {self._name, asked.subject} <= set(file.version.holders)], learned)

    async def _now(self, batch: _Batch) -> dict[EntryId, File]:
        """What the index says of a batch now."""
        files: Sequence[File] = batch.files
        if batch.learned != self._learned:
            files = await directory.files(self._index.sql, [file.id.value for file in files])
        return {file.id: file for file in files}

    async def _judged(self, asked: m.Verify, batch: _Batch, proofs: Sequence[Proof], whole: bool) -> list[_Judged]:
        """Judge the answers by what is on the own disk.

        Where both copies are sound in themselves and differ, both sides read the file whole, with the recorded digest, before anybody is
        blamed.
        """
        files = batch.files
        owns = await self._own(asked, files, proofs, whole)
        now = await self._now(batch)
        found = []
        for file, proof, own in zip(files, proofs, owns, strict=True):
            verdict, own_bad = self._judge(asked, file, proof, own, now.get(file.id), whole)
            if verdict is None:
                self._log.warn(
                    "the copies of {file} differ: it is read whole here and on {subject}", file=str(file.id), subject=asked.subject
                )
                (proof,) = await self._settled_proofs(asked, True, [file])
                (own,) = await self._readings.read(asked.nonce, [_whole(file)])
                known = await directory.entry_by_id(self._index.sql, file.id)
                verdict, own_bad = self._judge(asked, file, proof, own, known if isinstance(known, File) else None, True)
                assert verdict is not None, "with the recorded digest of both there is a verdict"
            found.append(_Judged(verdict=verdict, own_bad=own_bad, reason=proof.problem if verdict is Verdict.CORRUPT else ""))
        return found

    async def _settled_proofs(self, asked: m.Verify, whole: bool, files: Sequence[File], before: int = 0) -> list[Proof]:
        """Proofs that say something. A prover that cannot read just now is asked again, and if that does not pass has been interrupted.

        Args:
            before: so many bytes it was asked for before, and has not answered yet.
        """
        until = self._clock.seconds() + PROGRESS_S
        found: dict[AttemptId, Proof] = {}
        left = list(files)
        while True:
            for proof in await self._proofs(asked, whole, left, before):
                found[proof.attempt] = proof
            left = [file for file in left if found[file.version.attempt].passing]
            if not left:
                return [found[file.version.attempt] for file in files]
            if self._clock.seconds() + AGAIN_S > until:
                problem = found[left[0].version.attempt].problem
                raise Refusal(Code.NOT_RUNNING, f"{asked.subject} cannot read {len(left)} files now: {problem}")
            await deferLater(self._clock, AGAIN_S)

    async def _proofs(self, asked: m.Verify, whole: bool, files: Sequence[File], before: int) -> tuple[Proof, ...]:
        challenge = m.Challenge(
            nonce=asked.nonce,
            whole=whole,
            items=tuple(m.ChallengeItem(file=file.id, attempt=file.version.attempt, algorithm=file.version.algorithm) for file in files),
        )
        timeout_s = PROGRESS_S + (before + _bytes(files)) / SLOWEST_BYTES_S
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

        return await Deferred.fromCoroutine(self._prover.answer(challenge)).addTimeout(timeout_s, self._clock, late)

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

    async def _own(self, asked: m.Verify, files: Sequence[File], proofs: Sequence[Proof], whole: bool) -> Sequence[Reading | None]:
        """The challenger's own copies: keyed; with their plain digest where neither the prover nor their own checksums vouch for them."""
        if asked.subject == self._name:
            return [None] * len(files)
        vouched = [whole and vouches(proof, file.version.digest) for file, proof in zip(files, proofs, strict=True)]
        questions = [
            attrs.evolve(_whole(file), algorithm=None, picked=not whole, checked=not good)
            for file, good in zip(files, vouched, strict=True)
        ]
        owns = await self._readings.read(asked.nonce, questions)
        if not whole:
            return owns
        for at, (file, proof) in enumerate(zip(files, proofs, strict=True)):
            if not vouched[at] and owns[at].keyed and owns[at].noted != file.version.digest:
                (owns[at],) = await self._readings.read(asked.nonce, [_whole(file)])
            own = owns[at]
            if own.keyed and (own.keyed == proof.keyed if vouched[at] else (own.plain or own.noted) == file.version.digest):
                self._checked(file.version.attempt)
        return owns


class _Ahead:
    """Batches and their proofs, in order; the next ones are asked for before they are wanted."""

    def __init__(
        self,
        files: Sequence[directory.Held],
        current: Callable[[Sequence[directory.Held]], Awaitable[_Batch]],
        proofs: Callable[[Sequence[File], int], Coroutine[Any, Any, list[Proof]]],
    ) -> None:
        """Args:
        current: what is to be asked of a batch.
        proofs: asks for these, when so many bytes were asked for before and are not answered yet.
        """
        self._left = deque(_batches(files))
        self._current = current
        self._proofs = proofs
        self._asked: deque[tuple[_Batch, Deferred[list[Proof]]]] = deque()

    async def next(self) -> tuple[_Batch, list[Proof]] | None:
        """The next batch; None after the last."""
        while self._left and len(self._asked) < AHEAD:
            batch = await self._current(self._left.popleft())
            if batch.files:
                before = sum(_bytes(other.files) for other, _ in self._asked)
                self._asked.append((batch, Deferred.fromCoroutine(self._proofs(batch.files, before))))
        if not self._asked:
            return None
        batch, asking = self._asked[0]
        proofs = await asking
        self._asked.popleft()
        return batch, proofs

    def stop(self) -> None:
        """No other batch is wanted."""
        for _, asking in self._asked:
            asking.addErrback(lambda failure: None)
            asking.cancel()


def _bytes(files: Sequence[File]) -> int:
    return sum(file.version.size for file in files)


def _whole(file: File) -> Question:
    return Question(attempt=file.version.attempt, size=file.version.size, algorithm=file.version.algorithm)

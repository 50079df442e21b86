"""Returning nodes and their challengers, wired together in memory: each with its index and its blobs, on a clock that the test moves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
from blake3 import blake3
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import Code, CorruptBlock, DeadlineExceeded, PeerUnreachable, Refusal, StreamBroken
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.proofs import Proof, Report, Verdict
from securifile.model.settings import ClusterSettings
from securifile.model.verification import PICKS, picked_blocks
from securifile.node.feeding import UNREADABLE, Fed, Wanted
from securifile.node.index import Index
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.sidecars import BLOCK_BYTES
from securifile.node.verification import (
    AGAIN_S,
    AHEAD,
    BATCH_BYTES,
    BATCH_FILES,
    NAMED_MAX,
    PAGE,
    PROGRESS_S,
    READ_BYTES_S,
    SLOWEST_BYTES_S,
    Verification,
)
from securifile.protocol import messages as m
from securifile.protocol.rpc import Peer
from securifile.sql.sqlite import SqliteDatabase, run_now

ROOT = EntryId(b"r" * 16)
NONCE = b"n" * 32
NAMES = ("n1", "n2", "n3")


class Blobs(MemoryBlobs):
    """Counts what is read, and breaks where a test wants it to; or, when it is told to wait, reads when it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[AttemptId] = []
        self.wanted: list[Wanted] = []
        self.breaks: dict[AttemptId, Exception] = {}
        self.is_waiting = False
        self._later: list[Deferred[None]] = []

    def feed(self, wanted: Sequence[Wanted]) -> Deferred[list[Fed]]:
        """See `MemoryBlobs`."""
        self.opened += [one.attempt for one in wanted]
        self.wanted += wanted
        go_on: Deferred[None] = Deferred()
        reading = go_on.addCallback(lambda _: super(Blobs, self).feed(wanted))
        reading.addCallback(lambda fed: [self._broken(one, outcome) for one, outcome in zip(wanted, fed, strict=True)])
        if self.is_waiting:
            self._later.append(go_on)
        else:
            go_on.callback(None)
        return reading

    def _broken(self, wanted: Wanted, outcome: Fed) -> Fed:
        error = self.breaks.get(wanted.attempt)
        if isinstance(error, UNREADABLE):
            return error
        if error is not None:
            raise error
        return outcome

    def go_on(self) -> None:
        """Read what waits."""
        self.is_waiting = False
        later, self._later = self._later, []
        for one in later:
            one.callback(None)


@attrs.define(eq=False)
class Node:
    """One node's part of it."""

    blobs: Blobs
    index: Index
    verification: Verification
    own_bad: list[AttemptId]
    checked: list[AttemptId]


class World:
    """Three nodes. `silent` ones take what they are asked and never answer; `unreachable` ones are not connected."""

    def __init__(self, names: tuple[str, ...] = NAMES, settings: ClusterSettings | None = None) -> None:
        self.clock = Clock()
        self.settings = settings or ClusterSettings()
        self.silent: set[str] = set()
        self.unreachable: set[str] = set()
        self.asked: list[tuple[str, m.Challenge]] = []
        self.timeouts: list[float] = []
        self.answering: Callable[[str, m.Proofs], m.Proofs] = lambda name, proofs: proofs
        """Changes what a prover answers."""
        self.before: Callable[[int], None] = lambda number: None
        """Called before each challenge is answered, with its number from 0."""
        self.position = Position(1, 0)
        self.nodes = {name: self._node(name) for name in names}
        self.learn(f.Folder(id=ROOT, owner="alice", parent=None, name="alice", created_at=0.0))

    def _node(self, name: str) -> Node:
        index = Index(SqliteDatabase(None), lambda: 0.0)
        run_now(index.open())
        run_now(index.replace(self.position, []))
        blobs, own_bad, checked = Blobs(), list[AttemptId](), list[AttemptId]()
        verification = Verification(
            clock=self.clock,
            name=name,
            index=index,
            blobs=blobs,
            ask=self._ask,
            settings=lambda: self.settings,
            own_copy_bad=lambda attempt, reason: own_bad.append(attempt),
            checked=checked.append,
        )
        return Node(blobs, index, verification, own_bad, checked)

    def _ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        if name in self.unreachable:
            return fail(PeerUnreachable(f"{name} is not connected"))
        number = len(self.asked)
        self.asked.append((name, message))
        self.timeouts.append(timeout_s)
        self.before(number)
        answer: Deferred[Any] = Deferred(lambda _: late.cancel())
        late = self.clock.callLater(timeout_s, lambda: answer.errback(DeadlineExceeded(f"{name} is silent")))

        def answered(result: Any) -> Any:
            if late.active():
                late.cancel()
                answer.callback(result)

        if name not in self.silent:
            handling = Deferred.fromCoroutine(self.handle(name, message))
            handling.addCallback(lambda proofs: self.answering(name, proofs))
            handling.addBoth(answered)
        return answer

    async def handle(self, name: str, message: Any) -> Any:
        """A node's answer."""
        peer: Any = Peer
        return await self.nodes[name].verification.handlers[type(message)](peer, message)

    def learn(self, *facts: f.Fact, but: tuple[str, ...] = ()) -> None:
        """A change that the indexes of all nodes apply, except of those that are behind."""
        self.position = Position(1, self.position.revision + 1)
        for name, node in self.nodes.items():
            if name not in but:
                run_now(node.index.apply_changes(1, [f.Change(revision=self.position.revision, facts=facts)]))

    def file(
        self, number: int, content: bytes, *, on: tuple[str, ...] = ("n1", "n2"), pending: tuple[str, ...] = (), version: int = 1
    ) -> f.File:
        """A version of a file: its fact everywhere, its blob on its holders."""
        made = f.File(
            id=EntryId(number.to_bytes(16)),
            owner="alice",
            parent=ROOT,
            name=f"file-{number}",
            created_at=0.0,
            version=Version(
                number=version,
                attempt=AttemptId((1000 * version + number).to_bytes(16)),
                size=len(content),
                digest=hashlib.sha256(content).digest(),
                algorithm=DigestAlgorithm.SHA256,
                committed_at=0.0,
                committed_by="alice",
                copies=tuple(Copy(node=name, priority=at, durable=name not in pending) for at, name in enumerate((*on, *pending))),
            ),
        )
        for name in on:
            self.store(name, made, content)
        self.learn(made)
        return made

    def store(self, name: str, file: f.File, content: bytes) -> None:
        """Put a blob on a node."""
        writers: list[Any] = []
        self.nodes[name].blobs.begin(file.version.attempt, file.version.algorithm).addCallback(writers.append)
        writers[0].write(content)
        writers[0].finish(file.id, file.version.number)

    def verify(self, challenger: str, subject: str, nonce: bytes = NONCE, challengers: tuple[str, ...] = ()) -> list[Any]:
        """Have a node verify another: the outcome, once there is one."""
        outcome: list[Any] = []
        asked = m.Verify(subject=subject, nonce=nonce, position=self.position, challengers=challengers)
        Deferred.fromCoroutine(self.handle(challenger, asked)).addBoth(outcome.append)
        return outcome

    def prove(self, name: str, challenge: m.Challenge) -> tuple[Proof, ...]:
        """What a node answers to a challenge."""
        outcome: list[m.Proofs] = []
        Deferred.fromCoroutine(self.handle(name, challenge)).addCallback(outcome.append)
        return outcome[0].proofs

    def report(self, challenger: str, subject: str, nonce: bytes = NONCE, challengers: tuple[str, ...] = ()) -> Report:
        """What it finds, at once."""
        return reported(self.verify(challenger, subject, nonce, challengers))


def reported(outcome: list[Any]) -> Report:
    """The report that must be there by now."""
    assert outcome, "it waits"
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    report: Report = outcome[0].report
    return report


def verdicts(report: Report) -> list[tuple[int, Verdict]]:
    """(number of the file, verdict) of the bad copies."""
    return [(int.from_bytes(bad.file.value), bad.verdict) for bad in report.bad]


def test_an_honest_node() -> None:
    """Every file that both hold durably is proved, and no other; the report says how much that was."""
    world = World()
    for number in range(5):
        world.file(number, bytes([number]) * 1000)
    world.file(5, b"n2 alone", on=("n2",))
    world.file(6, b"not here yet", on=("n1",), pending=("n2",))
    world.file(7, b"not ours yet", on=("n2",), pending=("n1",))
    world.file(8, b"")
    report = world.report("n1", "n2")
    assert report == Report(challenger="n1", files=6, bytes=5000, whole=True)
    assert [item.file for _, asked in world.asked for item in asked.items] == [EntryId(number.to_bytes(16)) for number in (*range(5), 8)]


def test_one_rotten_and_one_missing_copy() -> None:
    """Each is named with its verdict; the others are good, and nothing is wrong with the challenger."""
    world = World()
    files = [world.file(number, b"x" * 3000) for number in range(4)]
    world.nodes["n2"].blobs.damage(files[1].version.attempt, 2999)
    world.nodes["n2"].blobs.drop(files[3].version.attempt)
    report = world.report("n1", "n2")
    assert verdicts(report) == [(1, Verdict.CORRUPT), (3, Verdict.MISSING)]
    assert (report.files, report.bad_count, report.own_bad, report.interrupted) == (4, 2, 0, None)
    assert world.nodes["n1"].own_bad == []


def test_a_copy_with_good_checksums_of_something_else() -> None:
    """A blob that is sound in itself, and is not what was recorded, is corrupt."""
    world = World()
    file = world.file(1, b"what was uploaded", on=("n1",))
    world.store("n2", file, b"what was not!!!!!")
    copies = (*file.version.copies, Copy(node="n2", priority=1, durable=True))
    world.learn(attrs.evolve(file, version=attrs.evolve(file.version, copies=copies)))
    assert verdicts(world.report("n1", "n2")) == [(1, Verdict.CORRUPT)]


def test_a_proof_is_of_the_moment() -> None:
    """It has the recorded digest, and one that is keyed with the nonce; without the blob it says what its index knows."""
    world = World()
    file = world.file(1, b"content")
    item = m.ChallengeItem(file=file.id, attempt=file.version.attempt, algorithm=DigestAlgorithm.SHA256)
    for nonce in (b"1" * 32, b"2" * 32):
        keyed = blake3(b"content", key=nonce).digest()
        for whole in (True, False):
            plain = file.version.digest if whole else b""
            proof = Proof(attempt=file.version.attempt, present=True, plain=plain, keyed=keyed)
            assert world.prove("n2", m.Challenge(nonce=nonce, whole=whole, items=(item,))) == (proof,)
    absent = Proof(attempt=file.version.attempt, present=False, knows=1)
    assert world.prove("n3", m.Challenge(nonce=NONCE, whole=True, items=(item,))) == (absent,)
    unknown = attrs.evolve(item, file=EntryId(b"?" * 16))
    assert world.prove("n3", m.Challenge(nonce=NONCE, whole=True, items=(unknown,))) == (attrs.evolve(absent, knows=None),)


def test_a_prover_that_only_knows_digests_is_caught() -> None:
    """The recorded digest without one that is keyed with the nonce of today proves nothing."""
    world = World()
    file = world.file(1, b"was here once")

    def cheat(name: str, proofs: m.Proofs) -> m.Proofs:
        old = blake3(b"was here once", key=b"o" * 32).digest()
        return m.Proofs(proofs=(Proof(attempt=file.version.attempt, present=True, plain=file.version.digest, keyed=old),))

    world.answering = cheat
    assert verdicts(world.report("n1", "n2")) == [(1, Verdict.CORRUPT)]


def test_the_challengers_own_rot_is_its_own() -> None:
    """A rotten or lost copy of the challenger fails nobody else: it counts it, and sees to it."""
    world = World()
    files = [world.file(number, b"y" * 3000) for number in range(4)]
    world.nodes["n1"].blobs.damage(files[0].version.attempt, 0)
    world.nodes["n1"].blobs.drop(files[2].version.attempt)
    report = world.report("n1", "n2")
    assert (report.bad_count, report.own_bad) == (0, 2)
    assert world.nodes["n1"].own_bad == [files[0].version.attempt, files[2].version.attempt]


@pytest.mark.parametrize("cheats", [False, True], ids=["honest", "without having read its disk"])
def test_a_challenger_computes_the_digest_only_where_somebody_is_to_be_blamed(cheats: bool) -> None:
    """Its checksums vouch for its copy; a prover that is keyed differently has it, and itself, read again with the recorded digest."""
    world = World()
    file = world.file(1, b"was here once")

    def cheat(name: str, proofs: m.Proofs) -> m.Proofs:
        old = blake3(b"was here once", key=b"o" * 32).digest()
        return m.Proofs(proofs=tuple(attrs.evolve(proof, keyed=old) for proof in proofs.proofs)) if cheats else proofs

    world.answering = cheat
    assert verdicts(world.report("n1", "n2")) == ([(1, Verdict.CORRUPT)] if cheats else [])
    assert world.nodes["n1"].blobs.opened == [file.version.attempt] * (2 if cheats else 1)


def test_a_challengers_copy_of_something_else_is_its_own_fault() -> None:
    """Its blocks are what was written, and its sidecar has another digest than the record: it is read again, and is the bad one."""
    world = World()
    file = world.file(1, b"recorded")
    world.nodes["n1"].blobs.drop(file.version.attempt)
    world.store("n1", file, b"of something else")
    report = world.report("n1", "n2")
    assert (verdicts(report), report.own_bad) == ([], 1)


def test_both_copies_are_rotten() -> None:
    """The prover's is its fault, the challenger's is the challenger's."""
    world = World()
    file = world.file(1, b"z" * 10)
    for name in ("n1", "n2"):
        world.nodes[name].blobs.damage(file.version.attempt, 5)
    report = world.report("n1", "n2")
    assert (verdicts(report), report.own_bad) == ([(1, Verdict.CORRUPT)], 1)


def test_a_disk_that_cannot_be_read_is_no_proof() -> None:
    """An error of the disk is a bad copy on the side where it happens, and is named."""
    for broken in (OSError(5, "Input/output error"), CorruptBlock("the sidecar is damaged", attempt=AttemptId(b"a" * 16))):
        world = World()
        file = world.file(1, b"here")
        world.nodes["n2"].blobs.breaks[file.version.attempt] = broken
        report = world.report("n1", "n2")
        assert verdicts(report) == [(1, Verdict.CORRUPT)]
        assert report.bad[0].reason == str(broken)
        world = World()
        file = world.file(1, b"here")
        world.nodes["n1"].blobs.breaks[file.version.attempt] = broken
        report = world.report("n1", "n2")
        assert (report.bad_count, report.own_bad) == (0, 1)


SHORT = OSError(24, "Too many open files")


def test_a_prover_that_is_short_of_something_is_asked_again() -> None:
    """It says nothing about the disk: no verdict, until it could be read; the other files need not be read again."""
    world = World()
    file, other = world.file(1, b"here"), world.file(2, b"here, too")
    world.nodes["n2"].blobs.breaks[file.version.attempt] = SHORT
    outcome = world.verify("n1", "n2")
    world.clock.pump([AGAIN_S] * 3)
    assert outcome == []
    world.nodes["n2"].blobs.breaks.clear()
    world.clock.advance(AGAIN_S)
    assert reported(outcome) == Report(challenger="n1", files=2, bytes=13, whole=True)
    assert [item.file for _, asked in world.asked[1:] for item in asked.items] == [file.id] * 4
    assert world.nodes["n2"].blobs.opened.count(other.version.attempt) == 1


def test_a_prover_that_stays_short_of_something_has_been_interrupted() -> None:
    """It makes no progress, and says why; still no copy of it is called bad."""
    world = World()
    file = world.file(1, b"here")
    world.nodes["n2"].blobs.breaks[file.version.attempt] = SHORT
    for challenger in ("n1", "n2"):
        outcome = world.verify(challenger, "n2")
        world.clock.pump([AGAIN_S] * int(PROGRESS_S / AGAIN_S + 1))
        report = reported(outcome)
        assert (report.bad_count, report.unheard) == (0, False)
        assert "Too many open files" in (report.interrupted or "")


def test_a_challenger_that_is_short_of_something_blames_nobody() -> None:
    """The prover is judged by the record, and the challenger's own copy is not called bad."""
    world = World()
    file = world.file(1, b"here")
    world.nodes["n1"].blobs.breaks[file.version.attempt] = SHORT
    assert world.report("n1", "n2") == Report(challenger="n1", files=1, bytes=4, whole=True)
    assert world.nodes["n1"].own_bad == []


def test_what_changes_meanwhile_is_gone() -> None:
    """Deleted, modified, or given to another holder while it is verified: nothing to prove, whatever is or is not there."""
    world = World()
    deleted, modified, moved = (world.file(number, b"before") for number in range(3))
    for file in (deleted, modified, moved):
        world.nodes["n2"].blobs.drop(file.version.attempt)

    def meanwhile(number: int) -> None:
        world.learn(f.EntryGone(id=deleted.id))
        world.file(1, b"after", version=2)
        copies = (Copy(node="n1", priority=0, durable=True), Copy(node="n2", priority=1, durable=False))
        world.learn(attrs.evolve(moved, version=attrs.evolve(moved.version, copies=copies)))

    world.before = meanwhile
    report = world.report("n1", "n2")
    assert (report.files, report.bad_count, report.own_bad) == (3, 0, 0)


def test_a_prover_ahead_of_its_challenger_is_not_blamed() -> None:
    """It has dropped an older version because its index knows the newer one; the challenger's does not yet."""
    world = World()
    file = world.file(1, b"before")
    newer = attrs.evolve(file, version=attrs.evolve(file.version, number=2, attempt=AttemptId(b"2" * 16)))
    world.nodes["n2"].blobs.drop(file.version.attempt)
    world.before = lambda number: world.learn(newer, but=("n1",))
    assert world.report("n1", "n2").bad_count == 0


def test_what_was_the_challengers_and_is_not_any_more() -> None:
    """A surplus copy of the challenger's that is dropped meanwhile is not rotten; the prover is judged by the record alone."""
    for damaged in (False, True):
        world = World()
        file = world.file(1, b"wanted twice", on=("n1", "n2", "n3"))
        if damaged:
            world.nodes["n2"].blobs.damage(file.version.attempt, 0)

        def surplus(number: int, world: World = world, file: f.File = file) -> None:
            copies = tuple(copy for copy in file.version.copies if copy.node != "n1")
            world.learn(attrs.evolve(file, version=attrs.evolve(file.version, copies=copies)))
            world.nodes["n1"].blobs.drop(file.version.attempt)

        world.before = surplus
        report = world.report("n1", "n2")
        assert (verdicts(report), report.own_bad) == ([(1, Verdict.CORRUPT)] if damaged else [], 0)


def test_a_challenger_first_catches_up() -> None:
    """It asks nothing before its index is where the admin server's was: it would ask for what is not current."""
    world = World()
    world.file(1, b"before")
    outcome = world.verify("n1", "n2")
    world.asked.clear()
    world.position = Position(1, world.position.revision + 1)
    outcome = world.verify("n1", "n2")
    assert (outcome, world.asked) == ([], [])
    world.position = Position(1, world.position.revision - 1)
    world.file(2, b"after")
    assert reported(outcome).files == 2


def test_a_prover_that_hangs_has_been_interrupted() -> None:
    """It took the question and gives no answer, for longer than its disk could need."""
    world = World()
    world.file(1, b"1" * SLOWEST_BYTES_S)
    world.silent.add("n2")
    outcome = world.verify("n1", "n2")
    world.clock.advance(PROGRESS_S + 0.9)
    assert outcome == []
    world.clock.advance(0.2)
    report = reported(outcome)
    assert (report.interrupted, report.unheard) == ("n2 is silent", True)
    assert world.clock.getDelayedCalls() == []


def test_a_prover_that_is_lost_on_the_way_has_been_interrupted() -> None:
    """It proved something, and then cannot be reached any more for longer than an answer may take."""
    world = World()
    for number in range(BATCH_FILES + 1):
        world.file(number, b"")
    world.before = lambda number: world.unreachable.add("n2")
    outcome = world.verify("n1", "n2")
    world.clock.pump([AGAIN_S] * int(PROGRESS_S / AGAIN_S - 1))
    assert outcome == []
    world.clock.pump([AGAIN_S] * 2)
    report = reported(outcome)
    assert (report.interrupted, report.unheard) == ("n2 is not connected", True)
    assert (report.files, report.bad_count) == (BATCH_FILES + 1, 0)


def test_a_connection_that_comes_late_is_waited_for() -> None:
    """After a power cut the admin server may reach both of two nodes before they reach each other."""
    world = World()
    world.file(1, b"here")
    world.unreachable.add("n2")
    outcome = world.verify("n1", "n2")
    world.clock.pump([AGAIN_S] * 3)
    assert outcome == []
    world.unreachable.clear()
    world.clock.advance(AGAIN_S)
    assert reported(outcome) == Report(challenger="n1", files=1, bytes=4, whole=True)


def test_a_challenger_that_never_gets_there_has_no_verdict() -> None:
    """Two nodes that are cut off from each other fail neither: who cannot ask says so, and others judge."""
    world = World()
    world.file(1, b"here")
    world.unreachable.add("n2")
    outcome = world.verify("n1", "n2")
    world.clock.pump([AGAIN_S] * int(PROGRESS_S / AGAIN_S + 1))
    assert outcome[0].check(Refusal)
    assert outcome[0].value.code is Code.NOT_RUNNING


def test_a_refusing_prover_has_been_interrupted() -> None:
    """Neither a refusal nor proofs of other files than were asked for are proofs."""
    world = World()
    file = world.file(1, b"here")
    other = Proof(attempt=AttemptId(b"o" * 16), present=True)
    good = Proof(attempt=file.version.attempt, present=True)
    wrong: tuple[tuple[Proof, ...], ...] = ((), (other,), (good, good))
    for proofs in wrong:

        def answer(name: str, _: m.Proofs, proofs: tuple[Proof, ...] = proofs) -> m.Proofs:
            return m.Proofs(proofs=proofs)

        world.answering = answer
        report = world.report("n1", "n2")
        assert report.interrupted is not None
        assert not report.unheard

    def refuse(name: str, _: m.Proofs) -> m.Proofs:
        raise Refusal(Code.BUG, "no")

    world.answering = refuse
    assert world.report("n1", "n2").interrupted is not None


def test_many_files_come_in_batches() -> None:
    """So many files, or so many bytes, and then the next question: progress can be seen."""
    world = World()
    for number in range(2 * BATCH_FILES + 1):
        world.file(number, b"")
    assert world.report("n1", "n2").files == 2 * BATCH_FILES + 1
    assert [len(asked.items) for _, asked in world.asked] == [BATCH_FILES, BATCH_FILES, 1]
    world = World()
    large = b"\0" * (BATCH_BYTES // 2 + 1)
    for number in range(2):
        world.file(number, large)
    world.report("n1", "n2")
    assert [len(asked.items) for _, asked in world.asked] == [1, 1]


def test_the_prover_has_the_next_batch_while_the_challenger_reads() -> None:
    """Two are asked for at a time; the one after them when the challenger has read its own copies of the first."""
    world = World()
    for number in range(3 * BATCH_FILES):
        world.file(number, b"")
    world.nodes["n1"].blobs.is_waiting = True
    outcome = world.verify("n1", "n2")
    assert (outcome, len(world.asked), len(world.nodes["n1"].blobs.opened)) == ([], AHEAD, BATCH_FILES)
    world.nodes["n1"].blobs.go_on()
    assert (reported(outcome).files, len(world.asked)) == (3 * BATCH_FILES, 3)


def test_a_batch_has_the_time_of_those_before_it() -> None:
    """The prover reads them first."""
    world = World()
    for number in range(3):
        world.file(number, b"x" * (number * SLOWEST_BYTES_S) + b"\0" * (BATCH_BYTES // 2 + 1))
    world.silent.add("n2")
    outcome = world.verify("n1", "n2")
    first = PROGRESS_S + (BATCH_BYTES // 2 + 1) / SLOWEST_BYTES_S
    assert world.timeouts == [first, first + 1 + (BATCH_BYTES // 2 + 1) / SLOWEST_BYTES_S]
    world.clock.advance(first)
    assert reported(outcome).interrupted == "n2 is silent"
    # Nobody waits for the second.
    assert world.clock.getDelayedCalls() == []


def test_a_challenger_reads_what_the_prover_vouches_for_as_it_is() -> None:
    """Equal keyed digests, of which one was read together with the recorded one, are enough: both copies are noted as checked."""
    world = World()
    file = world.file(1, b"of both")
    wanted = world.nodes["n1"].blobs.wanted
    assert world.report("n1", "n2").bad_count == 0
    assert [one.checked for one in wanted] == [False]
    assert [node.checked for node in world.nodes.values()] == [[file.version.attempt], [file.version.attempt], []]
    world.nodes["n2"].blobs.drop(file.version.attempt)
    assert world.report("n1", "n2", b"another nonce".ljust(32)).bad_count == 1
    assert [one.checked for one in wanted] == [False, True]
    assert world.nodes["n1"].checked == [file.version.attempt] * 2


def test_a_long_list_is_made_in_pieces() -> None:
    """Between the pages the node answers heartbeats; what its subject does not hold any more is not asked for."""
    world = World()
    files = [world.file(number, b"") for number in range(PAGE + 2)]
    outcome = world.verify("n1", "n2")
    assert (outcome, world.asked) == ([], [])
    world.learn(f.EntryGone(id=files[3].id))
    pending = tuple(attrs.evolve(copy, durable=copy.node != "n2") for copy in files[4].version.copies)
    world.learn(attrs.evolve(files[4], version=attrs.evolve(files[4].version, copies=pending)))
    world.clock.advance(0)
    report = reported(outcome)
    assert (report.files, report.bad_count, report.interrupted) == (PAGE + 2, 0, None)
    asked = [item.file for _, challenge in world.asked for item in challenge.items]
    assert asked == [file.id for file in files if file not in (files[3], files[4])]


def test_bad_copies_are_counted_and_the_first_are_named() -> None:
    """A report has a bounded size, however bad it is."""
    world = World()
    for number in range(NAMED_MAX + 5):
        world.nodes["n2"].blobs.drop(world.file(number, b"gone").version.attempt)
    report = world.report("n1", "n2")
    assert (len(report.bad), report.bad_count) == (NAMED_MAX, NAMED_MAX + 5)


BLOCKS = 12
SAMPLED = ClusterSettings(verification_budget_s=(BLOCKS - 1) * BLOCK_BYTES / READ_BYTES_S)


def large() -> bytes:
    """A blob of some blocks that differ."""
    return b"".join(bytes([number]) * BLOCK_BYTES for number in range(BLOCKS))


def test_with_too_much_to_read_blocks_are_picked() -> None:
    """What exceeds the budget is not read whole; a picked block that is rotten is found, another is not, and the report says so."""
    attempt = AttemptId((1001).to_bytes(16))
    picked = picked_blocks(NONCE, attempt, BLOCKS)
    assert len(picked) <= PICKS
    for block in range(BLOCKS):
        world = World(settings=SAMPLED)
        assert world.file(1, large()).version.attempt == attempt
        world.nodes["n2"].blobs.damage(attempt, block * BLOCK_BYTES)
        report = world.report("n1", "n2")
        assert not report.whole
        assert verdicts(report) == ([(1, Verdict.CORRUPT)] if block in picked else [])
    assert {block for number in range(40) for block in picked_blocks(bytes([number]) * 32, attempt, BLOCKS)} == set(range(BLOCKS))


def test_of_picked_blocks_ones_own_rot_is_ones_own() -> None:
    """The challenger's bad block makes nobody else failed."""
    world = World(settings=SAMPLED)
    file = world.file(1, large())
    world.nodes["n1"].blobs.damage(file.version.attempt, picked_blocks(NONCE, file.version.attempt, BLOCKS)[0] * BLOCK_BYTES)
    report = world.report("n1", "n2")
    assert (report.bad_count, report.own_bad) == (0, 1)
    assert world.nodes["n1"].own_bad == [file.version.attempt]


@pytest.mark.parametrize("wrong", ["n1", "n2"])
def test_picked_blocks_of_something_else(wrong: str) -> None:
    """Blocks that are sound in themselves and differ from the other's: both are read whole, and the recorded digest says whose is bad."""
    world = World(settings=SAMPLED)
    file, other = world.file(1, large()), world.file(2, b"equal")
    world.nodes[wrong].blobs.drop(file.version.attempt)
    world.store(wrong, file, large()[::-1])
    report = world.report("n1", "n2")
    assert verdicts(report) == ([(1, Verdict.CORRUPT)] if wrong == "n2" else [])
    assert report.own_bad == (wrong == "n1")
    assert world.nodes["n1"].own_bad == ([file.version.attempt] if wrong == "n1" else [])
    assert [(asked.whole, [item.attempt for item in asked.items]) for _, asked in world.asked] == [
        (False, [file.version.attempt, other.version.attempt]),
        (True, [file.version.attempt]),
    ]


def test_a_node_verifies_itself() -> None:
    """Nobody is asked; what it holds is checked against the record."""
    world = World()
    files = [world.file(number, b"mine") for number in range(3)]
    world.file(7, b"another's", on=("n1",))
    assert world.report("n2", "n2") == Report(challenger="n2", files=3, bytes=12, whole=True)
    world.nodes["n2"].blobs.damage(files[1].version.attempt, 0)
    world.nodes["n2"].blobs.drop(files[2].version.attempt)
    report = world.report("n2", "n2", b"m" * 32)
    assert verdicts(report) == [(1, Verdict.CORRUPT), (2, Verdict.MISSING)]
    assert (report.own_bad, world.nodes["n2"].own_bad, world.asked) == (0, [], [])


def test_every_copy_is_verified_by_somebody() -> None:
    """What no challenger holds durably, without a replica or with all other holders away, the returning node checks itself."""
    alone: dict[tuple[str, ...], dict[str, Any]] = {
        ("n2",): {},
        ("n2", "n3"): {},
        ("n2", "n1"): {"pending": ("n1",)},
    }
    for holders, more in alone.items():
        for spoil in (None, "damage", "drop"):
            world = World()
            on = tuple(name for name in holders if name not in more.get("pending", ()))
            file = world.file(1, b"of one", on=on, **more)
            world.file(2, b"of both", on=("n1", "n2"))
            if spoil == "damage":
                world.nodes["n2"].blobs.damage(file.version.attempt, 0)
            elif spoil == "drop":
                world.nodes["n2"].blobs.drop(file.version.attempt)
            assert world.report("n1", "n2").bad_count == 0
            own = world.report("n2", "n2", challengers=("n1",))
            assert own.files == 1
            expected = {None: [], "damage": [(1, Verdict.CORRUPT)], "drop": [(1, Verdict.MISSING)]}
            assert verdicts(own) == expected[spoil]


def test_a_disk_that_hangs_interrupts_its_own_node() -> None:
    """Nobody waits for ever for a node that verifies itself."""
    world = World()
    world.file(1, b"of one", on=("n2",))
    world.nodes["n2"].blobs.is_waiting = True
    outcome = world.verify("n2", "n2", challengers=("n1",))
    world.clock.advance(PROGRESS_S - 1)
    assert outcome == []
    world.clock.advance(2)
    report = reported(outcome)
    assert (report.interrupted or "").startswith("the disk of n2 gave nothing for 15")
    assert not report.unheard


def test_the_prover_reads_each_blob_once() -> None:
    """However many challengers ask in one rejoin; in the next one it reads anew, and what is bad once more, to say which block."""
    world = World()
    files = [world.file(number, b"of three", on=NAMES) for number in range(3)]
    for challenger in ("n1", "n3"):
        assert world.report(challenger, "n2").bad_count == 0
    assert world.nodes["n2"].blobs.opened == [file.version.attempt for file in files]
    world.nodes["n2"].blobs.damage(files[0].version.attempt, 0)
    (bad,) = world.report("n1", "n2", b"another nonce".ljust(32)).bad
    assert bad.reason.startswith("block 0 of blob")
    assert world.nodes["n2"].blobs.opened[3:] == [file.version.attempt for file in (*files, files[0])]


def test_challengers_share_a_reading_under_way() -> None:
    """Both wait for the same one; that one of them goes away does not take it from the other."""
    world = World()
    world.file(1, b"of three", on=NAMES)
    world.nodes["n2"].blobs.is_waiting = True
    challenge = Deferred.fromCoroutine(world.handle("n1", m.Verify(subject="n2", nonce=NONCE, position=world.position)))
    challenge.addErrback(lambda failure: None)
    others = world.verify("n3", "n2")
    prover = Deferred.fromCoroutine(world.handle("n2", world.asked[0][1]))
    prover.addErrback(lambda failure: None)
    prover.cancel()
    assert others == []
    world.nodes["n2"].blobs.go_on()
    assert reported(others).bad_count == 0
    assert len(world.nodes["n2"].blobs.opened) == 1


def test_a_reading_that_fails_unforeseen_is_answered() -> None:
    """Nobody waits for ever for a reading that broke in a way nobody thought of."""
    world = World()
    file = world.file(1, b"of three", on=NAMES)
    world.nodes["n2"].blobs.breaks[file.version.attempt] = StreamBroken("what?")
    challenge = m.Challenge(
        nonce=NONCE, whole=True, items=(m.ChallengeItem(file=file.id, attempt=file.version.attempt, algorithm=DigestAlgorithm.SHA256),)
    )
    for _ in range(2):
        outcome: list[Any] = []
        Deferred.fromCoroutine(world.handle("n2", challenge)).addBoth(outcome.append)
        assert outcome and outcome[0].check(StreamBroken)

"""The parts of a simulated world, one by one: chance, time, disk, network, database, and the judge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown
from securifile.model.facts import Change, Fact, File, Folder, Grant, GrantGone
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.roles import Role
from securifile.model.servers import HostPort, ServerKind
from securifile.protocol.connection import PeerIdentity
from securifile.simulation.chance import Chance
from securifile.simulation.clock import BEGINNING, ProcessClock, StandsStill, VirtualTime
from securifile.simulation.database import DatabaseServer, SimulatedDatabase
from securifile.simulation.disk import SimulatedFiles, SimulatedWorker
from securifile.simulation.history import Kind, Operation, Outcome, Reach, author_of, content_of
from securifile.simulation.invariants import Judge, could_be_confirmed
from securifile.simulation.network import Weather

# --- chance ---


def test_streams_do_not_disturb_each_other() -> None:
    """What one stream draws depends on the seed and its name, not on what others have drawn."""
    one, other = Chance(7), Chance(7)
    other.random(100)
    other.stream("b").random(50)
    assert one.stream("a").random(20) == other.stream("a").random(20)
    assert one.stream("a").random(20) != one.stream("b").random(20)
    assert Chance(8).stream("a").random(20) != Chance(7).stream("a").random(20)


@given(st.integers(1, 10**12), st.integers(0, 100))
def test_below_is_below(limit: int, seed: int) -> None:
    """`below` gives integers from 0 to one less than the limit."""
    assert 0 <= Chance(seed).below(limit) < limit


@given(st.lists(st.integers()), st.integers(0, 100))
def test_shuffling_keeps_everything(things: list[int], seed: int) -> None:
    """A shuffled list has the same things in it."""
    assert sorted(Chance(seed).shuffled(things)) == sorted(things)


# --- time ---


def test_a_paused_process_is_late() -> None:
    """Timers of a paused process fire when it goes on, in their order; those of others are not delayed."""
    time = VirtualTime()
    clock, other = ProcessClock(time, 1000.0), ProcessClock(time, 5.0)
    fired: list[tuple[str, float]] = []
    for delay in (2.0, 1.0, 5.0):
        clock.callLater(delay, lambda delay=delay: fired.append((f"own {delay}", time.now)))
    other.callLater(1.5, lambda: fired.append(("other", time.now)))
    time.run_until(0.5)
    clock.pause()
    time.run_until(4.0)
    clock.resume()
    time.run_until(10.0)
    assert fired == [("other", 1.5), ("own 1.0", 4.0), ("own 2.0", 4.0), ("own 5.0", 5.0)]
    assert clock.seconds() == 1010.0
    assert clock.wall() == BEGINNING + 10.0


def test_the_dead_do_nothing() -> None:
    """Timers of a dead process never fire."""
    time = VirtualTime()
    clock = ProcessClock(time)
    clock.callLater(1.0, pytest.fail, "it is dead")
    clock.die()
    time.run_until(5.0)
    assert time.fired == 0


def test_timers_can_be_moved_and_cancelled() -> None:
    """As the reactor's: reset and delay move them, cancel ends them, and both are refused afterwards."""
    time = VirtualTime()
    fired: list[float] = []
    call = time.callLater(1.0, lambda: fired.append(time.now))
    time.run_until(0.5)
    call.reset(2.0)
    call.delay(1.0)
    time.run_until(3.0)
    assert call.active() and not fired
    time.run_until(4.0)
    assert fired == [3.5]
    with pytest.raises(AlreadyCalled):
        call.cancel()
    cancelled = time.callLater(1.0, pytest.fail, "it was cancelled")
    cancelled.cancel()
    with pytest.raises(AlreadyCancelled):
        cancelled.reset(1.0)
    time.run_until(10.0)


def test_events_that_make_events_for_ever_are_a_bug() -> None:
    """Time that does not go on ends the run."""
    time = VirtualTime()

    def again() -> None:
        time.callLater(0.0, again)

    again()
    with pytest.raises(StandsStill):
        time.run_until(1.0)


# --- disk ---


def lived(files: SimulatedFiles, *, synced: bool) -> SimulatedFiles:
    """A disk with a file, fsynced with its name or not."""
    files.make_directory("/d")
    files.sync_directory("/")
    descriptor = files.create("/d/f")
    files.write(descriptor, b"hello", 0)
    if synced:
        files.sync(descriptor)
        files.sync_directory("/d")
    return files


@given(st.integers(0, 1000))
def test_what_was_fsynced_survives(seed: int) -> None:
    """Whatever is drawn at a power cut, bytes and names that were fsynced are there."""
    files = lived(SimulatedFiles(), synced=True)
    files.crash(Chance(seed).below)
    assert files.tree() == {"/d/f": b"hello"}


def test_what_was_not_fsynced_may_be_lost() -> None:
    """Over many power cuts: sometimes there, sometimes not, sometimes cut off. A process that dies loses nothing."""
    fates = set()
    for seed in range(60):
        files = lived(SimulatedFiles(), synced=False)
        files.restart()
        assert files.tree() == {"/d/f": b"hello"}
        files.crash(Chance(seed).below)
        fates.add(files.tree().get("/d/f"))
    assert {None, b"", b"hello"} <= fates


def test_a_disk_may_lie() -> None:
    """One that does not obey fsync may lose what was fsynced."""
    fates = set()
    for seed in range(20):
        liar = lived(SimulatedFiles(obeys_fsync=False), synced=True)
        liar.crash(Chance(seed).below)
        fates.add(len(liar.tree()))
    assert fates == {0, 1}


def test_work_dies_with_its_process() -> None:
    """What a worker's threads were at when the process died is done up to some step, and nobody hears of it."""
    steps = set()
    for seed in range(40):
        time = VirtualTime()
        clock = ProcessClock(time)
        files = lived(SimulatedFiles(), synced=True)
        worker = SimulatedWorker(clock, lambda: 1.0)
        heard: list[Any] = []

        def work(files: SimulatedFiles = files) -> None:
            for number in range(3):
                files.create(f"/d/{number}")

        worker.do(work).addBoth(heard.append)
        clock.die()
        worker.die_working(files, Chance(seed).below)
        time.run_until(5.0)
        assert not heard
        steps.add(len(files.tree()) - 1)
    assert steps == {0, 1, 2, 3}


# --- network ---


class Listening(Protocol):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Bytes."""
        self.heard += data

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """The end."""
        self.lost = reason


class Pair:
    """Two hosts and a connection."""

    def __init__(self) -> None:
        self.time = VirtualTime()
        self.network = Weather(self.time, Chance(1))
        self.server, self.client = Listening(), Listening()
        self.network.listen(HostPort("s", 1), Factory.forProtocol(lambda: self.server))
        self.connect("c", self.time, self.client)
        self.run()

    def connect(self, host: str, clock: Any, protocol: Protocol) -> Deferred[Any]:
        endpoint = self.network.connector_of(host, clock)(HostPort("s", 1), PeerIdentity(cluster="c", kind=ServerKind.NODE, name="s"))
        connecting: Deferred[Any] = endpoint.connect(Factory.forProtocol(lambda: protocol))
        return connecting

    def run(self) -> None:
        self.time.run_until(self.time.now + 1.0)

    def say(self, protocol: Protocol, data: bytes) -> None:
        assert protocol.transport is not None
        protocol.transport.write(data)
        self.run()


def test_a_way_may_be_cut_in_one_direction() -> None:
    """What is sent that way waits; the other direction is open."""
    pair = Pair()
    pair.network.block("c", "s")
    pair.say(pair.client, b"to s")
    pair.say(pair.server, b"to c")
    assert (pair.server.heard, pair.client.heard) == (b"", b"to c")
    pair.network.unblock("c", "s")
    pair.run()
    assert pair.server.heard == b"to s"


def test_a_sleeper_hears_when_it_wakes() -> None:
    """A paused process is told nothing, but what it has sent arrives."""
    pair = Pair()
    assert pair.client.transport is not None
    pair.client.transport.write(b"before")
    pair.network.sleep("c")
    pair.say(pair.server, b"hello?")
    assert (pair.server.heard, pair.client.heard) == (b"before", b"")
    pair.network.wake("c")
    pair.run()
    assert pair.client.heard == b"hello?"


def test_a_dead_process_resets_and_a_dark_machine_does_not() -> None:
    """The kernel tells for a process; a machine without power tells when it is up again."""
    killed, dark = Pair(), Pair()
    killed.network.crash("c")
    dark.network.go_dark("c")
    killed.run()
    dark.run()
    assert killed.server.lost is not None and dark.server.lost is None
    dark.network.light("c")
    dark.run()
    assert dark.server.lost is not None
    assert killed.client.lost is None, "the dead are not told"


def test_a_dead_process_connects_no_more() -> None:
    """An attempt that was under way when its process died comes to nothing, even after a restart."""
    pair = Pair()
    clock = ProcessClock(pair.time)
    pair.network.cut("c", "s")
    connected: list[Any] = []
    pair.connect("c", clock, Listening()).addCallback(connected.append)
    pair.run()
    clock.die()
    pair.network.heal("c", "s")
    pair.run()
    assert not connected


# --- database ---


def test_a_lost_answer_is_done_or_not() -> None:
    """The client hears `OutcomeUnknown`; sometimes it was done, sometimes not. While the database is away, nothing is done."""
    done = 0
    for seed in range(20):
        time = VirtualTime()
        server = DatabaseServer(time, Chance(seed))
        server.engine.sql.execute_now("CREATE TABLE t (x BIGINT)")
        server.lost_answers = 1.0
        heard: list[Any] = []

        async def write(sql: Any) -> None:
            await sql.execute("INSERT INTO t (x) VALUES (1)")

        database = SimulatedDatabase(server, time)
        database.transact("write", write).addBoth(heard.append)
        time.run_until(1.0)
        assert heard[0].check(OutcomeUnknown)
        done += len(server.engine.sql.query_now("SELECT x FROM t"))
        server.available = False
        database.transact("write", write).addBoth(heard.append)
        time.run_until(2.0)
        assert heard[1].check(DatabaseUnavailable)
    assert 0 < done < 20


# --- contents and the judge ---


@given(st.integers(1, 10**6), st.integers(40, 5000))
def test_a_content_names_its_write(number: int, size: int) -> None:
    """Any whole content says which write it is of, and how long it is."""
    content = content_of(number, size)
    assert len(content) == size
    assert author_of(content) == (number, size)


ROOT, FILE = EntryId(bytes(16)), EntryId(b"f" * 16)


def version(number: int, write: int) -> File:
    algorithm = DigestAlgorithm.SHA256
    hasher = algorithm.hasher()
    hasher.update(content_of(write, 100))
    made = Version(
        number=number,
        attempt=AttemptId(bytes([write]) * 16),
        size=100,
        digest=hasher.digest(),
        algorithm=algorithm,
        committed_at=0.0,
        committed_by="ann",
        copies=(Copy(node="n1", priority=0, durable=True),),
    )
    return File(id=FILE, owner="ann", parent=ROOT, name="f", created_at=0.0, version=made)


CHANGES: list[Fact] = [
    Folder(id=ROOT, owner="ann", parent=None, name="ann", created_at=0.0),
    version(1, 1),
    Grant(entry=FILE, username="bob", role=Role.READER, granted_by="ann"),
    version(2, 2),
    GrantGone(entry=FILE, username="bob"),
]
"""Revisions 1 to 5, committed at seconds 1 to 5."""


def told(*operations: Operation) -> list[str]:
    """The guarantees that this history breaks."""
    for number, operation in enumerate(operations, 1):
        operation.number = number
    changes = [(Position(1, at), Change(revision=at, facts=(fact,))) for at, fact in enumerate(CHANGES, 1)]
    judge = Judge(operations, changes, [(float(position.revision), position) for position, _ in changes], [])
    return [violation.guarantee for violation in judge.judge()]


def write(number: int, began: float, ended: float, outcome: Outcome = Outcome.DONE) -> Operation:
    return Operation(
        number=0, person="ann", kind=Kind.WRITE, path="ann/f", server="n1", size=100, began=began, ended=ended, asked_last=began,
        outcome=outcome, status=200, etag=f'"{FILE}.{number}"',
    )  # fmt: skip


def read(person: str, at: float, number: int | None, content: bytes | None = None) -> Operation:
    found = number is not None
    return Operation(
        number=0, person=person, kind=Kind.READ, path="ann/f", server="n1", began=at, ended=at + 0.1, asked_last=at,
        outcome=Outcome.DONE if found else Outcome.REFUSED, status=200 if found else 404, code=None if found else "not-found",
        etag=f'"{FILE}.{number}"' if found else None, content=(content or content_of(number, 100)) if number is not None else None,
    )  # fmt: skip


FIRST, SECOND = write(1, 1.5, 2.5), write(2, 3.5, 4.5)
OLD = "nothing older than what was acknowledged"


def test_a_true_history_is_believed() -> None:
    """Reads of what was current, or might have been, break nothing."""
    assert told(FIRST, SECOND, read("ann", 2.6, 1), read("ann", 4.2, 1), read("ann", 4.2, 2), read("ann", 4.6, 2)) == []
    assert told(FIRST, SECOND, read("bob", 2.6, None), read("bob", 3.2, 1), read("bob", 5.1, None), read("bob", 5.1, 2)) == []


def test_an_old_version_is_noticed() -> None:
    """After the second write was answered, nobody may read the first."""
    assert told(FIRST, SECOND, read("ann", 4.6, 1)) == [OLD]
    assert told(FIRST, SECOND, read("ann", 4.6, None)) == [OLD]


def test_a_version_before_its_time_is_noticed() -> None:
    """What is not committed yet cannot be read."""
    assert told(FIRST, SECOND, read("ann", 3.2, 2)) == [OLD]


def test_a_revoked_right_is_noticed() -> None:
    """Once its end was answered, a right opens nothing."""
    revoked = Operation(
        number=0, person="ann", kind=Kind.REVOKE, path="ann/f", server="n1", other="bob", began=4.6, ended=5.5, asked_last=4.6,
        outcome=Outcome.DONE, status=204,
    )  # fmt: skip
    assert told(FIRST, SECOND, revoked, read("bob", 5.6, 2)) == [OLD]
    assert told(FIRST, SECOND, revoked, read("bob", 5.3, 2)) == []


def test_wrong_bytes_are_noticed() -> None:
    """Bytes that nobody wrote, a part, or another version's."""
    assert "no wrong byte" in told(FIRST, SECOND, read("ann", 4.6, 2, content_of(2, 100)[:-1] + b"x"))
    assert "no wrong byte" in told(FIRST, SECOND, read("ann", 4.6, 2, content_of(2, 100)[:-1]))
    assert "one content a version" in told(FIRST, SECOND, read("ann", 4.6, 2, content_of(1, 100)))


def test_a_write_that_was_not_done_is_noticed() -> None:
    """2xx for what the catalogue does not have; a refusal of what it has; two writers of one version."""
    assert told(FIRST, SECOND, write(3, 5.0, 5.5)) == ["done is done"]
    assert told(FIRST, write(2, 3.5, 4.5, Outcome.REFUSED)) == ["refused is not done"]
    assert "one history a file" in told(FIRST, SECOND, write(2, 3.6, 4.6))


@pytest.mark.parametrize(
    ("course", "confirmed"),
    [
        (["a>n b>n", "n>c"], False),
        (["n>b", "b>n"], True),
        (["b>n", "n>b"], False),
        (["n>b n>c", "b>n"], True),
        (["n>b b>n"], True),
        (["n>a", "", "a>n"], True),
        (["a>n n>c", "c>a"], False),
    ],
)
def test_who_can_have_been_confirmed(course: list[str], confirmed: bool) -> None:
    """Who has sent to an admin server (a), or to half of the other nodes (b, c), and could be answered afterwards."""
    reaches = [
        Reach(
            at=float(at),
            ways=frozenset((sender, to) for sender, _, to in (way.partition(">") for way in ways.split())),
            nodes=frozenset("nbc"),
            admins=frozenset("a"),
        )
        for at, ways in enumerate(course)
    ]
    assert could_be_confirmed("n", reaches) is confirmed

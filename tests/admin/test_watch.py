"""The watch over the nodes, on a clock that the test moves: who is put down, and how it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.admin.duties import Duty
from securifile.admin.peers import Peers
from securifile.admin.watch import DOUBLE_S, KEEP_S, SAMPLE_S, Watch
from securifile.audit.memory import MemoryAudit
from securifile.model.errors import DatabaseUnavailable, PeerUnreachable, Refusal
from securifile.model.ids import Position
from securifile.model.proofs import Report
from securifile.model.servers import ServerKind, Status
from securifile.protocol import messages as m
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import NODES, World, node
from tests.admin.test_followers import FakePeer

INTERVAL_S = 0.5


class FakePeers:
    """The nodes as the admin server reaches them: those in `alive` answer, and find nothing wrong with one another."""

    def __init__(self) -> None:
        self.alive: set[str] = set(NODES)
        self.asked: list[str] = []
        self.verified: list[tuple[str, str]] = []
        """(challenger, subject); without what each verifies of its own after the others."""
        """(challenger, subject)"""
        self.aside: list[Any] = []
        self._lost: list[Any] = []

    def set_aside(self, peer: Any) -> None:
        """See `Peers`."""
        self.aside.append(peer)

    def watch(self, *, connected: Any = None, lost: Any = None) -> None:
        """See `Peers`."""
        self._lost.append(lost)

    def lose(self, name: str) -> None:
        """A node's connection is gone."""
        self.alive.discard(name)
        for lost in self._lost:
            lost(name)

    def ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        """See `Peers`."""
        self.asked.append(name)
        if name not in self.alive:
            return fail(PeerUnreachable(name))
        if isinstance(message, m.Verify):
            if name != message.subject:
                self.verified.append((name, message.subject))
            return succeed(m.Verified(report=Report(challenger=name, files=1, bytes=1, whole=True)))
        return succeed(m.HeartbeatAnswer(position=message.position, held_for=Status.RUNNING))


class Watching:
    """A watch over three nodes of a catalogue in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.world = World(SqliteDatabase(None))
        self.peers = FakePeers()
        self.audit = MemoryAudit()
        self.watch: Watch

    async def open(self) -> None:
        await self.world.open()
        self.duty = Duty(clock=self.clock, database=self.world.database, holder="admin1")
        peers: Any = self.peers
        self.watch = Watch(
            clock=self.clock,
            wall=lambda: self.world.now + self.clock.seconds(),
            name="admin1",
            catalogue=self.world.catalogue,
            peers=peers,
            audit=self.audit,
            random=self.world.random.randbytes,
            duty=self.duty,
        )
        await self.duty.look()
        self.watch.start()

    def pass_(self, intervals: float) -> None:
        """Let time go by."""
        for _ in range(int(intervals * 2)):
            self.clock.advance(INTERVAL_S / 2)
            Deferred.fromCoroutine(self.duty.look())

    async def say(self, observer: str, *, boot: str = "", behind: int = 0, **judgements: Any) -> m.HeartbeatAnswer:
        """A node's heartbeat, with what it thinks of others; its index may be some changes behind."""
        peer: Any = FakePeer(observer)
        position = self.world.catalogue.ledger.position
        heartbeat = m.Heartbeat(
            position=Position(position.epoch, position.revision - behind), used_bytes=5, available_bytes=7, boot=boot, judgements=judgements
        )
        return await self.watch.heartbeat(peer, heartbeat)

    async def only_n1(self) -> None:
        """Let the two others fall silent; with n2 out of the way, our own heartbeats decide about n3."""
        self.peers.alive = {"n1"}
        await self.world.hold({"n2": Status.DOWN})
        self.pass_(5)
        assert self.running == ["n1"]

    @property
    def running(self) -> list[str]:
        return self.world.catalogue.roster.running

    @property
    def changes(self) -> list[tuple[str | None, str | None]]:
        return [(record.peer, record.detail) for record in self.audit.records if record.event == "status"]


def fellows(observer: str) -> dict[str, Any]:
    """What a node says that sees all others."""
    return {name: Status.RUNNING for name in NODES if name != observer}


@pytest.fixture
def watching() -> Iterator[Watching]:
    made = Watching()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    made.watch.stop()


@pytest_twisted.ensureDeferred
async def test_a_node_that_two_others_miss_is_put_down(watching: Watching) -> None:
    """One opinion of two is not enough; the second puts it down at once, recorded and in the feed."""
    await watching.say("n1", n3=Status.DOWN)
    assert watching.running == list(NODES)
    await watching.say("n2", n3=Status.DOWN)
    assert watching.running == ["n1", "n2"]
    assert watching.changes == [("n3", "running -> down")]
    assert (await watching.say("n3")).held_for is Status.DOWN
    assert (await watching.say("n1", n3=Status.DOWN)).held_for is Status.RUNNING


@pytest_twisted.ensureDeferred
async def test_it_comes_back_by_verification_alone(watching: Watching) -> None:
    """That the others see it again is not enough; when it answers us and has caught up, they verify it, and it is running."""
    for observer in ("n1", "n2"):
        await watching.say(observer, n3=Status.DOWN)
    for observer in ("n1", "n2"):
        await watching.say(observer, n3=Status.RUNNING)
    assert watching.running == ["n1", "n2"]
    watching.pass_(2)
    assert watching.running == ["n1", "n2"], "nobody knows which process it is"
    await watching.say("n3")
    watching.pass_(1)
    assert watching.running == list(NODES)
    assert watching.peers.verified == [("n1", "n3"), ("n2", "n3")]
    assert watching.changes == [("n3", "running -> down"), ("n3", "down -> running")]


@pytest_twisted.ensureDeferred
async def test_old_doubts_do_not_count_against_who_was_admitted(watching: Watching) -> None:
    """Who does not know yet that a node was admitted does not put it down again; who knows, and doubts it, does."""
    for observer in ("n1", "n2"):
        await watching.say(observer, n3=Status.DOWN)
    await watching.say("n3")
    watching.pass_(1)
    for observer in ("n1", "n2"):
        await watching.say(observer, behind=1, n3=Status.DOWN)
    watching.pass_(1)
    assert watching.running == list(NODES)
    for observer in ("n1", "n2"):
        # Another opinion in between, because the same one is not looked at twice.
        await watching.say(observer, n3=Status.RUNNING)
        await watching.say(observer, n3=Status.DOWN)
    assert watching.running == ["n1", "n2"]


@pytest_twisted.ensureDeferred
async def test_a_process_that_was_started_anew_is_down_at_once(watching: Watching) -> None:
    """No heartbeat was missed, and yet it has to be verified first; its answer tells it so."""
    await watching.say("n3", boot="")
    assert watching.running == list(NODES)
    assert (await watching.say("n3", boot="second life")).held_for is Status.DOWN
    assert watching.running == ["n1", "n2"]
    assert watching.changes == [("n3", "running -> down")]
    watching.pass_(1)
    assert watching.running == list(NODES)
    assert (await watching.say("n3", boot="second life")).held_for is Status.RUNNING
    assert (await watching.say("n3", boot="")).held_for is Status.DOWN


@pytest_twisted.ensureDeferred
async def test_that_it_failed_in_its_last_life_does_not_count(watching: Watching) -> None:
    """A failed node that is started anew is down and verified, though the others still hold it for failed until they know more."""
    await watching.world.hold({"n3": Status.FAILED})
    for observer in ("n1", "n2"):
        await watching.say(observer, n3=Status.FAILED)
    await watching.say("n3", boot="second life", behind=5)
    for observer in ("n1", "n2"):
        await watching.say(observer, n3=Status.RUNNING)
        await watching.say(observer, n3=Status.FAILED)
    watching.pass_(1)
    assert watching.changes == [("n3", "failed -> down")]
    await watching.say("n3", boot="second life")
    watching.pass_(1)
    assert watching.running == list(NODES)


@pytest_twisted.ensureDeferred
async def test_the_admin_servers_own_heartbeats_count_where_few_can_judge(watching: Watching) -> None:
    """Of three nodes, two are put down by their fellows and then by us; who answers is verified by who is left."""
    await watching.only_n1()
    watching.peers.alive = {"n1", "n2"}
    await watching.say("n2")
    watching.pass_(2)
    assert watching.running == ["n1", "n2"]
    assert watching.peers.verified == [("n1", "n2")]


@pytest_twisted.ensureDeferred
async def test_all_nodes_return_at_once(watching: Watching) -> None:
    """After a power cut nobody is running: those who answer verify each other, and are running without help."""
    await watching.world.hold(dict.fromkeys(NODES, Status.DOWN))
    for name in NODES:
        await watching.say(name, boot="after the cut")
    watching.pass_(2)
    assert watching.running == list(NODES)
    assert {subject for _, subject in watching.peers.verified} == set(NODES)
    assert len(watching.peers.verified) == len(NODES) * (len(NODES) - 1)


@pytest_twisted.ensureDeferred
async def test_who_has_not_caught_up_stays_down(watching: Watching) -> None:
    """A node that answers, and whose index is old, is not verified until it has caught up."""
    for number in range(5):
        await watching.world.make_folder(f"alice/d{number}")
    await watching.only_n1()
    watching.peers.alive = {"n1", "n3"}
    await watching.say("n3", behind=3)
    watching.pass_(5)
    assert watching.running == ["n1"]
    assert watching.peers.verified == []
    await watching.say("n3")
    watching.pass_(2)
    assert watching.running == ["n1", "n3"]


@pytest_twisted.ensureDeferred
async def test_constant_writing_keeps_nobody_out(watching: Watching) -> None:
    """A returning node whose index is always a little behind the moment is let in all the same."""
    await watching.only_n1()
    watching.peers.alive = {"n1", "n3"}
    for _ in range(6):
        await watching.world.put("alice/f")
        await watching.world.put("alice/g")
        await watching.say("n3", behind=1)
        watching.pass_(1)
    assert "n3" in watching.running


@pytest_twisted.ensureDeferred
async def test_opinions_lapse_with_their_observer(watching: Watching) -> None:
    """Of a node that is gone, or silent, no opinion counts any more."""
    await watching.say("n1", n3=Status.DOWN)
    assert watching.watch.opinions == {("n1", "n3"): Status.DOWN}
    watching.peers.lose("n1")
    assert watching.watch.opinions == {}
    await watching.say("n1", n3=Status.DOWN)
    watching.pass_(5)
    assert watching.watch.opinions == {}


@pytest_twisted.ensureDeferred
async def test_nothing_is_written_while_nothing_changes(watching: Watching) -> None:
    """Heartbeats alone make no change of the catalogue."""
    for observer in NODES:
        await watching.say(observer, **fellows(observer))
    before = watching.world.catalogue.ledger.position
    for _ in range(20):
        for observer in NODES:
            await watching.say(observer, **fellows(observer))
        watching.pass_(1)
    assert watching.world.catalogue.ledger.position == before
    assert watching.watch.is_available("n1")


@pytest_twisted.ensureDeferred
async def test_a_status_that_could_not_be_written_is_written_later(watching: Watching) -> None:
    """While the database is away nobody's status changes; when it is back, the next round sees to it."""
    members: Any = watching.world.catalogue.members
    judge = members.judge
    members.judge = lambda *_: fail(DatabaseUnavailable("away"))
    for observer in ("n1", "n2"):
        await watching.say(observer, n3=Status.DOWN)
    assert watching.running == list(NODES)
    members.judge = judge
    watching.pass_(1)
    assert watching.running == ["n1", "n2"]


@pytest_twisted.ensureDeferred
async def test_a_new_process_is_told_so_whatever_is_written_of_the_old_one(watching: Watching) -> None:
    """While the database is away the catalogue holds the node for running, and its answer is `down` all the same."""
    members: Any = watching.world.catalogue.members
    members.judge = lambda *_: fail(DatabaseUnavailable("away"))
    assert (await watching.say("n3")).held_for is Status.RUNNING
    assert (await watching.say("n3", boot="second life")).held_for is Status.DOWN
    assert watching.running == list(NODES)


@pytest_twisted.ensureDeferred
async def test_what_was_seen_is_written_down(watching: Watching) -> None:
    """The matrix, our own row included, the last heartbeats, and a sample of the storage once in a while."""
    await watching.say("n1", n2=Status.RUNNING)
    watching.pass_(1)
    await watching.watch.keep()
    observations = watching.world.catalogue.observations
    assert [(observer, status) for observer, status, _ in await observations.observers_of("n2")] == [
        ("admin1", Status.RUNNING),
        ("n1", Status.RUNNING),
    ]
    assert (await observations.last_heartbeats())["n1"].available_bytes == 7
    start = watching.world.now
    for _ in range(3):
        watching.clock.advance(SAMPLE_S / 2)
        await watching.duty.look()
        await watching.say("n1")
        await watching.watch.keep()
    assert len(await observations.storage("n1", start, start + 10 * SAMPLE_S, 1000)) == 2
    assert watching.watch.age_of("n1") == 0
    assert watching.watch.age_of("n2") is None


@pytest_twisted.ensureDeferred
async def test_another_admin_server_is_known_by_what_it_writes_down(watching: Watching) -> None:
    """How long ago that was new here, by this server's own clock: what the other one's clock shows, and does, is all the same."""
    observations = watching.world.catalogue.observations
    await watching.world.catalogue.members.put_admin(
        attrs.evolve(node("admin2"), kind=ServerKind.ADMIN, url="https://admin2", status=Status.RUNNING)
    )
    await watching.watch.keep()
    assert watching.watch.admin_age_of("admin2") is None
    position = watching.world.catalogue.ledger.position
    for theirs in (5.0, 10.0, 3.0):
        await observations.keep_own_heartbeat("admin2", theirs, position)
        await watching.watch.keep()
        assert watching.watch.admin_age_of("admin2") == 0.0
        watching.clock.advance(KEEP_S)
        await watching.watch.keep()
        assert watching.watch.admin_age_of("admin2") == KEEP_S
    assert (await observations.last_heartbeats())["admin1"].at == watching.world.now + watching.clock.seconds()


@pytest_twisted.ensureDeferred
async def test_of_two_processes_with_one_identity_the_later_counts(watching: Watching) -> None:
    """A copied data folder: who was there before is told that it is down, may commit and follow nothing, and a warning says so."""
    await watching.say("n3", boot="")
    await watching.say("n3", boot="copy")
    watching.pass_(1)
    assert watching.running == list(NODES)
    assert watching.watch.doubled == []
    original: Any = FakePeer("n3")
    position = watching.world.catalogue.ledger.position
    for _ in range(3):
        answer = await watching.watch.heartbeat(original, m.Heartbeat(position=position, boot=""))
        assert answer.held_for is Status.DOWN
        assert (await watching.say("n3", boot="copy")).held_for is Status.RUNNING
    assert watching.running == list(NODES)
    assert watching.peers.aside == [original] * 3
    for boot in (None, ""):
        with pytest.raises(Refusal, match="Another process runs as n3"):
            watching.watch.check_life(original, boot)
    assert watching.watch.doubled == ["n3"]
    assert [record.peer for record in watching.audit.records if record.event == "double"] == ["n3"]


@pytest_twisted.ensureDeferred
async def test_the_earlier_process_returns_when_the_later_is_silent(watching: Watching) -> None:
    """It is a returning node then, and is verified as one; some time later the warning ends."""
    await watching.say("n3", boot="")
    await watching.say("n3", boot="copy")
    assert (await watching.say("n3", boot="")).held_for is Status.DOWN
    assert watching.watch.doubled == ["n3"]
    watching.pass_(4)
    await watching.say("n3", boot="")
    watching.pass_(1)
    assert (await watching.say("n3", boot="")).held_for is Status.RUNNING
    watching.clock.advance(DOUBLE_S)
    assert watching.watch.doubled == []


def test_of_several_connections_the_latest_is_asked() -> None:
    """An earlier one, or one that was set aside, is asked only when no other is left; the node is lost with the last of them."""
    peers = Peers()
    lost: list[str] = []
    peers.watch(lost=lost.append)
    first, second = FakePeer("n1"), FakePeer("n1")
    given: list[Any] = [first, second]
    for peer in given:
        peers.connected(peer)
    peers.ask("n1", "a", 1.0)
    peers.set_aside(given[1])
    peers.ask("n1", "b", 1.0)
    peers.lost(given[0])
    peers.ask("n1", "c", 1.0)
    assert (first.taken, second.taken, lost) == (["b"], ["a", "c"], [])
    peers.lost(given[1])
    assert lost == ["n1"]


@pytest_twisted.ensureDeferred
async def test_that_a_process_has_ended_is_known_and_changes_no_status(watching: Watching) -> None:
    """It is written down. Who is down is a question of heartbeats, as ever."""
    world = watching.world
    admitted = "a life"
    await world.hold({"n3": Status.DOWN})
    await world.catalogue.members.rejoined("n3", admitted, True)
    ends: list[str] = []
    watching.watch.on_end = lambda: ends.append("told")
    peer: Any = FakePeer("n3")
    position = world.catalogue.ledger.position
    assert not watching.watch.endings.is_over("n3", position)
    assert watching.watch.notices[m.Ended](peer, m.Ended(boot=admitted)) == m.Done()
    assert watching.watch.endings.is_over("n3", position)
    assert not watching.watch.endings.is_over("n3", Position(position.epoch, position.revision + 1))
    assert not watching.watch.endings.is_over("n2", position)
    assert ends == ["told"]
    assert "n3" in watching.running
    assert [record.peer for record in watching.audit.records if record.event == "ended"] == ["n3"]
    await watching.say("n3", boot=admitted)
    assert not watching.watch.endings.is_over("n3", position)

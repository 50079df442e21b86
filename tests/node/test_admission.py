"""When a node lets a request in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from securifile.audit.memory import MemoryAudit
from securifile.model import facts as f
from securifile.model.entries import Space
from securifile.model.errors import PeerUnreachable, Refusal
from securifile.model.ids import Position
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.model.standing import Acknowledgement
from securifile.node.admission import BEHIND_S
from securifile.node.cluster import Cluster
from securifile.node.index import Index
from securifile.protocol import messages as m
from securifile.protocol.connection import PeerIdentity
from securifile.sql.sqlite import SqliteDatabase, run_now

BOOT = "this life"


def change(revision: int) -> f.Change:
    return f.Change(revision=revision, facts=(f.SessionGone(token_hash=b"t"),))


class World:
    """A node alone in its cluster, running."""

    def __init__(self, make_link: Any = lambda server, handlers: (_ for _ in ()).throw(AssertionError("it is alone"))) -> None:
        self.clock = Clock()
        self.audit = MemoryAudit()
        self.index = Index(SqliteDatabase(None), lambda: 0.0)
        run_now(self.index.open())
        run_now(self.index.replace(Position(1, 0), [server(Status.RUNNING)]))
        self.cluster = Cluster(
            clock=self.clock,
            wall=lambda: 0.0,
            name="n1",
            boot=BOOT,
            index=self.index,
            space=lambda: succeed(Space(used_bytes=0, available_bytes=0)),
            make_link=make_link,
            audit=self.audit,
            audit_kept=lambda boot, number: None,
            more_handlers=dict,
        )
        run_now(self.cluster.start())

    async def answer(self, peer: Any, message: m.Heartbeat) -> m.HeartbeatAnswer:
        """What it answers to a heartbeat."""
        answer: m.HeartbeatAnswer = await maybeDeferred(self.cluster.handlers[m.Heartbeat], peer, message)
        return answer

    def ask(self) -> list[Any]:
        """Ask to be admitted; the outcome, when there is one."""
        outcome: list[Any] = []
        Deferred.fromCoroutine(self.cluster.admission.admit()).addBoth(outcome.append)
        return outcome


@contextmanager
def capturing(seen: list[Any]) -> Iterator[None]:
    """Keep what this code logs meanwhile."""

    def keep(event: Any) -> None:
        if event["log_namespace"].startswith("securifile."):
            seen.append(event)

    globalLogPublisher.addObserver(keep)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(keep)


def server(status: Status) -> f.Server:
    return f.Server(
        name="n1",
        kind=ServerKind.NODE,
        url="https://n1:9443",
        protocol_address="n1:9444",
        public_key=b"",
        status=status,
        boot=BOOT,
    )


def test_a_request_waits_for_what_was_heard_of_before_it() -> None:
    """A node that is some milliseconds behind lets a request wait for that, and then in."""
    world = World()
    assert world.ask() == [None]
    world.cluster.heartbeats.hear(Position(1, 1))
    asked = world.ask()
    assert asked == []
    run_now(world.index.apply_changes(1, [change(1)]))
    assert asked == [None]


def test_constant_writing_keeps_nobody_out() -> None:
    """What was heard of after the request had come is not waited for: under constant writing there is always something."""
    world = World()
    world.cluster.heartbeats.hear(Position(1, 1))
    asked = world.ask()
    world.cluster.heartbeats.hear(Position(1, 2))
    run_now(world.index.apply_changes(1, [change(1)]))
    assert asked == [None]


def test_a_node_that_does_not_catch_up_says_no() -> None:
    """After a while the person is sent elsewhere."""
    world = World()
    world.cluster.heartbeats.hear(Position(1, 1))
    asked = world.ask()
    world.clock.advance(BEHIND_S)
    assert asked[0].check(Refusal)


def test_who_was_put_down_meanwhile_is_not_let_in() -> None:
    """Catching up may bring that this node is held for down."""
    world = World()
    world.cluster.heartbeats.hear(Position(1, 1))
    asked = world.ask()
    world.cluster.heartbeats.hear(Position(1, 2))
    run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=(server(Status.DOWN),))]))
    assert asked[0].check(Refusal)


def test_a_full_spool_stops_no_heartbeats() -> None:
    """That a judgement cannot be written down is no reason to send no heartbeats: others would put this node down, too."""
    world = World()
    world.audit.full = True
    world.cluster._judged("n2", Status.RUNNING, Status.DOWN)
    assert world.audit.records == []


def test_an_address_that_is_none_stops_nothing() -> None:
    """A member that cannot be connected to is learnt all the same, and so is what comes after it."""
    world = World()
    other = attrs.evolve(server(Status.DOWN), name="n2", protocol_address="n2")
    run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=(other, server(Status.DOWN)))]))
    assert world.cluster.roster.nodes == ["n1", "n2"]
    assert world.cluster.roster.running == []


def test_a_node_that_was_removed_says_so() -> None:
    """To people whom it refuses, and once in its log."""
    world = World()
    gone = f.ServerGone(name="n1")
    seen: list[Any] = []
    with capturing(seen):
        run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=(gone,)), f.Change(revision=2, facts=(gone,))]))
    assert world.cluster.admission.standing().reason == "this node was removed from the cluster"
    assert [event["log_format"].split(":")[0] for event in seen] == ["this node, {node}, was removed from the cluster, as {by} says"]


def test_another_life_than_the_one_that_was_admitted_is_held_for_down() -> None:
    """Of two processes with one identity only one is the node: whoever it asks, the other one is told so, and loses its standing."""
    world = World(lambda server, handlers: TurnedAwayLink())
    other = attrs.evolve(server(Status.RUNNING), name="n2", boot="first")
    run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=(other,))]))
    peer: Any = Asking("n2")
    held = [
        run_now(world.answer(peer, m.Heartbeat(position=Position(1, 1), boot=boot))).held_for for boot in ("first", "second", "first", "")
    ]
    assert held == [Status.RUNNING, Status.DOWN, Status.RUNNING, Status.RUNNING]


def test_a_node_that_comes_back_silences_nobody() -> None:
    """Cut off, it held all others for down: its word counts again from where it is admitted."""
    world = World(lambda server, handlers: TurnedAwayLink())
    other = attrs.evolve(server(Status.DOWN), name="n2", boot="first")

    def says(position: Position) -> bool:
        """Whether this node serves when the other one, knowing so much, holds it for down."""
        doubt = Acknowledgement(kind=ServerKind.NODE, sent_at=world.clock.seconds(), held_for=Status.DOWN, position=position)
        world.cluster.heartbeats.acknowledgements["n2"] = doubt
        return world.cluster.admission.standing().serves

    run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=(other,))]))
    assert says(Position(1, 1))
    run_now(world.index.apply_changes(1, [f.Change(revision=2, facts=(attrs.evolve(other, status=Status.RUNNING),))]))
    assert says(Position(1, 1))
    assert not says(Position(1, 2))
    run_now(world.index.apply_changes(1, [f.Change(revision=3, facts=(f.ServerGone(name="n2"),))]))
    assert says(Position(1, 3))


@attrs.frozen
class Asking:
    """A peer of that name."""

    name: str

    @property
    def identity(self) -> PeerIdentity:
        """See `Peer`."""
        return PeerIdentity(cluster="c", kind=ServerKind.NODE, name=self.name)


class TurnedAwayLink:
    """A link to a server that is there, and does not know this node."""

    def __init__(self) -> None:
        self.connected = False
        self.hurry: Callable[[], None] = lambda: None
        self.on_turned_away: Callable[[], bool] = lambda: False

    def start(self) -> None:
        """See `Link`."""

    def move(self, address: HostPort) -> None:
        """See `Link`."""

    def stop(self) -> Deferred[None]:
        """See `Link`."""
        return succeed(None)

    def ask(self, message: Any, timeout_s: float) -> Deferred[Any]:
        """See `Link`."""
        return fail(PeerUnreachable("turned away"))


def turned_away() -> tuple[World, dict[str, TurnedAwayLink]]:
    """n1, with n2 and two admin servers."""
    links: dict[str, TurnedAwayLink] = {}

    def make_link(server: f.Server, handlers: Any) -> Any:
        links[server.name] = TurnedAwayLink()
        return links[server.name]

    world = World(make_link)
    others = [attrs.evolve(server(Status.DOWN), name="n2")]
    others += [attrs.evolve(server(Status.RUNNING), name=name, kind=ServerKind.ADMIN) for name in ("admin1", "admin2")]
    run_now(world.index.apply_changes(1, [f.Change(revision=1, facts=tuple(others))]))
    return world, links


def test_a_node_that_was_removed_while_it_was_away_is_told_so() -> None:
    """No feed reaches it any more: an admin server that does not know it says so, twice, and it serves nobody and does not hurry."""
    world, links = turned_away()
    seen: list[Any] = []
    with capturing(seen):
        assert [links["admin1"].on_turned_away() for _ in range(3)] == [False, True, True]
    assert world.cluster.admission.standing().reason == "this node was removed from the cluster"
    assert [event["by"] for event in seen] == ["admin1"]
    assert links["n2"].on_turned_away()


def test_who_does_not_know_a_node_yet_has_not_removed_it() -> None:
    """Other nodes decide nothing, nor does an admin server while another one answers, or answered since."""
    world, links = turned_away()
    assert not any(links["n2"].on_turned_away() for _ in range(5))
    links["admin2"].connected = True
    links["admin1"].on_turned_away()
    answer = m.HeartbeatAnswer(position=world.index.position, held_for=Status.RUNNING)
    world.cluster.heartbeats.on_answer(world.cluster.roster.servers["admin2"], answer, 0.001)
    assert not links["admin1"].on_turned_away()
    assert "removed" not in world.cluster.admission.standing().reason

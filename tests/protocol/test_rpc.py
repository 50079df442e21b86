"""Asking and answering between two servers on a network in memory."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from securifile.model.errors import Code, DatabaseUnavailable, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import PersonGone
from securifile.model.ids import Position
from securifile.model.servers import HostPort, ServerKind, Status
from securifile.protocol.connection import Connection, PeerIdentity, Purpose, Side
from securifile.protocol.messages import Announce, AuditKept, Done, Ended, Heartbeat, HeartbeatAnswer, LeaseRelease
from securifile.protocol.rpc import BACKOFF_MAX_S, SILENCE_S, TURNED_AWAY_S, Peer
from securifile.protocol.wire import Wire, claimed, open_wire
from tests.protocol.cluster import A1, AT_N1, N1, N2, Rig, answering

BEAT = Heartbeat(position=Position(1, 2))
BEAT_ANSWER = HeartbeatAnswer(position=Position(1, 3), held_for=Status.RUNNING)


def test_ask_and_answer() -> None:
    """A question is answered, and both ends know whom they talk to."""
    rig = Rig()
    rig.serve({Heartbeat: answering(BEAT_ANSWER)})
    link = rig.link()
    assert rig.result(link.ask(BEAT, 1)) == BEAT_ANSWER
    assert [peer.identity for peer in rig.arrived] == [N2]
    assert [peer.identity for peer in rig.connected] == [N1]


def test_a_notice_says_one_thing() -> None:
    """Its connection is not taken for the server's own, which others would ask on it; and what goes on either is not taken on the other."""
    rig = Rig()
    rig.serve({Heartbeat: answering(BEAT_ANSWER)}, notices={Ended: answering(Done())})
    wire = Wire(
        clock=rig.clock,
        connection=Connection(Side.CLIENT, N2, Purpose.NOTICE),
        identify=claimed,
        judge=lambda identity: None,
        open_session=lambda opened: Peer(opened, {}),
    )
    rig.result(open_wire(rig.network.connector("n2")(AT_N1, N1), wire, 3.0))
    peer = wire.session
    assert isinstance(peer, Peer)
    assert rig.result(peer.ask(Ended(boot="b"), 1)) == Done()
    assert rig.arrived == []
    for asking in (peer.ask(BEAT, 1), rig.link().ask(Ended(boot="b"), 1)):
        failure = rig.outcome(asking)
        assert isinstance(failure.value, Refusal)
        assert failure.value.code is Code.UNKNOWN_MESSAGE
    peer.close()
    rig.settle()
    assert len(rig.arrived) == 1
    assert rig.left == []


def test_both_ask() -> None:
    """Who was connected to may ask as well."""
    rig = Rig()
    rig.serve({})
    rig.link({AuditKept: answering(Done())})
    assert rig.result(rig.arrived[0].ask(AuditKept(boot="b", number=3), 1)) == Done()


def test_many_at_once() -> None:
    """Answers find their questions, in whatever order they come."""
    rig = Rig()
    waiting: list[tuple[Heartbeat, Deferred[None]]] = []

    async def handler(peer: Peer, message: Heartbeat) -> HeartbeatAnswer:
        hold: Deferred[None] = Deferred()
        waiting.append((message, hold))
        await hold
        return HeartbeatAnswer(position=message.position, held_for=Status.RUNNING)

    rig.serve({Heartbeat: handler})
    link = rig.link()
    asked = [link.ask(Heartbeat(position=Position(1, number)), 1) for number in range(20)]
    rig.settle()
    for _, hold in reversed(waiting):
        hold.callback(None)
    assert [rig.result(answer).position.revision for answer in asked] == list(range(20))


def test_refusal_travels() -> None:
    """A handler's `Refusal` arrives as a `Refusal`, with its evidence."""
    rig = Rig()
    rig.serve({Heartbeat: answering(Refusal(Code.LOCKED, "someone is at it", retry_after_s=3, holder="ann"))})
    with pytest.raises(Refusal) as caught:
        rig.result(rig.link().ask(BEAT, 1))
    assert (caught.value.code, caught.value.retry_after_s, caught.value.evidence) == (Code.LOCKED, 3, {"holder": "ann"})


@pytest.mark.parametrize("answer", [ValueError("secret detail"), "no message", None])
def test_bug_in_handler(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Any other exception of a handler, or a nonsensical answer, is answered as a bug, without its text, and the connection goes on."""
    rig = Rig()
    rig.serve({Heartbeat: answering(answer), AuditKept: answering(Done())})
    link = rig.link()
    with pytest.raises(Refusal) as caught:
        rig.result(link.ask(BEAT, 1))
    assert caught.value.code is Code.BUG
    assert "secret" not in str(caught.value)
    assert rig.result(link.ask(AuditKept(boot="b", number=1), 1)) == Done()


def test_a_disk_that_is_full_is_no_bug() -> None:
    """A handler whose database cannot be written to refuses: the other end tries again later, and no bug is reported."""
    rig = Rig()
    rig.serve({Heartbeat: answering(DatabaseUnavailable("SQLITE_FULL: database or disk is full"))})
    with pytest.raises(Refusal) as caught:
        rig.result(rig.link().ask(BEAT, 1))
    assert caught.value.code is Code.CATALOGUE_UNAVAILABLE


def test_a_plain_function_answers_too() -> None:
    """Its answer goes out at once; what it raises arrives as from a coroutine function, and the connection goes on."""
    rig = Rig()

    def handler(peer: Peer, message: Heartbeat) -> HeartbeatAnswer:
        if message.used_bytes:
            raise Refusal(Code.LOCKED, "someone is at it") if message.used_bytes == 1 else ValueError("secret detail")
        return BEAT_ANSWER

    rig.serve({Heartbeat: handler})
    link = rig.link()
    for used_bytes, code in ((1, Code.LOCKED), (2, Code.BUG)):
        with pytest.raises(Refusal) as caught:
            rig.result(link.ask(Heartbeat(position=BEAT.position, used_bytes=used_bytes), 1))
        assert caught.value.code is code
        assert "secret" not in str(caught.value)
    assert rig.result(link.ask(BEAT, 1)) == BEAT_ANSWER


def test_no_handler() -> None:
    """A message that this kind of server does not take is refused."""
    rig = Rig()
    rig.serve({})
    with pytest.raises(Refusal) as caught:
        rig.result(rig.link().ask(BEAT, 1))
    assert caught.value.code is Code.UNKNOWN_MESSAGE


def test_deadline_cancels() -> None:
    """When the deadline passes the asker goes on and the handler is cancelled; its late answer harms nobody."""
    rig = Rig()
    cancelled = []

    async def handler(peer: Peer, message: Heartbeat) -> None:
        try:
            await Deferred()
        except CancelledError:
            cancelled.append(message)
            raise

    rig.serve({Heartbeat: handler, AuditKept: answering(Done())})
    link = rig.link()
    answer = link.ask(BEAT, 0.5)
    rig.settle(1.0)
    with pytest.raises(DeadlineExceeded):
        rig.result(answer)
    assert cancelled == [BEAT]
    assert rig.result(link.ask(AuditKept(boot="b", number=1), 1)) == Done()


def test_cancel() -> None:
    """Cancelling the Deferred cancels the handler."""
    rig = Rig()
    cancelled = []

    async def handler(peer: Peer, message: Heartbeat) -> Done:
        try:
            await Deferred()
        except CancelledError:
            cancelled.append(message)
        return Done()

    rig.serve({Heartbeat: handler})
    link = rig.link()
    answer = link.ask(BEAT, 5)
    rig.settle()
    answer.cancel()
    with pytest.raises(CancelledError):
        rig.result(answer)
    rig.settle()
    assert cancelled == [BEAT]
    assert link.connected


def test_lost_while_asking() -> None:
    """A lost connection fails the questions on it, and cancels what the other end was doing for them."""
    rig = Rig()
    cancelled = []

    async def handler(peer: Peer, message: Heartbeat) -> None:
        try:
            await Deferred()
        except CancelledError:
            cancelled.append(message)
            raise

    rig.serve({Heartbeat: handler})
    link = rig.link()
    answer = link.ask(BEAT, 5)
    rig.settle()
    rig.network.crash("n1")
    with pytest.raises(PeerUnreachable):
        rig.result(answer)
    assert cancelled == [BEAT]
    assert rig.lost == rig.connected[:1]


def test_reconnects() -> None:
    """A link connects again after a loss, and fails questions at once in between."""
    rig = Rig()
    rig.serve({Heartbeat: answering(BEAT_ANSWER)})
    link = rig.link()
    rig.network.crash("n1")
    rig.clock.advance(0)
    assert not link.connected
    with pytest.raises(PeerUnreachable):
        rig.result(link.ask(BEAT, 1), steps=1)
    rig.settle(0.2)
    assert rig.result(link.ask(BEAT, 1)) == BEAT_ANSWER
    assert len(rig.connected) == 2


def test_backs_off() -> None:
    """While nobody listens, attempts become rarer, down to one in about five seconds, and never stop."""
    rig = Rig()
    link = rig.link()
    rig.settle(60, steps=600)
    assert not link.connected
    rig.serve({Heartbeat: answering(BEAT_ANSWER)})
    rig.settle(5.1, steps=100)
    assert link.connected


def test_hurry() -> None:
    """A sign of life shortens the pause."""
    rig = Rig()
    link = rig.link()
    rig.settle(60, steps=600)
    rig.serve()
    link.hurry()
    rig.settle()
    assert link.connected


def test_silent_connection_is_cut() -> None:
    """When a peer is cut off without a word, unanswered questions end the connection, and the link is made again when the peer is back."""
    rig = Rig()
    rig.serve({Heartbeat: answering(BEAT_ANSWER)})
    link = rig.link()
    rig.settle(60)
    rig.network.cut("n1", "n2")
    for _ in range(int(SILENCE_S / 0.5) + 3):
        link.ask(BEAT, 0.5).addErrback(lambda failure: failure.trap(DeadlineExceeded, PeerUnreachable))
        rig.settle(0.5)
    assert not link.connected
    rig.network.heal("n1", "n2")
    rig.settle(6)
    assert rig.result(link.ask(BEAT, 1)) == BEAT_ANSWER


def test_one_late_answer_is_no_silence() -> None:
    """After a quiet hour one missed deadline does not cut the connection."""
    rig = Rig()
    hold: list[Deferred[None]] = []

    async def handler(peer: Peer, message: Heartbeat) -> HeartbeatAnswer:
        if message == BEAT:
            hold.append(Deferred())
            await hold[-1]
        return BEAT_ANSWER

    rig.serve({Heartbeat: handler})
    link = rig.link()
    rig.result(link.ask(Heartbeat(position=Position(1, 1)), 1))
    rig.settle(3600)
    answer = link.ask(BEAT, 0.5)
    rig.settle(1)
    with pytest.raises(DeadlineExceeded):
        rig.result(answer)
    assert link.connected
    assert len(rig.connected) == 1


def test_stop() -> None:
    """A stopped link closes, and connects no more."""
    rig = Rig()
    rig.serve()
    link = rig.link()
    rig.result(link.stop())
    rig.settle(60)
    assert not link.connected
    assert (len(rig.connected), len(rig.lost), len(rig.left)) == (1, 1, 1)
    assert rig.clock.getDelayedCalls() == []


def test_stop_while_trying() -> None:
    """A link that never connected can be stopped, and leaves no timer."""
    rig = Rig()
    link = rig.link()
    waiting = link.when_connected()
    rig.settle(7)
    rig.result(link.stop())
    with pytest.raises(PeerUnreachable):
        rig.result(waiting)
    rig.settle(1)
    assert rig.clock.getDelayedCalls() == []


def test_move() -> None:
    """A link follows its server to another address."""
    rig = Rig()
    factory = rig.serve()
    link = rig.link()
    elsewhere = HostPort("n1", 7001)
    rig.network.listen(elsewhere, factory)
    link.move(elsewhere)
    rig.settle(1)
    assert link.connected
    assert link.peer is not rig.connected[0]
    assert {transport.getHost().port for transport in rig.network.transports("n1")} == {7001}


def test_removed_member() -> None:
    """Who is not a member gets no connection, and is told why; who was removed loses it."""
    rig = Rig()
    factory = rig.serve()
    link = rig.link()
    rig.members.discard(N2)
    factory.drop("n2")
    rig.settle(1)
    assert not link.connected
    with pytest.raises(PeerUnreachable, match="not a member"):
        rig.result(link.ask(BEAT, 1))


@pytest.mark.parametrize("is_removed", [True, False])
def test_who_is_turned_away_hurries_only_while_there_is_hope(is_removed: bool) -> None:
    """Who may not be known yet asks again soon; who was removed once a minute at most. If it is let in again, it is connected."""
    rig = Rig()
    rig.serve()
    rig.members.discard(N2)
    link = rig.link()
    asked: list[float] = []

    def on_turned_away() -> bool:
        asked.append(rig.clock.seconds())
        return is_removed

    link.on_turned_away = on_turned_away
    rig.settle(600, 6000)
    longest_s = TURNED_AWAY_S if is_removed else BACKOFF_MAX_S
    pauses = [later - earlier for earlier, later in zip(asked, asked[1:], strict=False)]
    assert longest_s / 2 <= max(pauses) <= longest_s + 0.1
    rig.members.add(N2)
    rig.settle(longest_s + 1, 600)
    assert link.connected


@pytest.mark.parametrize(
    "expected",
    [A1, PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n3"), PeerIdentity(cluster="c", kind=ServerKind.ADMIN, name="n1")],
)
def test_wrong_server(expected: PeerIdentity) -> None:
    """A server that is not the one expected there is refused."""
    rig = Rig()
    rig.serve()
    link = rig.link(expected=expected)
    assert not link.connected
    with pytest.raises(PeerUnreachable, match="expected"):
        rig.result(link.ask(BEAT, 1))


def test_other_cluster() -> None:
    """Servers of different clusters do not talk."""
    rig = Rig()
    rig.serve()
    link = rig.link(here=PeerIdentity(cluster="d", kind=ServerKind.NODE, name="n2"))
    with pytest.raises(PeerUnreachable, match="different clusters"):
        rig.result(link.ask(BEAT, 1))


def test_silent_stranger() -> None:
    """Who connects and says nothing is cut off."""
    rig = Rig()
    rig.serve()
    rig.network.connector("x")(AT_N1, N1).connect(Factory.forProtocol(Protocol))
    rig.settle()
    assert len(rig.network.transports("n1")) == 1
    rig.settle(10)
    assert rig.network.transports("n1") == []


def test_close_all() -> None:
    """A server that shuts down says goodbye to everybody."""
    rig = Rig()
    factory = rig.serve()
    link = rig.link()
    rig.result(factory.close_all())
    rig.settle(0.01)
    with pytest.raises(PeerUnreachable, match=r"shutting down|nobody|lost"):
        rig.result(link.ask(BEAT, 1))
    assert len(rig.left) == 1


def test_too_long() -> None:
    """A message longer than a frame is found by its sender; the connection goes on."""
    rig = Rig()
    rig.serve({LeaseRelease: answering(Done()), Announce: answering(Done())})
    link = rig.link()
    facts = tuple(PersonGone(username="x" * 1000) for _ in range(5000))
    with pytest.raises(Exception, match="frame takes"):
        rig.result(link.ask(Announce(position=Position(1, 1), facts=facts), 1))
    assert rig.result(link.ask(Announce(position=Position(1, 1), facts=facts[:3000]), 1), steps=200) == Done()


def test_peer_that_does_not_read() -> None:
    """A peer that never reads is cut off instead of filling our memory."""
    rig = Rig()
    rig.serve({Announce: answering(Done())})
    link = rig.link()
    [theirs] = rig.network.transports("n1")
    theirs.pauseProducing()
    facts = tuple(PersonGone(username="x" * 1000) for _ in range(3000))
    lost: list[object] = []
    for _ in range(10):
        link.ask(Announce(position=Position(1, 1), facts=facts), 60).addErrback(lambda failure: lost.append(failure))
        rig.settle()
    assert rig.lost
    assert len(lost) == 10

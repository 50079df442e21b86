"""The parts of fronts, each by itself, with clocks and transports in memory."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from securifile.http.limits import HttpLimits
from securifile.http.request import Request
from securifile.http.transfers import Transfer
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Version
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.records import AuditRecord
from securifile.node.fronts.answering import NOTICE_S, FrontBackend, FrontTransfers, PassedOn
from securifile.node.fronts.control import pack_records, unpack_records
from securifile.node.fronts.gate import Gate, GateHttpFactory, Gates, may_answer
from securifile.node.fronts.handover import NOTE_BYTES, Taking, hand, pair
from securifile.node.fronts.hanging import HANGS_S, LOOK_S, LOOKS, Hanging
from securifile.node.fronts.recording import LATE_S, FrontAudit
from securifile.node.fronts.scoreboard import Scoreboard, YoungMarks, make_memory, young_place
from securifile.node.fronts.tunnel import Frames, FrontEnd, NodeEnds, TunnelHttpFactory, address_note, noted_address
from securifile.node.index import Index
from securifile.sql.sqlite import SqliteDatabase, SqliteReader
from tests.http.connections import HOST, Transport, parse_answers

CLIENT = IPv4Address("TCP", "192.0.2.7", 4711)
OWN = b"GET /api/v1/files/alice/x HTTP/1.1\r\n" + HOST + b"\r\n"
OTHER = b"GET /api/v1/files/alice/ HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture
def board() -> Iterator[Scoreboard]:
    """A scoreboard for two fronts, on which the node may serve until 100 s."""
    memory = make_memory(2)
    made = Scoreboard(memory, 2)
    os.close(memory)
    made.serves_until = made.goes_on_until = 100.0
    made.has_room = 1
    yield made


# --- the scoreboard and the handing over ---


def test_what_is_written_on_the_scoreboard_is_seen_by_who_shares_it() -> None:
    """Two processes have two mappings of the same memory."""
    memory = make_memory(2)
    ours, theirs = Scoreboard(memory, 2), Scoreboard(memory, 2)
    os.close(memory)
    ours.serves_until, ours.changes = 12.5, 7
    theirs.fronts[1].count_ended()
    assert (theirs.serves_until, theirs.changes) == (12.5, 7)
    assert (ours.fronts[0].ended, ours.fronts[1].ended) == (0, 1)
    ours.withdraw()
    assert theirs.serves_until == theirs.goes_on_until == float("-inf")
    ours.fronts[1].clear()
    assert theirs.fronts[1].ended == 0


def test_what_is_handed_over_comes_with_its_note() -> None:
    """Several in a row, each with its own; the descriptors are others, of the same files."""
    here, there = pair()
    taken: list[tuple[bytes, str]] = []
    taking = Taking(_Reactor(), there, lambda descriptor, note: taken.append((os.read(descriptor, 9), note)))
    for number in range(3):
        reading, writing = os.pipe()
        os.write(writing, b"pipe %d" % number)
        assert hand(here, reading, f"note {number}")
        os.close(reading)
        os.close(writing)
    taking.doRead()
    assert taken == [(b"pipe 0", "note 0"), (b"pipe 1", "note 1"), (b"pipe 2", "note 2")]
    here.close()
    taking.doRead()
    assert there.fileno() == -1


def test_one_that_cannot_be_taken_does_not_end_the_taking() -> None:
    """A process without a free descriptor misses a connection, and is told so; it takes the next when it has room again."""
    here, there = pair()
    taken: list[str] = []
    missed: list[bool] = []
    room = False

    def take(descriptor: int, note: str) -> None:
        if not room:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        taken.append(note)

    taking = Taking(_Reactor(), there, take, lambda: missed.append(room))
    with socket.socket() as anything:
        assert hand(here, anything.fileno(), "first")
        assert here.send(b"a note that has lost its descriptor".ljust(NOTE_BYTES)) == NOTE_BYTES
        taking.doRead()
        assert missed == [False, False] and not taken
        room = True
        assert hand(here, anything.fileno(), "second")
        taking.doRead()
    assert taken == ["second"] and len(missed) == 2
    here.close()
    there.close()


def test_nothing_is_handed_to_who_does_not_take_it() -> None:
    """Instead of waiting, it is said that it cannot be done; also when the other end is closed."""
    here, there = pair()
    with socket.socket() as anything:
        while hand(here, anything.fileno()):
            pass
        there.close()
        assert not hand(here, anything.fileno())
    here.close()


class _Reactor:
    def addReader(self, reader: Any) -> None:
        pass

    removeReader = addReader


@pytest.mark.parametrize("address", [CLIENT, IPv6Address("TCP", "2001:db8::7", 4711)])
def test_the_clients_address_goes_along(address: Any) -> None:
    """With its port, of either family."""
    assert noted_address(address_note(address)) == address


# --- records ---


def test_records_come_out_as_they_went_in() -> None:
    """All of them, in order, however many fit into a message."""
    records = [
        AuditRecord(at=number / 3, server="n1", event="read", person="zoë", path="a/" + "ä" * number, status=200, bytes=number, detail=None)
        for number in range(300)
    ]
    values = pack_records(records)
    assert len(values) > 1 and max(map(len, values)) < 1 << 16
    assert [record for value in values for record in unpack_records(value)] == records
    assert pack_records([]) == []


def test_a_front_answers_no_more_than_the_node_process_takes_down(board: Scoreboard) -> None:
    """Records that were not taken within a tenth of a second end it, until they are; and so does a full spool."""
    clock = Clock()
    sent: list[Deferred[Any]] = []

    def send(value: bytes) -> Deferred[Any]:
        sent.append(Deferred())
        return sent[-1]

    audit = FrontAudit(clock, board, send)
    audit.note(AuditRecord(at=0.0, server="n1", event="read"))
    assert audit.has_room() and not sent
    clock.advance(0.02)
    assert len(sent) == 1
    clock.advance(LATE_S)
    assert not audit.has_room()
    sent[0].callback({})
    assert audit.has_room()
    board.has_room = 0
    assert not audit.has_room()


# --- the backend ---


def settled(deferred: Any) -> Any:
    """What a coroutine, or a Deferred, comes to that waits for nothing."""
    results: list[Any] = []
    waited = deferred if isinstance(deferred, Deferred) else Deferred.fromCoroutine(deferred)
    waited.addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


class Room:
    """An audit log with room."""

    def has_room(self) -> bool:
        return True


@pytest.fixture
def backend(tmp_path: Path, board: Scoreboard) -> Iterator[tuple[FrontBackend, Index, Clock]]:
    """The backend of a front, and the index of its node process."""
    database = SqliteDatabase(tmp_path / "index.sqlite")
    index = Index(database, lambda: 0.0)
    settled(index.open())
    clock = Clock()

    async def no_password(asked: Any) -> None:
        return None

    reader = SqliteReader(tmp_path / "index.sqlite")
    made = FrontBackend(
        clock=clock,
        name="n1",
        cluster="c",
        board=board,
        index=reader,
        audit=Room(),
        look_password=no_password,
        forget_open_files=lambda: None,
    )
    yield made, index, clock
    reader.close()
    settled(database.close())


def test_what_a_front_remembers_is_void_when_the_index_has_changed(backend: tuple[FrontBackend, Index, Clock], board: Scoreboard) -> None:
    """From the moment of the commit on it gives what is committed, before anybody is told; and from memory before and after that."""
    front, index, _ = backend

    async def epoch(sql: Any) -> int:
        found: int = (await sql.query("SELECT epoch FROM watermark"))[0][0]
        return found

    async def move(sql: Any) -> None:
        await sql.execute("UPDATE watermark SET epoch = epoch + 1")

    async def nothing(sql: Any) -> int:
        raise AssertionError("it was remembered")

    seen: list[int] = []

    def around() -> None:
        # On both sides of the count: what is in the file must be what is given, also between COMMIT and the second raise.
        seen.append(settled(front.recall("epoch", epoch)))
        board.changes += 1
        seen.append(settled(front.recall("epoch", epoch)))

    index.watch_commits(around)
    assert settled(front.recall("epoch", epoch)) == 0
    assert settled(front.recall("epoch", nothing)) == 0
    settled(index.transact("move", move))
    assert seen == [0, 0, 1, 1]
    assert settled(front.recall("epoch", epoch)) == 1
    assert settled(front.recall("epoch", nothing)) == 1


def test_a_front_serves_until_the_time_on_the_scoreboard(backend: tuple[FrontBackend, Index, Clock], board: Scoreboard) -> None:
    """By the clock, with nobody telling it that it is over; and not when its node has taken the right back."""
    front, _, clock = backend
    clock.advance(99.9)
    settled(front.admit())
    clock.advance(0.1)
    with pytest.raises(PassedOn):
        settled(front.admit())
    board.serves_until = 200.0
    settled(front.admit())
    board.withdraw()
    with pytest.raises(PassedOn):
        settled(front.admit())


def test_a_ticket_from_later_than_the_index_is_for_the_node_process(backend: tuple[FrontBackend, Index, Clock]) -> None:
    """That can wait until it has come so far; a password that nobody has checked is for it, too."""
    front, _, _ = backend
    settled(front.reached(Position(0, 0)))
    with pytest.raises(PassedOn):
        settled(front.reached(Position(0, 1)))
    asked: Any = None
    with pytest.raises(PassedOn):
        settled(front.check_password(asked))


def test_a_change_is_noticed_by_transfers_under_way(board: Scoreboard) -> None:
    """A right that has ended cuts them off within a second; what changed just before one began makes it look again."""
    clock = Clock()
    transfers = FrontTransfers(clock=clock, interval_s=lambda: 0.5, serves=lambda: None, changes=lambda: board.changes)
    transfers.start()
    cut: list[str] = []

    async def check() -> None:
        raise Refusal(Code.FORBIDDEN, "not any more")

    one = Transfer(entry=EntryId(b"e" * 16), check=check, cut=cut.append, has_ended=lambda: False)
    with transfers.watched(one):
        clock.pump([NOTICE_S] * 8)
        assert cut == []
        board.changes += 1
        clock.pump([0.05] * 10)
        assert cut == ["not any more"]
    clock.advance(10)
    board.changes += 1
    began = clock.seconds()
    with transfers.watched(one):
        assert transfers.changed_at >= began
    transfers.stop()


# --- frames, gates and tunnels ---


def framed(one: bytes | int | None) -> bytes:
    """Bytes, the end (None), or a rest after so many bytes, as they are on the way."""
    if isinstance(one, bytes):
        return struct.pack(">BI", 0, len(one)) + one
    return struct.pack(">BI", 1, 0) if one is None else struct.pack(">BI", 2, one)


@given(st.lists(st.one_of(st.binary(min_size=1), st.none(), st.integers(0, 2**32 - 1))), st.randoms(use_true_random=False))
def test_frames_say_the_same_in_any_pieces(said: list[Any], chance: Any) -> None:
    """However the bytes are split on their way."""
    heard: list[Any] = []
    frames = Frames(lambda data: heard.extend(data), lambda: heard.append("end"), lambda count: heard.append(("rest", count)))
    stream = b"".join(framed(one) for one in said)
    while stream:
        count = chance.randint(1, len(stream))
        frames.feed(stream[:count])
        stream = stream[count:]
    expected: list[Any] = []
    for one in said:
        expected.extend(one if isinstance(one, bytes) else ["end"] if one is None else [("rest", one)])
    assert heard == expected


@pytest.mark.parametrize(
    ("data", "own"),
    [
        (OWN, True),
        (OWN.replace(b"GET", b"HEAD"), True),
        (OTHER, False),
        (OWN.replace(b"GET", b"PUT"), False),
        (OWN.replace(b"files", b"details"), False),
        (OWN[:-1], False),
        (OWN + b"G", False),
        (OWN + OWN, False),
        (b"", False),
    ],
)
def test_a_front_looks_at_whole_heads_for_files(data: bytes, own: bool) -> None:
    """And at nothing else: not at folders, other methods, parts of a head, or more than one."""
    assert may_answer(data) is own


class Site(Resource):
    """Answers with its name, or, as a front that cannot, passes on."""

    isLeaf = True

    def __init__(self, name: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name
        self.passes_on = False
        self.peers: list[str] = []
        self.bodies: list[bytes] = []

    def render(self, request: Any) -> Any:
        self.peers.append(request.peer)
        if self.passes_on:
            request.channel.transport.pass_on()
            return NOT_DONE_YET
        reading = Deferred.fromCoroutine(self._answer(request))
        reading.addErrback(lambda _: None)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        body = b""
        while piece := await request.body.read():
            body += piece
        self.bodies.append(body)
        sink = request.start(200, (), len(self.name))
        await sink.write(self.name)
        sink.finish()


class House:
    """A front and its node process, with a tunnel in memory between them, and one client."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.front, self.node = Site(b"front"), Site(b"node")
        self.tunnels: list[tuple[FrontEnd, Transport, Any, Transport]] = []
        self.ended = 0
        self.has_room = True
        """Whether tunnels can be made."""
        self.refusal: Refusal | None = None
        """What requests are told that the front would pass on."""
        self.nodes_http = TunnelHttpFactory(self.node, self.clock, HttpLimits(), None, None)
        self.ends = NodeEnds(self.nodes_http)
        self.gates = Gates(
            clock=self.clock,
            http=GateHttpFactory.of(self.front, self.clock, HttpLimits(**limits), lambda: 0.0),
            open_tunnel=self._open,
            passed_on=lambda: None,
            ended=self._end,
            refusal=lambda: self.refusal,
        )

    def _end(self) -> None:
        self.ended += 1

    def _open(self, end: FrontEnd, client: Any) -> bool:
        if not self.has_room:
            return False
        theirs = self.ends.of(client).buildProtocol(None)
        ours_below, theirs_below = Transport(), Transport()
        end.makeConnection(ours_below)  # type: ignore[no-untyped-call]
        theirs.makeConnection(theirs_below)
        self.tunnels.append((end, ours_below, theirs, theirs_below))
        return True

    def connect(self) -> Client:
        return Client(self)

    def settle(self) -> None:
        """Carry what is in the tunnels to and fro until nothing moves."""
        moved = True
        while moved:
            moved = False
            self.clock.advance(0)
            for end, ours, theirs, below in self.tunnels:
                for receiver, sender in ((theirs, ours), (end, below)):
                    data = sender.value()
                    if data:
                        sender.clear()
                        receiver.dataReceived(data)
                        moved = True


class Client:
    """A connection to a gate."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.transport = Transport(peerAddress=CLIENT)
        self.gate: Gate = house.gates.buildProtocol(CLIENT)
        self.gate.makeConnection(self.transport)

    def ask(self, data: bytes) -> list[bytes]:
        """Send; the contents of the answers that come."""
        self.gate.dataReceived(data)
        self.house.settle()
        said = self.transport.value()
        self.transport.clear()
        return [answer.content for answer in parse_answers(said)]


def test_a_request_is_answered_by_whom_it_is_for() -> None:
    """Of one connection, some by the front and some by the node process, which sees the client's address; one tunnel is enough."""
    house = House()
    client = house.connect()
    for _ in range(3):
        assert client.ask(OWN) == [b"front"]
        assert client.ask(OTHER) == [b"node"]
        assert client.ask(OTHER) == [b"node"]
    assert len(house.tunnels) == 1
    assert set(house.node.peers) == {"192.0.2.7"}


def test_what_a_front_cannot_answer_the_node_process_gets_whole() -> None:
    """The request that the channel had read already, and what the client has sent behind it."""
    house = House()
    house.front.passes_on = True
    client = house.connect()
    assert client.ask(OWN) == [b"node"]
    assert client.ask(OWN) == [b"node"]
    house.front.passes_on = False
    assert client.ask(OWN) == [b"front"]
    assert client.ask(OWN + OTHER + OWN) == [b"node"] * 3


def test_bodies_go_through_in_any_pieces() -> None:
    """An upload is the node process's, and so is what a client sends before the upload has been answered."""
    house = House()
    client = house.connect()
    head = b"PUT /api/v1/files/alice/x HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n"
    assert client.ask(head) == []
    assert client.ask(b"01234") == []
    assert client.ask(b"56789" + OWN) == [b"node", b"node"]
    assert house.node.bodies == [b"0123456789", b""]
    assert client.ask(OWN) == [b"front"]


def test_the_next_request_is_not_lost_when_it_crosses_the_offer_to_look_at_it() -> None:
    """The node process says that it is at rest while the next request is on its way to it: then it is the one that answers."""
    house = House()
    client = house.connect()
    client.gate.dataReceived(OTHER)
    end, ours, theirs, below = house.tunnels[0]
    theirs.dataReceived(ours.value())
    ours.clear()
    house.clock.advance(0)
    # The answer, and the offer, are under way; the client is fast, and does not wait for the next answer either.
    client.gate.dataReceived(OTHER)
    end.dataReceived(below.value())
    below.clear()
    client.gate.dataReceived(OWN)
    house.settle()
    assert [answer.content for answer in parse_answers(client.transport.value())] == [b"node"] * 3


def test_an_answer_that_is_cut_off_does_not_end_well() -> None:
    """A tunnel that is lost without an end closes the client's connection at once, and one with an end in order."""
    house = House()
    client = house.connect()
    client.ask(OTHER)
    house.tunnels[0][0].connectionLost()
    assert client.transport.aborted
    house = House()
    client = house.connect()
    client.ask(OTHER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert not client.transport.aborted and client.transport.half_closed
    client.gate.connectionLost()
    assert house.ended == 1


def test_an_idle_tunnel_that_ends_leaves_the_client_alone() -> None:
    """The node process closes what nobody uses; the client speaks with the front meanwhile, and gets a new tunnel when it needs one."""
    house = House()
    client = house.connect()
    client.ask(OTHER)
    assert client.ask(OWN) == [b"front"]
    house.tunnels[0][2].loseConnection()
    house.settle()
    assert client.ask(OWN) == [b"front"]
    assert client.ask(OTHER) == [b"node"]
    assert len(house.tunnels) == 2


def test_a_client_that_has_gone_takes_its_tunnel_along() -> None:
    """So that the node process does not wait for it."""
    house = House()
    client = house.connect()
    client.ask(OTHER)
    client.gate.connectionLost()
    assert house.tunnels[0][1].disconnecting
    assert house.gates.connections == 0


def test_the_limit_counts_connections_with_tunnels() -> None:
    """The one that has rested for longest gives way, whoever answered it last."""
    house = House(connections_max=2)
    first, second = house.connect(), house.connect()
    first.ask(OTHER)
    second.ask(OWN)
    third = house.connect()
    assert first.transport.half_closed
    assert third.ask(OWN) == [b"front"]


def test_a_client_waits_with_its_tunnel() -> None:
    """Who takes nothing of an answer makes the node process wait, and is cut off after a while."""
    house = House()
    client = house.connect()
    client.ask(OTHER)
    patience: Any = client.transport.producer
    patience.pauseProducing()
    assert house.tunnels[0][1].is_paused
    patience.resumeProducing()
    assert not house.tunnels[0][1].is_paused
    patience.pauseProducing()
    house.clock.advance(HttpLimits().send_stall_s + 1)
    assert client.transport.aborted


def test_a_front_stops_when_its_connections_are_closed() -> None:
    """Idle ones at once; the rest is cut off after the grace."""
    house = House()
    house.connect()
    used = house.connect()
    used.ask(OTHER)
    done: list[None] = []
    house.gates.shut_down(5.0).addCallback(done.append)
    house.clock.advance(5.0)
    assert used.transport.aborted
    for gate in list(house.gates.protocols):
        gate.connectionLost()
    assert done == [None]


# --- a node process that hangs ---


GONE = Refusal(Code.NOT_RUNNING, "The process of this node does not answer.", retry_after_s=1.0)


@pytest.mark.parametrize("before", [[], [OTHER], [OWN]])
@pytest.mark.parametrize("own", [True, False])
def test_while_the_node_process_hangs_nothing_is_passed_on(before: list[bytes], own: bool) -> None:
    """The client is told so and let go, whatever was asked before on its connection; the node process never sees the request."""
    house = House()
    client = house.connect()
    for said in before:
        client.ask(said)
    house.front.passes_on = True
    house.refusal = GONE
    client.gate.dataReceived(OWN if own else b"PUT /api/v1/files/alice/x HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n")
    client.gate.dataReceived(b"one")
    (answer,) = parse_answers(client.transport.value())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert json.loads(answer.content)["code"] == Code.NOT_RUNNING
    assert client.transport.half_closed
    assert not any(ours.value() for _, ours, _, _ in house.tunnels)
    client.gate.connectionLost()
    assert house.gates.connections == 0 and house.gates.resting == {}


def test_a_head_is_refused_without_content() -> None:
    """As the answer to any HEAD."""
    house = House()
    house.refusal = GONE
    client = house.connect()
    client.gate.dataReceived(b"HEAD /api/v1/files/alice/ HTTP/1.1\r\n" + HOST + b"\r\n")
    assert client.transport.value().endswith(b"\r\n\r\n")


def test_a_request_that_cannot_be_passed_on_is_refused() -> None:
    """There is no descriptor for a tunnel, or the node process takes none: nothing was done, and the client is told so."""
    house = House()
    house.has_room = False
    client = house.connect()
    client.gate.dataReceived(OTHER)
    (answer,) = parse_answers(client.transport.value())
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    client.gate.connectionLost()
    assert house.ended == 1


def test_who_waits_for_a_node_process_that_hangs_is_let_go() -> None:
    """Connections whose requests it has are closed at once; one whose request was answered, or that has asked nothing, is not."""
    house = House()
    new, served, answered, waiting = (house.connect() for _ in range(4))
    served.ask(OWN)
    answered.ask(OTHER)
    waiting.gate.dataReceived(OTHER)
    assert house.gates.give_up() == 1
    assert [one.transport.aborted for one in (new, served, answered, waiting)] == [False, False, False, True]


def test_a_node_process_hangs_when_its_beat_ends(board: Scoreboard) -> None:
    """New requests are refused after two seconds without it, and those that wait are given up after ten looks."""
    clock = Clock()
    given_up: list[float] = []

    def give_up() -> int:
        given_up.append(clock.seconds())
        return 3

    hanging = Hanging(clock, board, name="n1", others=lambda: ["https://n2"], give_up=give_up)
    hanging.start()
    for _ in range(100):
        clock.advance(0.2)
        board.alive_at = clock.seconds()
    clock.advance(HANGS_S - 0.1)
    assert hanging.refusal() is None
    clock.advance(0.1)
    refusal = hanging.refusal()
    assert refusal is not None and (refusal.code, refusal.evidence["servers"]) == (Code.NOT_RUNNING, ["https://n2"])
    clock.pump([LOOK_S] * (LOOKS - 3))
    assert given_up == []
    clock.pump([LOOK_S] * 4)
    assert len(given_up) > 1, "one that was passed on just before"
    board.alive_at = clock.seconds()
    assert hanging.refusal() is None
    given_up.clear()
    clock.pump([LOOK_S] * LOOKS)
    assert given_up == []


def test_processes_that_were_all_stopped_together_give_nobody_up(board: Scoreboard) -> None:
    """However long it was: the front may be the first to go on, and sees the beat again at its next look."""
    clock = Clock()
    given_up: list[float] = []
    hanging = Hanging(clock, board, name="n1", others=list, give_up=lambda: len(given_up) or given_up.append(1.0) or 1)
    hanging.start()
    board.alive_at = clock.seconds()
    clock.advance(600.0)
    board.alive_at = clock.seconds()
    clock.pump([LOOK_S] * (LOOKS - 1))
    assert given_up == []


# --- versions that are not settled ---


def test_what_may_be_young_is_passed_on(backend: tuple[FrontBackend, Index, Clock], board: Scoreboard) -> None:
    """A front gives a version only if the scoreboard has no mark for it: else the node process answers, which can ask."""
    front = backend[0]
    version = Version(
        number=1,
        attempt=AttemptId(b"ab" * 8),
        size=1,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(),
    )
    file = File(id=EntryId(bytes(16)), owner="ann", parent=EntryId(bytes(16)), name="x", created_at=0.0, version=version)
    place = young_place(version.attempt)

    def is_passed_on() -> bool:
        try:
            return settled(front.shown(file)) is not file
        except PassedOn:
            return True

    assert not is_passed_on()
    board.set_young(place, True)
    assert is_passed_on()
    board.set_young(place, False)
    assert not is_passed_on()
    board.everything_young = 1
    assert is_passed_on()
    board.everything_young = 0
    assert not is_passed_on()


def test_the_marks_of_young_versions(board: Scoreboard) -> None:
    """A place is marked while any version that shares it is young; when everything is, nothing is marked by itself any more."""
    marks = YoungMarks(board)
    one, other, elsewhere = (AttemptId(start + bytes(14)) for start in (b"ab", b"ab", b"cd"))
    marks.mark(one)
    marks.mark(other)
    assert board.may_be_young(one) and not board.may_be_young(elsewhere)
    marks.unmark(one)
    assert board.may_be_young(other)
    marks.unmark(other)
    assert not board.may_be_young(other)
    marks.mark(one)
    marks.mark_everything(True)
    assert board.may_be_young(one) and board.may_be_young(elsewhere)
    marks.mark_everything(False)
    assert not board.may_be_young(one) and not board.may_be_young(elsewhere)

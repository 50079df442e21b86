"""What is in a spool reaches an admin server, whatever breaks, and memory stays bounded on the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.audit.framing import FrameDecoder
from securifile.audit.records import parse_message, record_of
from securifile.audit.sender import GATHER_S, STALL_S, AuditSender, Sending
from securifile.audit.spool import Spool
from tests.audit.doubles import AT_THE_END, StepWorker, done, ending, record, spool
from tests.audit.test_keeping import Admin, Table
from tests.audit.test_spool import remember


class Wire(StringTransport):
    """A transport that tells its protocol when it is closed, as real ones do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.decoder = FrameDecoder()
        self.protocol: Any = None
        self.closed = False

    def loseConnection(self) -> None:
        self.disconnecting = True
        self.close()

    def abortConnection(self) -> None:
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def numbers(self) -> list[tuple[str, int]]:
        """What arrived since the last time."""
        found = []
        for event in self.decoder.receive(self.taken()):
            assert isinstance(event, bytes)
            one = record_of(parse_message(event))
            assert one is not None
            found.append((one.boot, one.number))
        return found

    def taken(self) -> bytes:
        """The bytes that were written since the last time."""
        content: bytes = self.value()  # type: ignore[no-untyped-call]
        self.clear()  # type: ignore[no-untyped-call]
        return content


@implementer(IStreamClientEndpoint)
class Address:
    """An endpoint that answers at once, refuses, or is silent."""

    def __init__(self, mood: str = "answers") -> None:
        self.mood = mood
        self.wires: list[Wire] = []
        self.attempts = 0

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        self.attempts += 1
        if self.mood == "refuses":
            return defer.fail(ConnectionRefusedError())
        if self.mood == "is silent":
            return Deferred()
        wire = Wire()
        wire.protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 6514))
        self.wires.append(wire)
        wire.protocol.makeConnection(wire)
        return defer.succeed(wire.protocol)

    @property
    def wire(self) -> Wire:
        return self.wires[-1]


def sending(trail: Spool, clock: Clock, *addresses: Address, **options: Any) -> AuditSender:
    sender = AuditSender(trail, lambda: addresses, clock=clock, random=bytes, **options)
    sender.startService()
    return sender


def filled(tmp_path: Path, clock: Clock, count: int, boot: str = "b1") -> Spool:
    trail = spool(tmp_path, boot, clock=clock)
    for n in range(1, count + 1):
        done(trail.keep(record(n)))
    return trail


def test_sends_all_in_order(tmp_path: Path) -> None:
    """Old boots first, then this one's, then what comes."""
    clock = Clock()
    filled(tmp_path, clock, 2, "b1")
    trail, address = filled(tmp_path, clock, 2, "b2"), Address()
    sending(trail, clock, address)
    assert address.wire.numbers() == [("b1", 1), ("b1", 2), ("b2", 1), ("b2", 2)]
    done(trail.keep(record(3)))
    clock.advance(GATHER_S)
    assert address.wire.numbers() == [("b2", 3)]


def test_what_comes_together_is_sent_together(tmp_path: Path) -> None:
    """Once there is a record, those of the next moment go with it; that moment is short."""
    clock = Clock()
    trail, address = filled(tmp_path, clock, 1), Address()
    sending(trail, clock, address)
    assert address.wire.numbers() == [("b1", 1)]
    for number in (2, 3, 4):
        done(trail.keep(record(number)))
        clock.advance(GATHER_S / 4)
        assert address.wire.numbers() == []
    clock.advance(GATHER_S / 2)
    assert address.wire.numbers() == [("b1", 2), ("b1", 3), ("b1", 4)]
    assert GATHER_S <= 0.1


def test_goes_on_from_the_first_unconfirmed(tmp_path: Path) -> None:
    """After a break all is sent again that was not confirmed, to the next address."""
    clock = Clock()
    trail, first, second = filled(tmp_path, clock, 4), Address(), Address()
    sender = sending(trail, clock, first, second)
    assert len(first.wire.numbers()) == 4
    sender.confirmed("b1", 2)
    first.wire.close()
    clock.pump([1] * 3)
    assert second.wire.numbers() == [("b1", 3), ("b1", 4)]


@pytest.mark.parametrize("mood", ["refuses", "is silent"])
def test_next_address(tmp_path: Path, mood: str) -> None:
    """An admin server that is gone is passed over."""
    clock = Clock()
    gone, there = Address(mood), Address()
    sending(filled(tmp_path, clock, 1), clock, gone, there)
    assert there.wires == []
    clock.pump([0.5] * 30)
    assert there.wire.numbers() == [("b1", 1)]
    assert gone.attempts == 1


def test_backs_off(tmp_path: Path) -> None:
    """When nobody answers attempts become rare, but never cease."""
    clock, address = Clock(), Address("refuses")
    sending(filled(tmp_path, clock, 1), clock, address)
    clock.pump([1] * 600)
    assert 40 < address.attempts < 120
    address.mood = "answers"
    clock.pump([1] * 20)
    assert address.wire.numbers() == [("b1", 1)]


def test_no_addresses_yet(tmp_path: Path) -> None:
    """A node that knows no admin server yet asks again."""
    clock, address = Clock(), Address()
    addresses: list[Address] = []
    AuditSender(filled(tmp_path, clock, 1), lambda: addresses, clock=clock, random=bytes).startService()
    clock.advance(1)
    addresses.append(address)
    clock.pump([1] * 20)
    assert address.wire.numbers() == [("b1", 1)]


def test_window(tmp_path: Path) -> None:
    """No more is on its way than the window; each confirmation lets more out."""
    clock = Clock()
    trail, address = filled(tmp_path, clock, 2000), Address()
    sender = sending(trail, clock, address, window_bytes=1000)
    sent = address.wire.numbers()
    assert len(sent) < 700
    done(trail.keep(record(2001)))
    assert address.wire.numbers() == []
    while sent[-1][1] < 2001:
        sender.confirmed(*sent[-1])
        more = address.wire.numbers()
        assert 0 < len(more) < 700
        sent += more
    assert [number for _, number in sent] == list(range(1, 2002))


def test_full_transport(tmp_path: Path) -> None:
    """While the transport is full nothing is read from the disk."""
    clock, address = Clock(), Address()
    trail = filled(tmp_path, clock, 1)
    sending(trail, clock, address)
    address.wire.numbers()
    protocol = address.wire.protocol
    assert isinstance(protocol, Sending)
    protocol.pauseProducing()
    done(trail.keep(record(2)))
    clock.advance(GATHER_S)
    assert address.wire.numbers() == []
    protocol.resumeProducing()
    assert address.wire.numbers() == [("b1", 2)]


def test_stall(tmp_path: Path) -> None:
    """An admin server that takes and never confirms is left for the next one; one that confirms is not."""
    clock, address, other = Clock(), Address(), Address()
    trail = filled(tmp_path, clock, 2)
    sender = sending(trail, clock, address, other)
    clock.advance(STALL_S - 1)
    sender.confirmed("b1", 1)
    clock.advance(STALL_S - 1)
    assert not address.wire.closed
    clock.advance(2)
    assert address.wire.closed
    clock.pump([1] * 3)
    assert other.wire.numbers() == [("b1", 2)]
    sender.confirmed("b1", 2)
    clock.pump([1] * 100)
    assert not other.wire.closed


def test_stop(tmp_path: Path) -> None:
    """A sender that stops closes its connection and leaves no timer, whatever it was doing."""
    for mood in ("answers", "refuses", "is silent"):
        clock, address = Clock(), Address(mood)
        sender = sending(filled(tmp_path / mood.replace(" ", ""), clock, 1), clock, address)
        sender.stopService()
        assert clock.getDelayedCalls() == []
        assert all(wire.closed for wire in address.wires)


def test_copy(tmp_path: Path) -> None:
    """A copy for another syslog server needs no confirmation, goes on where it was, and holds nothing in the spool."""
    clock, address = Clock(), Address()
    trail = filled(tmp_path, clock, 3)
    sending(trail, clock, address, confirming=False, window_bytes=1)
    assert len(address.wire.numbers()) == 3
    clock.advance(10 * STALL_S)
    assert not address.wire.closed
    address.wire.close()
    clock.pump([1] * 3)
    done(trail.keep(record(4)))
    clock.advance(GATHER_S)
    assert address.wire.numbers() == [("b1", 4)]
    trail.confirm("b1", 4)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_from_node_to_admin(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Spool, sender, receiver and keeper together: whatever restarts or breaks, each kept record is kept once, in file and SQL."""
    AT_THE_END.close()
    directory = tmp_path_factory.mktemp("both")
    table, clock, address = Table(), Clock(), Address()
    lives: list[str] = []
    must: list[tuple[str, int]] = []

    def start_node() -> tuple[Spool, AuditSender]:
        lives.append(f"b{len(lives)}")
        trail = spool(directory / "node", lives[-1], clock=clock, segment_bytes=1000)
        return trail, sending(trail, clock, address)

    def start_admin() -> Admin:
        made = Admin(directory / "admin", table)
        made.keeper.watch(lambda server, boot, number: None if deaf else sender.confirmed(boot, number))
        return made

    deaf, ends = False, {}
    trail, sender = start_node()
    admin = start_admin()

    def carry() -> None:
        """The network: what was written arrives."""
        for wire in address.wires:
            if wire.closed:
                continue
            if wire not in ends:
                ends[wire] = admin.connect()[0]
            ends[wire].dataReceived(wire.taken())

    def cut() -> None:
        for wire in address.wires:
            wire.close()
        for end in ends.values():
            end.connectionLost()
        ends.clear()
        address.wires.clear()

    steps: dict[str, Callable[[], None]] = {"c": carry, "x": cut, "t": lambda: clock.advance(1)}
    count = 0
    for action in data.draw(st.lists(st.sampled_from("kkkcctxnarde"), max_size=40)):
        if action in steps:
            steps[action]()
        elif action == "k":
            count += 1
            trail.keep(record(count)).addCallback(partial(remember, must, (lives[-1], trail._next_number - 1)))
        elif action == "n":
            cut()
            sender.stopService()
            trail, sender = start_node()
        elif action == "r":
            cut()
            admin = start_admin()
        elif action == "a":
            table.away = not table.away
        elif action == "d":
            deaf = not deaf
        elif action == "e":
            admin.clock.advance(1)
    table.away = deaf = False
    cut()
    for _ in range(60):
        clock.advance(1)
        carry()
        admin.clock.advance(1)
    assert {(boot, number) for _, boot, number in table.rows} == set(must)
    filed = [(boot, number) for boot in lives for number in admin.filed(boot)]
    assert sorted(filed) == sorted(must)
    assert trail.unconfirmed_bytes < 2000
    shutil.rmtree(directory)


def test_kept_while_the_disk_is_read(tmp_path: Path) -> None:
    """A record that becomes durable just while the sender finds nothing more is not left lying."""
    worker, clock, address = StepWorker(), Clock(), Address()
    trail = ending(Spool(tmp_path, boot="b1", version="1", worker=worker, clock=clock))
    trail.open()
    worker.run()
    trail.keep(record(1))
    worker.run()
    sending(trail, clock, address)
    assert worker.names == ["read"]
    trail.keep(record(2))
    # The write ends before the read that began earlier.
    worker.waiting.reverse()
    worker.names.reverse()
    worker.run()
    assert address.wire.numbers() == [("b1", 1), ("b1", 2)]

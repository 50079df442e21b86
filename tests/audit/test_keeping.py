"""An admin server keeps each record once: in its file and in SQL, and says so only when it is in both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from securifile.audit.framing import encode_frame
from securifile.audit.keeping import AuditFile, Keeper, ReceivedRecord
from securifile.audit.local import LocalAudit
from securifile.audit.receiver import AuditReceiver, Receiving
from securifile.audit.records import NumberedRecord, format_record, parse_message, record_of
from securifile.model.errors import DatabaseUnavailable
from securifile.model.records import AuditRecord
from tests.audit.doubles import AT_THE_END, InlineWorker, done, record, spool


class Table:
    """What SQL would be: idempotent, and away when it is told to be."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, int], AuditRecord] = {}
        self.away = False
        self.dies_after_commit = False
        self.calls = 0

    async def store(self, records: list[ReceivedRecord]) -> None:
        self.calls += 1
        if self.away:
            raise DatabaseUnavailable("away")
        for one in records:
            self.rows.setdefault((one.server, one.boot, one.number), one.record)
        if self.dies_after_commit:
            raise DatabaseUnavailable("no answer")

    async def last_kept(self, server: str, boot: str) -> int:
        if self.away:
            raise DatabaseUnavailable("away")
        return max((n for known, other, n in self.rows if (known, other) == (server, boot)), default=0)

    def numbers(self, boot: str = "b1") -> list[int]:
        return sorted(n for _, other, n in self.rows if other == boot)


class Admin:
    """A keeper on a clock, its file, its table, and what it confirmed."""

    def __init__(
        self, directory: Path, table: Table | None = None, *, worker: Any = None, peer: str | None = "node-1", **limits: Any
    ) -> None:
        self.directory = directory
        self.table = table or Table()
        self.clock = Clock()
        self.wall = 1795255063.0
        self.peer = peer
        self.worker = worker or InlineWorker()
        self.kept: list[tuple[str, str, int]] = []
        file = AuditFile(directory, rotate_bytes=limits.pop("rotate_bytes", 1 << 20))
        AT_THE_END.callback(file.close)
        self.keeper = Keeper(
            file, store=self.table.store, last_kept=self.table.last_kept,
            worker=self.worker, clock=self.clock, wall=lambda: self.wall, random=bytes, **limits,
        )  # fmt: skip
        self.keeper.watch(lambda *said: self.kept.append(said))
        self.receiver = AuditReceiver(
            self.keeper, clock=self.clock, wall=lambda: self.wall, random=bytes, peer_name=lambda _: self.peer, connections_max=3
        )
        self.keeper.startService()

    def connect(self) -> tuple[Receiving, StringTransport]:
        receiving = self.receiver.buildProtocol(None)
        assert receiving is not None
        transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.9", 1))
        receiving.makeConnection(transport)  # type: ignore[no-untyped-call]
        return receiving, transport

    def lines(self) -> list[bytes]:
        older = sorted(self.directory.glob("audit-*.log"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return b"".join(path.read_bytes() for path in [*older, self.directory / "audit.log"] if path.exists()).splitlines()

    def filed(self, boot: str = "b1") -> list[int]:
        found = [record_of(parse_message(line)) for line in self.lines()]
        return [one.number for one in found if one is not None and one.boot == boot]


def message(n: int, boot: str = "b1", **fields: Any) -> bytes:
    return format_record(NumberedRecord(boot=boot, number=n, record=record(n, **fields)), version="1")


def stream(*numbers: int, boot: str = "b1") -> bytes:
    return b"".join(encode_frame(message(n, boot)) for n in numbers)


def test_kept_in_both(tmp_path: Path) -> None:
    """A record goes into the file and SQL, and is confirmed with its number."""
    admin = Admin(tmp_path)
    connection, _ = admin.connect()
    connection.dataReceived(stream(1, 2, 3))
    assert admin.filed() == admin.table.numbers() == [1, 2, 3]
    assert admin.kept[-1] == ("node-1", "b1", 3)
    assert admin.table.rows["node-1", "b1", 2] == record(2)


def test_doubles_are_dropped_and_confirmed_again(tmp_path: Path) -> None:
    """What comes again is not kept again, but its sender is told once more, in one word for all."""
    admin = Admin(tmp_path)
    for _ in range(2):
        connection, _ = admin.connect()
        connection.dataReceived(stream(1, 2, 3))
    confirmed = len(admin.kept)
    admin.clock.advance(1)
    assert admin.kept[confirmed:] == [("node-1", "b1", 3)]
    assert admin.filed() == admin.table.numbers() == [1, 2, 3]


def test_without_sql_nothing_is_confirmed(tmp_path: Path) -> None:
    """While SQL is away records are in the file only; when it is back each is in both, once."""
    admin = Admin(tmp_path)
    connection, _ = admin.connect()
    connection.dataReceived(stream(1))
    admin.table.away = True
    connection.dataReceived(stream(2, 3))
    again, _ = admin.connect()
    again.dataReceived(stream(2, 3, 4))
    assert admin.filed() == [1, 2, 3]
    assert admin.kept == [("node-1", "b1", 1)]
    admin.table.away = False
    admin.clock.pump([1] * 40)
    assert admin.filed() == admin.table.numbers() == [1, 2, 3, 4]
    assert admin.kept[-1] == ("node-1", "b1", 4)


def test_lost_answer_of_sql(tmp_path: Path) -> None:
    """A transaction whose answer was lost is tried again, and confirmed then."""
    admin = Admin(tmp_path)
    admin.table.dies_after_commit = True
    connection, _ = admin.connect()
    connection.dataReceived(stream(1, 2))
    assert admin.kept == []
    admin.table.dies_after_commit = False
    admin.clock.pump([1] * 20)
    assert admin.kept[-1] == ("node-1", "b1", 2)
    assert admin.filed() == [1, 2]


def test_restart_between_file_and_sql(tmp_path: Path) -> None:
    """Killed after the file and before SQL: what is sent again goes to SQL only, and the half line at the end is cut."""
    admin = Admin(tmp_path)
    connection, _ = admin.connect()
    connection.dataReceived(stream(1))
    admin.table.away = True
    connection.dataReceived(stream(2, 3))
    with (tmp_path / "audit.log").open("ab") as file:
        file.write(message(4)[:50])
    admin.table.away = False
    after = Admin(tmp_path, admin.table)
    connection, _ = after.connect()
    connection.dataReceived(stream(2, 3, 4))
    assert after.filed() == after.table.numbers() == [1, 2, 3, 4]


def test_full_disk(tmp_path: Path) -> None:
    """When the file cannot be written nothing is stored or confirmed; later it is, once."""
    worker = InlineWorker()
    admin = Admin(tmp_path, worker=worker)
    worker.broken.add("append")
    connection, _ = admin.connect()
    connection.dataReceived(stream(1, 2))
    assert (admin.kept, admin.table.numbers()) == ([], [])
    worker.broken.clear()
    admin.clock.pump([1] * 20)
    assert admin.filed() == admin.table.numbers() == [1, 2]


def test_bounded_memory(tmp_path: Path) -> None:
    """While SQL is away and enough is pending the connections are not read; then they are."""
    admin = Admin(tmp_path, pending_bytes_max=2000)
    connection, transport = admin.connect()
    connection.dataReceived(stream(1))
    admin.table.away = True
    connection.dataReceived(stream(*range(2, 12)))
    assert transport.producerState == "paused"
    assert len(admin.filed()) < 11
    admin.table.away = False
    admin.clock.pump([1] * 20)
    assert transport.producerState == "producing"
    assert admin.filed() == admin.table.numbers() == list(range(1, 12))


def test_gone_while_waiting(tmp_path: Path) -> None:
    """A connection that is lost while it waits for SQL leaves nothing behind that counts, and no timer."""
    admin = Admin(tmp_path)
    admin.table.away = True
    connection, transport = admin.connect()
    connection.dataReceived(stream(1, 2))
    assert transport.producerState == "paused"
    connection.connectionLost()
    assert admin.clock.getDelayedCalls() == []
    assert admin.receiver.connections == 0
    admin.table.away = False
    connection, _ = admin.connect()
    connection.dataReceived(stream(1, 2))
    assert admin.filed() == [1, 2]


def test_another_admin_kept_more(tmp_path: Path) -> None:
    """A node that was with another admin server meanwhile goes on from what SQL says, not from what is remembered here."""
    table = Table()
    first, second = Admin(tmp_path / "1", table), Admin(tmp_path / "2", table)
    first.connect()[0].dataReceived(stream(1, 2))
    second.connect()[0].dataReceived(stream(3, 4, 5))
    first.connect()[0].dataReceived(stream(4, 5, 6))
    assert (first.filed(), second.filed()) == ([1, 2, 6], [3, 4, 5])
    assert table.numbers() == [1, 2, 3, 4, 5, 6]


def test_gap(tmp_path: Path) -> None:
    """A number that jumps ahead is kept: what the sender has lost must not hold up the rest."""
    admin = Admin(tmp_path)
    admin.connect()[0].dataReceived(stream(1, 5, 6))
    assert admin.filed() == admin.table.numbers() == [1, 5, 6]
    assert admin.kept[-1][2] == 6


def test_a_peer_speaks_for_itself(tmp_path: Path) -> None:
    """A record that names another server than the certificate does is a stranger's message, and drops nobody's records."""
    admin = Admin(tmp_path, peer="node-2")
    admin.connect()[0].dataReceived(stream(7))
    assert admin.table.rows == {}
    assert admin.kept == []
    (line,) = admin.lines()
    assert b"from node-2" in line
    assert record_of(parse_message(line)) is None
    admin.peer = "node-1"
    admin.connect()[0].dataReceived(stream(1))
    assert admin.kept[-1] == ("node-1", "b1", 1)


FOREIGN = b"<34>1 2003-10-11T22:14:15.003Z router su - ID47 - login failed\nforged line"


def test_foreign(tmp_path: Path) -> None:
    """Messages of other devices are in the file, a line each, and nowhere else."""
    admin = Admin(tmp_path, peer=None)
    admin.connect()[0].dataReceived(encode_frame(FOREIGN) + encode_frame(b"\xff\x00garbage") + stream(1))
    lines = admin.lines()
    assert lines[0] == FOREIGN.replace(b"\n", b"#012")
    assert b"garbage" in lines[1]
    assert parse_message(lines[1]).hostname is None
    assert admin.filed() == admin.table.numbers() == [1]


def test_broken_framing(tmp_path: Path) -> None:
    """What came before the break is kept, and the connection is closed."""
    admin = Admin(tmp_path)
    connection, transport = admin.connect()
    connection.dataReceived(stream(1) + b"garbage")
    assert transport.disconnected
    assert admin.filed() == [1]


def test_strangers_send_and_go(tmp_path: Path) -> None:
    """A device that sends and closes has been heard, also when there was no room just then."""
    admin = Admin(tmp_path, pending_bytes_max=300)
    admin.table.dies_after_commit = True
    admin.connect()[0].dataReceived(stream(1, 2))
    stranger, transport = admin.connect()
    stranger.dataReceived(encode_frame(FOREIGN) + stream(3))
    assert transport.producerState == "paused"
    stranger.connectionLost()
    assert admin.receiver.connections == 2
    admin.table.dies_after_commit = False
    admin.clock.pump([1] * 20)
    assert admin.receiver.connections == 1
    assert b"login failed" in admin.lines()[-1]
    assert admin.filed() == [1, 2]


def test_too_many_connections(tmp_path: Path) -> None:
    """The number of connections is bounded."""
    admin = Admin(tmp_path)
    for _ in range(3):
        admin.connect()
    assert admin.receiver.buildProtocol(None) is None


def test_what_sql_cannot_hold(tmp_path: Path) -> None:
    """A record that no database takes as it is does not hold up the others: SQL gets what it can hold, the file all."""
    admin = Admin(tmp_path)
    nasty = AuditRecord(at=1.0, server="node-1", event="read", path="a\0b\ud800", bytes=2**63)
    line = format_record(NumberedRecord(boot="b1", number=1, record=nasty), version="1")
    admin.connect()[0].dataReceived(encode_frame(line))
    assert admin.table.rows["node-1", "b1", 1] == AuditRecord(at=1.0, server="node-1", event="read", path="a\ufffdb\ufffd")
    assert record_of(parse_message(admin.lines()[0])) == NumberedRecord(boot="b1", number=1, record=nasty)


def test_rotation(tmp_path: Path) -> None:
    """Yesterday's file and one that grew too long get a name of their own; nothing is lost, and a restart still knows the marks."""
    admin = Admin(tmp_path, rotate_bytes=1000)
    connection, _ = admin.connect()
    for n in range(1, 16):
        connection.dataReceived(stream(n))
    assert len(list(tmp_path.glob("audit-*.1.log"))) == 1
    assert len(list(tmp_path.glob("audit-*.log"))) >= 2
    before = len(list(tmp_path.glob("audit-*.log")))
    admin.wall += 40 * 86400 * 365
    connection.dataReceived(stream(16))
    assert len(list(tmp_path.glob("audit-*.log"))) == before + 1
    assert sorted(admin.filed()) == list(range(1, 17))
    after = Admin(tmp_path, Table())
    after.connect()[0].dataReceived(stream(*range(1, 17)))
    assert sorted(after.filed()) == list(range(1, 17))
    assert after.table.numbers() == list(range(1, 17))


def test_kept_marks(tmp_path: Path) -> None:
    """On a new control connection a node can be told how far each of its boots is kept."""
    admin = Admin(tmp_path)
    connection, _ = admin.connect()
    connection.dataReceived(stream(1, boot="b1") + stream(1, 2, boot="b2"))
    assert admin.keeper.kept("node-1") == {"b1": 1, "b2": 2}
    assert admin.keeper.kept("node-2") == {}


def test_stop(tmp_path: Path) -> None:
    """A keeper that stops leaves no timer and no open file; started again it goes on."""
    admin = Admin(tmp_path)
    connection, _ = admin.connect()
    connection.dataReceived(stream(1))
    admin.table.away = True
    connection.dataReceived(stream(2))
    done(admin.keeper.stopService())
    assert admin.clock.getDelayedCalls() == []
    admin.table.away = False
    admin.keeper.startService()
    assert admin.filed() == admin.table.numbers() == [1, 2]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_exactly_once(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever fails and restarts on either side: a sender that repeats what is not confirmed has each record kept exactly once."""
    AT_THE_END.close()
    directory = tmp_path_factory.mktemp("admin")
    table, worker = Table(), InlineWorker()
    admin = Admin(directory, table, worker=worker)
    connection = None
    next_number, confirmed, sent = 1, 0, 0
    for action in data.draw(st.lists(st.sampled_from("ssssacadfkr"), max_size=30)):
        confirmed = max([confirmed, *(number for _, _, number in admin.kept)])
        if action == "s":
            if connection is None:
                connection, sent = admin.connect()[0], confirmed
            next_number += data.draw(st.integers(0, 3))
            connection.dataReceived(stream(*range(sent + 1, next_number)))
            sent = next_number - 1
        elif action == "a":
            table.away = not table.away
        elif action == "d":
            table.dies_after_commit = not table.dies_after_commit
        elif action == "f":
            worker.broken ^= {"append"}
        elif action == "c":
            admin.clock.pump([0.3] * data.draw(st.integers(1, 5)))
        elif action == "k" and connection is not None:
            connection.connectionLost()
            connection = None
        elif action == "r":
            admin = Admin(directory, table, worker=worker)
            connection = None
    table.away = table.dies_after_commit = False
    worker.broken.clear()
    if connection is not None:
        connection.connectionLost()
    confirmed = max([confirmed, *(number for _, _, number in admin.kept)])
    admin.connect()[0].dataReceived(stream(*range(confirmed + 1, next_number)))
    admin.clock.pump([5] * 20)
    everything = list(range(1, next_number))
    assert table.numbers() == everything
    assert sorted(admin.filed()) == everything
    assert max([confirmed, *(number for _, _, number in admin.kept)]) == next_number - 1
    shutil.rmtree(directory)


# --- the admin server's own ---


def local(tmp_path: Path, table: Table) -> tuple[Admin, LocalAudit, Callable[[], int]]:
    admin = Admin(tmp_path / "log", table)
    trail = spool(tmp_path / "spool", "a1", clock=admin.clock, segment_bytes=500)
    audit = LocalAudit(trail, admin.keeper, server="admin-1", clock=admin.clock)
    audit.startService()
    return admin, audit, lambda: trail.unconfirmed_bytes


def own(n: int) -> AuditRecord:
    return AuditRecord(at=float(n), server="admin-1", event="status", peer="node-1", detail="running -> down")


def test_own_records(tmp_path: Path) -> None:
    """The admin server's own events are kept like any other, noted or kept."""
    admin, audit, _ = local(tmp_path, Table())
    done(audit.keep(own(1)))
    audit.note(own(2))
    admin.clock.advance(1)
    assert admin.filed("a1") == admin.table.numbers("a1") == [1, 2]
    assert admin.table.rows["admin-1", "a1", 2] == own(2)
    assert audit.has_room()


def test_own_records_while_sql_is_away(tmp_path: Path) -> None:
    """Without SQL they are on the disk at once, and kept when it is back; then the spool is emptied."""
    table = Table()
    table.away = True
    admin, audit, size = local(tmp_path, table)
    for n in range(1, 21):
        done(audit.keep(own(n)))
    full = size()
    assert table.numbers("a1") == []
    table.away = False
    admin.clock.pump([1] * 40)
    assert admin.filed("a1") == table.numbers("a1") == list(range(1, 21))
    assert size() < full / 4
    done(Deferred.fromCoroutine(_stopped(audit)))


async def _stopped(audit: LocalAudit) -> None:
    audit.stopService()

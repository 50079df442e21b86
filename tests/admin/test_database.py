"""What PostgreSQL alone can do to us: connections that break, servers that die, hosts that are not there."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, UNIXServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from securifile.admin.connection_strings import Limits, addressed, single_hosts
from securifile.admin.database import PostgresDatabase
from securifile.admin.postgres import EmbeddedPostgres
from securifile.model.errors import DatabaseUnavailable, OutcomeUnknown, StatementFailed
from tests.databases import embedded

SHORT = Limits(wait_s=0.5, lock_s=0.3, statement_s=0.6, answer_s=0.9, idle_in_transaction_s=0.5, connect_s=0.5)


@asynccontextmanager
async def opened(dsn: Any, **more: Any) -> AsyncIterator[PostgresDatabase]:
    database = PostgresDatabase(reactor=reactor, dsn=dsn, random=lambda: 0.5, **more)
    try:
        yield database
    finally:
        await database.stop()


def run(statement: str, **parameters: Any) -> Callable[[Any], Any]:
    return lambda sql: sql.execute(statement, parameters)


async def things(database: PostgresDatabase) -> list[int]:
    return [x for (x,) in await database.read(lambda sql: sql.query("SELECT x FROM thing ORDER BY x"))]


class NoNames:
    """A reactor whose resolver knows no name."""

    @property
    def nameResolver(self) -> NoNames:
        return self

    def resolveHostName(self, receiver: Any, name: str) -> None:
        receiver.resolutionBegan(self)
        receiver.resolutionComplete()


class Proxy(Factory):
    """Stands between us and the server, counts our trips, and breaks the line at a word.

    Attributes:
        word: When a message of ours contains it, the line is broken.
        deliver: Whether that message still reaches the server.
        silent: Nothing of what the server says is passed on.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.word: bytes | None = None
        self.deliver = True
        self.silent = False
        self.messages: list[bytes] = []

    def buildProtocol(self, address: object) -> Protocol:
        return _Line(self)


class _Line(Protocol):
    transport: Any

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.waiting = b""
        self.far: _Far | None = None

    def connectionMade(self) -> None:
        connecting = connectProtocol(UNIXClientEndpoint(reactor, self.proxy.server), _Far(self))

        def connected(far: _Far) -> None:
            self.far = far
            far.transport.write(self.waiting)

        connecting.addCallbacks(connected, lambda _: self.transport.loseConnection())

    def dataReceived(self, data: bytes) -> None:
        self.proxy.messages.append(data)
        broken = self.proxy.word is not None and self.proxy.word in data
        if broken:
            self.proxy.word = None
        if self.far is None:
            self.waiting += data
        elif not broken:
            self.far.transport.write(data)
        else:
            self.transport.abortConnection()
            if self.proxy.deliver:
                self.far.transport.write(data)
            self.far.transport.loseConnection()

    def connectionLost(self, reason: object = None) -> None:
        if self.far is not None:
            self.far.transport.loseConnection()


class _Far(Protocol):
    transport: Any

    def __init__(self, near: _Line) -> None:
        self.near = near

    def dataReceived(self, data: bytes) -> None:
        if not self.near.proxy.silent:
            self.near.transport.write(data)

    def connectionLost(self, reason: object = None) -> None:
        self.near.transport.loseConnection()


@asynccontextmanager
async def proxied(dsn: str, directory: Path, **more: Any) -> AsyncIterator[tuple[Proxy, PostgresDatabase]]:
    host = parse_dsn(dsn)["host"]
    proxy = Proxy(f"{host}/.s.PGSQL.5432")
    port = await UNIXServerEndpoint(reactor, os.fspath(directory / ".s.PGSQL.5432")).listen(proxy)
    try:
        async with opened(dsn.replace(host, os.fspath(directory)), **more) as database:
            await database.transact("make", run("CREATE TABLE thing (x BIGINT)"))
            proxy.messages.clear()
            yield proxy, database
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_connection_lost_at_commit_leaves_the_outcome_unknown(postgres_dsn: str, tmp_path: Path) -> None:
    """Between COMMIT and its answer it is `OutcomeUnknown`, whether the server has committed or not; and it is not tried again."""
    async with proxied(postgres_dsn, tmp_path) as (proxy, database):
        for value, deliver in ((1, True), (2, False)):
            proxy.word, proxy.deliver = b"COMMIT\0", deliver
            with pytest.raises(OutcomeUnknown):
                await database.transact("insert", run("INSERT INTO thing VALUES (:x)", x=value))
        await deferLater(reactor, 0.1)  # the server may still be at it
        assert await things(database) == [1]


@pytest_twisted.ensureDeferred
async def test_a_connection_lost_before_commit_is_replaced_once(postgres_dsn: str, tmp_path: Path) -> None:
    """The work is done again on another connection, and its effect is there once."""
    async with proxied(postgres_dsn, tmp_path) as (proxy, database):
        proxy.word = b"INSERT"
        await database.transact("insert", run("INSERT INTO thing VALUES (1)"))
        assert await things(database) == [1]


@pytest_twisted.ensureDeferred
async def test_a_connection_that_is_lost_again_and_again_is_told(postgres_dsn: str, tmp_path: Path) -> None:
    """After the second loss the caller hears `DatabaseUnavailable`, and nothing was committed."""
    async with proxied(postgres_dsn, tmp_path) as (proxy, database):
        attempts = 0

        async def work(sql: Any) -> None:
            nonlocal attempts
            attempts += 1
            proxy.word = b"INSERT"
            await sql.execute("INSERT INTO thing VALUES (1)")

        with pytest.raises(DatabaseUnavailable):
            await database.transact("insert", work)
        assert attempts == 2
        assert await things(database) == []


@pytest_twisted.ensureDeferred
async def test_a_transaction_of_one_statement_makes_two_trips(postgres_dsn: str, tmp_path: Path) -> None:
    """BEGIN travels with the first question; one that asks nothing travels not at all."""
    async with proxied(postgres_dsn, tmp_path) as (proxy, database):
        await database.transact("insert", run("INSERT INTO thing VALUES (1)"))
        assert len(proxy.messages) == 2

        async def nothing(sql: Any) -> None:
            return

        await database.transact("nothing", nothing)
        assert len(proxy.messages) == 2


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_is_given_up(postgres_dsn: str, tmp_path: Path) -> None:
    """When no answer comes, the wait ends by our own clock, and later transactions have new connections."""
    async with proxied(postgres_dsn, tmp_path, limits=SHORT) as (proxy, database):
        proxy.silent = True
        with pytest.raises(DatabaseUnavailable):
            await database.transact("insert", run("INSERT INTO thing VALUES (1)"))
        proxy.silent = False
        await database.transact("insert", run("INSERT INTO thing VALUES (2)"))
        assert await things(database) == [2]


@pytest_twisted.ensureDeferred
async def test_a_connection_that_the_server_ended_is_not_used_again(postgres_dsn: str) -> None:
    """Idle connections that an operator has terminated are replaced without the caller's noticing."""
    async with opened(postgres_dsn) as database, opened(postgres_dsn) as other:
        await database.transact("make", run("CREATE TABLE thing (x BIGINT)"))
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await other.transact("terminate", run(others))
        assert await things(database) == []


@pytest_twisted.ensureDeferred
async def test_a_killed_server_is_unavailable_and_then_works_again(tmp_path: Path) -> None:
    """While there is no server, callers hear so in bounded time; after the supervised restart all is as before."""
    again: Deferred[None] = Deferred()
    server = embedded(tmp_path / "server", on_restart=lambda: again.callback(None))
    server.startService()
    try:
        async with opened(await server.ready(), limits=SHORT) as database:
            await database.transact("make", run("CREATE TABLE thing (x BIGINT)"))

            async def work(sql: Any) -> None:
                await sql.execute("INSERT INTO thing VALUES (1)")
                assert server.pid is not None
                os.kill(server.pid, signal.SIGSTOP)  # it does not take new connections
                ((own,),) = await sql.query("SELECT pg_backend_pid()")
                os.kill(own, signal.SIGKILL)
                await sql.query("SELECT 1")

            stopped = server.pid
            assert stopped is not None
            with pytest.raises(DatabaseUnavailable):
                await database.transact("insert", work)
            os.kill(stopped, signal.SIGKILL)
            await again
            assert await things(database) == []
            await database.transact("insert", run("INSERT INTO thing VALUES (2)"))
            assert await things(database) == [2]
    finally:
        await server.stopService()


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_connection_has_an_end(postgres_dsn: str) -> None:
    """When all connections are lent, who waits is told after a while; then it is its turn again."""
    async with opened(postgres_dsn, size=1, limits=SHORT) as database:
        go_on: Deferred[None] = Deferred()

        async def hold(sql: Any) -> None:
            await go_on

        holding = database.transact("hold", hold)
        with pytest.raises(DatabaseUnavailable, match="none is free"):
            await database.read(lambda sql: sql.query("SELECT 1"))
        go_on.callback(None)
        await holding
        assert await database.read(lambda sql: sql.query("SELECT 1")) == [(1,)]


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_row_has_an_end(postgres_dsn: str) -> None:
    """A row that another holds too long is `DatabaseUnavailable`."""
    async with opened(postgres_dsn, limits=SHORT) as database:
        await database.transact("make", run("CREATE TABLE thing (x BIGINT)"))
        await database.transact("fill", run("INSERT INTO thing VALUES (1)"))
        go_on: Deferred[None] = Deferred()

        async def hold(sql: Any) -> None:
            await sql.execute("UPDATE thing SET x = 2")
            await go_on

        holding = database.transact("hold", hold)
        await deferLater(reactor, 0.05)
        with pytest.raises(DatabaseUnavailable):
            await database.transact("wait", run("UPDATE thing SET x = 3"))
        go_on.callback(None)
        await holding
        assert await things(database) == [2]


@pytest_twisted.ensureDeferred
async def test_a_client_that_dawdles_within_a_transaction_is_cut_off(postgres_dsn: str) -> None:
    """The server ends a transaction whose client says nothing; the client hears that it is certainly not committed."""
    async with opened(postgres_dsn, limits=SHORT) as database:
        await database.transact("make", run("CREATE TABLE thing (x BIGINT)"))

        async def dawdle(sql: Any) -> None:
            await sql.execute("INSERT INTO thing VALUES (1)")
            await deferLater(reactor, 0.7)

        with pytest.raises(DatabaseUnavailable):
            await database.transact("dawdle", dawdle)
        assert await things(database) == []


@pytest_twisted.ensureDeferred
async def test_a_deadlock_is_resolved_by_trying_again(postgres_dsn: str) -> None:
    """Of two transactions that wait for each other one is undone by the server and done again by us."""
    async with opened(postgres_dsn) as database:
        await database.transact("make", run("CREATE TABLE thing (x BIGINT, y BIGINT)"))
        await database.transact("fill", run("INSERT INTO thing VALUES (1, 0), (2, 0)"))
        both: dict[int, Deferred[None]] = {1: Deferred(), 2: Deferred()}

        def crossing(first: int, second: int) -> Callable[[Any], Any]:
            async def work(sql: Any) -> None:
                await sql.execute("UPDATE thing SET y = y + 1 WHERE x = :x", {"x": first})
                if not both[first].called:
                    both[first].callback(None)
                while not both[second].called:
                    await deferLater(reactor, 0.01)
                await sql.execute("UPDATE thing SET y = y + 1 WHERE x = :x", {"x": second})

            return work

        one, other = database.transact("one", crossing(1, 2)), database.transact("other", crossing(2, 1))
        await one
        await other
        assert await database.read(lambda sql: sql.query("SELECT y FROM thing")) == [(2,), (2,)]


@pytest_twisted.ensureDeferred
async def test_an_error_that_the_work_swallows_is_not_a_commit(postgres_dsn: str) -> None:
    """PostgreSQL undoes the whole transaction after an error, so its caller must not hear that it was done."""
    async with opened(postgres_dsn) as database:
        await database.transact("make", run("CREATE TABLE thing (x BIGINT)"))

        async def work(sql: Any) -> None:
            await sql.execute("INSERT INTO thing VALUES (1)")
            with pytest.raises(StatementFailed):
                await sql.execute("NONSENSE")

        with pytest.raises(StatementFailed):
            await database.transact("swallow", work)
        assert await things(database) == []


@pytest_twisted.ensureDeferred
async def test_cancelling_a_question_under_way_spares_the_connection(postgres_dsn: str) -> None:
    """The connection is used again once the answer has come: the server sees one session."""
    async with opened(postgres_dsn, size=1) as database:
        session = lambda sql: sql.query("SELECT pg_backend_pid()")  # noqa: E731
        before = await database.read(session)
        sleeping = database.transact("sleep", run("SELECT pg_sleep(0.2)"))
        await deferLater(reactor, 0.05)
        sleeping.cancel()
        with pytest.raises(CancelledError):
            await sleeping
        assert await database.read(session) == before


@pytest_twisted.ensureDeferred
async def test_hosts_are_tried_one_by_one(postgres_dsn: str, tmp_path: Path) -> None:
    """A host that is not there, and one that does not answer, are passed over."""
    host = parse_dsn(postgres_dsn)["host"]
    deaf = tmp_path / "deaf"
    deaf.mkdir()
    port = await UNIXServerEndpoint(reactor, os.fspath(deaf / ".s.PGSQL.5432")).listen(Factory.forProtocol(Protocol))
    try:
        dsn = postgres_dsn.replace(host, f"{tmp_path},{deaf},{host}")
        async with opened(dsn, limits=Limits(connect_s=0.2)) as database:
            assert await database.read(lambda sql: sql.query("SELECT 1")) == [(1,)]
        async with opened([f"host={tmp_path}", f"host={deaf}"], limits=Limits(connect_s=0.1, wait_s=0.5)) as database:
            with pytest.raises(DatabaseUnavailable, match="No such file"):
                await database.read(lambda sql: sql.query("SELECT 1"))
    finally:
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_names_of_hosts_are_looked_up_by_the_reactor() -> None:
    """A name becomes addresses before libpq, which would stop everything while it looks, comes to see it."""
    for dsn in ("host=/run dbname=a", "host=10.0.0.1", "host=a.example hostaddr=10.0.0.1", "dbname=a"):
        assert await addressed(reactor, dsn) == [dsn]
    found = await addressed(reactor, "host=localhost port=5433")
    assert {(parse_dsn(one)["host"], parse_dsn(one)["hostaddr"]) for one in found} >= {("localhost", "127.0.0.1")}
    with pytest.raises(DatabaseUnavailable, match="nowhere has no address"):
        await addressed(NoNames(), "host=nowhere")


@pytest_twisted.ensureDeferred
async def test_a_database_that_takes_no_writes_will_not_do(postgres_dsn: str) -> None:
    """A server that is read-only (a standby) is no place for the catalogue."""
    name = parse_dsn(postgres_dsn)["dbname"]
    async with opened(postgres_dsn) as database:
        await database.transact("standby", run(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    async with opened(postgres_dsn, limits=SHORT) as database:
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await database.read(lambda sql: sql.query("SELECT 1"))


@pytest_twisted.ensureDeferred
async def test_notifications_are_heard_and_heard_again_after_a_loss(postgres_dsn: str) -> None:
    """A listener hears what is committed; when its connection is lost it comes back and says so."""
    heard: list[str] = []
    news: list[Deferred[None]] = [Deferred()]
    connected: list[Deferred[None]] = [Deferred(), Deferred()]
    calls = iter(connected)

    def hear(payload: str) -> None:
        heard.append(payload)
        news[-1].callback(None)

    async with opened(postgres_dsn) as database:
        database.listen("commits", hear, lambda: next(calls).callback(None))
        notify = run("SELECT pg_notify(:channel, :payload)", channel="commits", payload="7")
        await connected[0]
        await database.transact("notify", notify)
        await news[-1]
        news.append(Deferred())
        listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        await database.transact("terminate", run(listeners))
        await connected[1]
        await database.transact("notify", notify)
        await news[-1]
        assert heard == ["7", "7"]


@pytest_twisted.ensureDeferred
async def test_the_identity_is_that_of_the_cluster(postgres: EmbeddedPostgres, postgres_dsn: str) -> None:
    """Two databases of one server tell one history, a fresh one on its first timeline."""
    async with opened(postgres.dsn) as one, opened(postgres_dsn) as other:
        identity = await one.system_identity()
        assert identity == await other.system_identity()
        assert identity.timeline == 1
        assert identity.identifier > 0


@pytest_twisted.ensureDeferred
async def test_a_stopped_database_is_unavailable(postgres_dsn: str) -> None:
    """After stop, and for those who wait at that moment, it is `DatabaseUnavailable`; who is at work may finish."""
    database = PostgresDatabase(reactor=reactor, dsn=postgres_dsn, random=lambda: 0.5, size=1)
    go_on: Deferred[None] = Deferred()

    async def work(sql: Any) -> int:
        await sql.query("SELECT 1")
        await go_on
        return 1

    working = database.transact("work", work)
    waiting = database.transact("wait", work)
    await deferLater(reactor, 0.05)
    stopping = database.stop()
    with pytest.raises(DatabaseUnavailable):
        await waiting
    assert not stopping.called
    go_on.callback(None)
    assert await working == 1
    await stopping
    with pytest.raises(DatabaseUnavailable):
        await database.read(work)


@given(st.lists(st.sampled_from(["a.example", "10.0.0.1", "/run/postgresql"]), min_size=1, max_size=4), st.booleans())
def test_each_host_has_a_connection_string(hosts: list[str], one_port: bool) -> None:
    """A list of hosts becomes one string a host, with its own port, or with the one that is given for all."""
    ports = ["5433"] if one_port else [str(6000 + index) for index in range(len(hosts))]
    dsn = f"host={','.join(hosts)} port={','.join(ports)} dbname=files options='-c search_path=s'"
    found = [parse_dsn(one) for one in single_hosts(dsn, Limits())]
    assert [one["host"] for one in found] == hosts
    assert [one["port"] for one in found] == (ports * len(hosts) if one_port else ports)
    assert all(one["dbname"] == "files" and "search_path=s" in one["options"] for one in found)
    assert all(one["target_session_attrs"] == "read-write" for one in found)


def test_nonsense_is_no_connection_string() -> None:
    """What libpq does not understand is refused at once."""
    with pytest.raises(ValueError, match="connection string"):
        single_hosts("nonsense", Limits())

"""PostgreSQL behind `IDatabase`: the only module that imports txpostgres and psycopg2.

A transaction borrows a connection from a pool, and the pool opens, drops and replaces connections as the world demands. What a caller
is told is exact, because a client will act on it:

    the connection broke before COMMIT was sent   DatabaseUnavailable: certainly not done (after one more try)
    it broke between COMMIT and the answer        OutcomeUnknown
    a serialisation failure or a deadlock         tried again, a few times, after a short pause of random length

Trips to the server are what a transaction costs. BEGIN travels in front of the first question, what is written `later` in front of the
next question or of COMMIT, a transaction that asked nothing makes no trip, the settings of a session travel with its start, and whoever
read or failed does not wait for the end of its transaction.

A transaction that is cancelled leaves a question under way. The connection is kept aside until the answer has come and the
transaction is rolled back, and then goes back into the pool; the caller need not wait for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs
import psycopg2
from psycopg2.extensions import make_dsn, new_type, parse_dsn, register_type
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IResolutionReceiver
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txpostgres import txpostgres
from zope.interface import implementer

from securifile.model.errors import ConstraintViolated, DatabaseUnavailable, OutcomeUnknown, StatementFailed
from securifile.model.interfaces import IDatabase, ISql, Row
from securifile.sql.dialects import POSTGRESQL, for_psycopg, parameters_for_psycopg, refuse_nesting, within

T = TypeVar("T")

# Said each time, because an operator may have changed the default. The catalogue's writers take turns by a row lock, after
# which READ COMMITTED shows what the one before has done.
BEGIN_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

SERIALISATION_FAILURE, DEADLOCK = "40001", "40P01"
CONFLICT_ATTEMPTS = 5
CONFLICT_PAUSE_S = 0.01  # doubles with each attempt

INTERVENTION = "57P"
READ_ONLY_TRANSACTION = "25006"
UNDEFINED_TABLE = "42P01"
# The control file's timeline is that of the last checkpoint, which lags behind a promotion; the name of the log file
# that is written to begins with the present one.
IDENTITY = "SELECT system_identifier, pg_walfile_name(pg_current_wal_insert_lsn()) FROM pg_control_system()"
# The server declines for now: too long a wait for a lock, too long a statement; resources (53), intervention (57), its disk (58).
DECLINED = ("55P03", "53", "57", "58")

RECONNECT_FIRST_S = 0.05
RECONNECT_LAST_S = 1.0


@attrs.frozen(kw_only=True)
class Limits:
    """How long anything may take, in seconds. Every wait has an end, and the server's ends come before ours."""

    connect_s: float = 3.0
    """Opening one connection to one host, with TLS and authentication."""
    wait_s: float = 8.0
    """Waiting for a connection of the pool: long enough for the embedded server to be started again."""
    lock_s: float = 4.0
    """Waiting for a row that another transaction holds."""
    statement_s: float = 8.0
    """One statement, with its waits for locks, by the server's clock."""
    answer_s: float = 12.0
    """One answer, by our clock: a server that hangs does not look at its own."""
    idle_in_transaction_s: float = 5.0
    """A client that was stopped in the middle of a transaction holds what others wait for; the server cuts it off."""
    unacknowledged_s: float = 8.0
    """Bytes on the way to a host that has gone (TCP_USER_TIMEOUT)."""
    probe_s: float = 10.0
    """Silence after which TCP asks whether the other host is there."""


@attrs.frozen
class SystemIdentity:
    """Which history a database tells: the identifier is made by initdb, the timeline grows with each promotion or recovery to a point."""

    identifier: int
    timeline: int

    def __str__(self) -> str:
        return f"{self.identifier}/{self.timeline}"


class _Lost(DatabaseUnavailable):
    """The connection broke before COMMIT was sent."""


class _Conflicted(StatementFailed):
    """The transaction lost against another one; the same work may succeed now."""


def _integral(text: Any, cursor: Any) -> int | float | None:
    """NUMERIC, which is what PostgreSQL makes of the sum of BIGINTs, as the number SQLite would say."""
    if text is None:
        return None
    return float(text) if "." in text or "N" in text else int(text)


def _octets(text: Any, cursor: Any) -> bytes | None:
    return None if text is None else bytes.fromhex(text[2:])


_CASTERS = (new_type((1700,), "SECURIFILE_NUMERIC", _integral), new_type((17,), "SECURIFILE_BYTEA", _octets))


class _Connection(txpostgres.Connection):  # type: ignore[misc]
    """A connection that knows when it is dead, and hands out notifications itself instead of through the global cooperator."""

    def __init__(self, reactor: Any, heard: Callable[[str], None] | None = None) -> None:
        super().__init__(reactor, cooperator=self)
        self._heard = heard
        self._dead = False
        self.lost: Deferred[None] = Deferred()
        self.identity: SystemIdentity | None = None
        """Which history the database tells at the other end: no server becomes another one without breaking connections that write."""

    @property
    def is_dead(self) -> bool:
        """Whether nothing can be asked of it any more."""
        return self._dead or self._connection is None or bool(self._connection.closed)

    async def open(self, dsn: str, limit_s: float) -> None:
        """Connect; raises `DatabaseUnavailable`."""
        timer = self.reactor.callLater(limit_s, self.abandon)
        try:
            await _shielded(self.connect(dsn))
            for caster in _CASTERS:
                register_type(caster, self._connection)
            ((identifier, segment),) = await _shielded(self.runQuery(IDENTITY))
            self.identity = SystemIdentity(identifier, int(segment[:8], 16))
        except psycopg2.Error as error:
            self.abandon()
            raise DatabaseUnavailable(str(error).strip()) from error
        except Exception as error:
            self.abandon()
            if isinstance(error, CancelledError):
                raise
            raise DatabaseUnavailable(f"no connection within {limit_s} s") from error
        finally:
            if timer.active():
                timer.cancel()

    def abandon(self) -> None:
        """Close it, whatever is under way; who waits for an answer gets an error."""
        self._dead = True
        if self._connection is not None:
            self.close()

    def checkForNotifies(self) -> None:
        notices, self._connection.notifies[:] = self._connection.notifies[:], []
        if self._heard is not None:
            for notice in notices:
                self._heard(notice.payload)

    def doRead(self) -> None:
        try:
            super().doRead()
        except psycopg2.Error:
            # It was idle, so there is nobody to tell: the server has closed it.
            self.abandon()

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._dead = True
        if not self.lost.called:
            self.lost.callback(None)


@implementer(ISql)
class _Transaction:
    """One transaction on one connection, begun by its first question."""

    def __init__(self, connection: _Connection, begin: str, limits: Limits) -> None:
        self.connection = connection
        self._begin = begin
        self._limits = limits
        self._begun = False
        self._over = False
        self._failure: Exception | None = None
        self._pending: Deferred[Any] = succeed(None)
        self._held: list[tuple[str, Mapping[str, Any]]] = []
        """Statements that go along with the next question, or with COMMIT."""

    async def query(self, statement: str, parameters: Mapping[str, Any] = {}) -> Sequence[Row]:
        """See `ISql`."""
        cursor = await self._ask(statement, parameters)
        return cursor.fetchall() if cursor.description is not None else []

    async def execute(self, statement: str, parameters: Mapping[str, Any] = {}) -> int:
        """See `ISql`."""
        cursor = await self._ask(statement, parameters)
        return max(0, int(cursor.rowcount))

    def later(self, statement: str, parameters: Mapping[str, Any] = {}) -> None:
        """See `ISql`."""
        if self._over:
            raise RuntimeError("the transaction is over")
        self._held.append((statement, parameters))

    def end(self) -> None:
        """Refuse further questions; raise what a question of this transaction has failed with, in case `work` did not."""
        self._over = True
        if self._failure is not None:
            raise self._failure

    def end_quietly(self) -> None:
        """Refuse further questions."""
        self._over = True

    async def commit(self) -> None:
        """COMMIT, if anything was asked.

        Raises:
            OutcomeUnknown: the connection broke after it was sent.
        """
        if not self._begun and not self._held:
            return
        if self.connection.is_dead:
            raise _Lost("the connection broke before COMMIT")
        cursor = self.connection.cursor()
        try:
            # The server goes through a message statement by statement, and stops at the first that fails.
            await self._send(cursor, self._joined(cursor, "COMMIT", {}))
        except (CancelledError, GeneratorExit):
            raise
        except Exception as error:
            translated = self._translated(error)
            # A server that is being shut down may say so after it has committed.
            shut_down = isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith(INTERVENTION)
            if isinstance(translated, _Lost) or shut_down:
                raise OutcomeUnknown("the connection to the database broke after COMMIT was sent") from error
            raise translated from error
        if cursor.statusmessage != "COMMIT":
            raise StatementFailed(f"the server answered {cursor.statusmessage} to COMMIT")
        self._begun = False

    async def roll_back(self) -> None:
        """Bring the connection back to where it can be used again, or abandon it. Never raises."""
        self._over = True
        try:
            await self._pending
            if self._begun and not self.connection.is_dead:
                await self._send(self.connection.cursor(), b"ROLLBACK")
        except Exception:
            self.connection.abandon()

    @property
    def history(self) -> str:
        """Names the history that the database tells at this connection's other end."""
        return str(self.connection.identity)

    @property
    def is_clean(self) -> bool:
        """Whether the connection can be used by another at once."""
        return not self._begun and bool(self._pending.called)

    async def _ask(self, statement: str, parameters: Mapping[str, Any]) -> Any:
        if self._over:
            raise RuntimeError("the transaction is over")
        if not self._pending.called:
            raise RuntimeError("a question was asked before the one before was answered")
        if self._failure is not None:
            raise self._failure
        try:
            if self.connection.is_dead:
                raise _Lost("the connection to the database broke")
            cursor = self.connection.cursor()
            await self._send(cursor, self._joined(cursor, statement, parameters))
        except (CancelledError, GeneratorExit):
            raise
        except Exception as error:
            self._failure = self._translated(error)
            if self._failure is error:
                raise
            raise self._failure from error
        return cursor

    def _joined(self, cursor: Any, statement: str, parameters: Mapping[str, Any]) -> bytes:
        """One message: BEGIN if it was not said yet, what was to be done by now, and then this."""
        held, self._held = self._held, []
        spelled = [_spelled(cursor, *one) for one in (*held, (statement, parameters))]
        if not self._begun:
            spelled.insert(0, self._begin.encode())
            self._begun = True
        return b";\n".join(spelled)

    async def _send(self, cursor: Any, message: bytes) -> None:
        timer = self.connection.reactor.callLater(self._limits.answer_s, self.connection.abandon)
        answered: Deferred[Any] = cursor.execute(message)
        self._pending = Deferred()

        def note(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            self._pending.callback(None)
            return result

        await _shielded(answered.addBoth(note))

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, DatabaseUnavailable):
            return error
        if self.connection.is_dead:
            return _Lost(f"the connection to the database broke: {error}".strip())
        if not isinstance(error, psycopg2.Error):
            # Psycopg2 could not spell the statement: a parameter is missing or of no known type, a text has a zero byte.
            return StatementFailed(f"{type(error).__name__}: {error}")
        code = error.pgcode or ""
        text = (error.diag.message_primary or str(error)).strip()
        if code in (SERIALISATION_FAILURE, DEADLOCK):
            return _Conflicted(text)
        if code.startswith("23"):
            return ConstraintViolated(text)
        if code.startswith(DECLINED):
            return DatabaseUnavailable(text)
        if code == UNDEFINED_TABLE:
            # Another database is there than at the start, an empty one: to be put right by people, and not to be written to meanwhile.
            return DatabaseUnavailable(f"the catalogue's tables are not in the database: {text}")
        if code == READ_ONLY_TRANSACTION and self._begin == BEGIN_WRITING:
            # The server has become a standby; the connection is of no use to a writer.
            self.connection.abandon()
            return _Lost(text)
        return StatementFailed(f"{code}: {text}")


def _spelled(cursor: Any, statement: str, parameters: Mapping[str, Any]) -> bytes:
    """The statement with its parameters in it."""
    spelled: bytes = cursor.mogrify(for_psycopg(statement), parameters_for_psycopg(parameters))
    return spelled


class Listener:
    """Hears what is notified on a channel, from `PostgresDatabase.listen` until `stop`; reconnects by itself."""

    _log = Logger()

    def __init__(
        self, database: PostgresDatabase, channel: str, callback: Callable[[str], None], on_connected: Callable[[], None] | None
    ) -> None:
        self._database = database
        self._channel = channel
        self._callback = callback
        self._on_connected = on_connected
        self._connection: _Connection | None = None
        self._stopped = False
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(lambda failure: self._log.failure("a listener ended", failure))

    def stop(self) -> Deferred[None]:
        """Hear no more."""
        if not self._stopped:
            self._stopped = True
            if self._connection is not None:
                self._connection.abandon()
            else:
                self._running.cancel()
        done: Deferred[None] = Deferred()
        self._running.addBoth(lambda _: done.callback(None))
        return done

    async def _run(self) -> None:
        pause_s = RECONNECT_FIRST_S
        while not self._is_stopped():
            try:
                connection = await self._database._connect(self._hear)
                self._connection = connection
                quoted = self._channel.replace('"', '""')
                await _shielded(connection.runOperation(f'LISTEN "{quoted}"'))
                pause_s = RECONNECT_FIRST_S
                if self._on_connected is not None:
                    self._on_connected()
                if not connection.is_dead:
                    await connection.lost
            except CancelledError:
                return
            except DatabaseUnavailable as error:
                self._log.warn("listening to {channel} must wait: {reason}", channel=self._channel, reason=str(error))
            except Exception:
                self._log.failure("listening to {channel} failed", channel=self._channel)
            finally:
                if self._connection is not None:
                    self._connection.abandon()
                    self._connection = None
            if self._is_stopped():
                return
            try:
                await deferLater(self._database.reactor, pause_s)
            except CancelledError:
                return
            pause_s = min(RECONNECT_LAST_S, pause_s * 2)

    def _is_stopped(self) -> bool:
        return self._stopped

    def _hear(self, payload: str) -> None:
        try:
            self._callback(payload)
        except Exception:
            self._log.failure("a notification on {channel} was not taken well", channel=self._channel)


@implementer(IDatabase)
class PostgresDatabase:
    """A pool of connections to a PostgreSQL (14 or later), opened when they are first wanted.

    Args:
        reactor: `IReactorFDSet` and `IReactorTime`.
        dsn: How to connect, as libpq's keywords or URI; several, or one with several hosts, are tried one by one, and only a server that
            takes writes will do.
        random: A number in [0, 1), for the pauses between attempts.
        size: How many connections at most, without those of listeners.
        limits: How long anything may take.
    """

    dialect = POSTGRESQL
    _log = Logger()

    def __init__(
        self,
        *,
        reactor: Any,
        dsn: str | Sequence[str],
        random: Callable[[], float],
        size: int = 8,
        limits: Limits = Limits(),
    ) -> None:
        self.reactor = reactor
        self._random = random
        self._size = size
        self._limits = limits
        self._hosts = deque(host for one in ([dsn] if isinstance(dsn, str) else dsn) for host in single_hosts(one, limits))
        self._idle: list[_Connection] = []
        self._count = 0  # idle, lent and being opened
        self._waiters: deque[Deferred[_Connection]] = deque()
        self._openers: set[Deferred[None]] = set()
        self._listeners: list[Listener] = []
        self._stopped = False
        self._trouble = "none is free"
        self._when_empty: list[Deferred[None]] = []
        self._identity: SystemIdentity | None = None
        self.on_another_history: Callable[[], None] = lambda: None
        """Called when a new connection leads to another history than those before, before anything is asked over it."""

    def transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """See `IDatabase`. Cancelling rolls back; when COMMIT was sent already, it may have happened all the same."""
        return Deferred.fromCoroutine(self._transact(name, work, BEGIN_WRITING))

    def read(self, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        """See `IDatabase`."""
        return Deferred.fromCoroutine(self._transact("read", work, BEGIN_READING))

    def listen(self, channel: str, callback: Callable[[str], None], on_connected: Callable[[], None] | None = None) -> Listener:
        """Call `callback(payload)` for what others notify on `channel`, over a connection of its own.

        Args:
            channel: The channel's name.
            callback: Called in the reactor; must not raise.
            on_connected: Called when listening begins, and again after each time the connection was lost: notifications may
                have been missed.
        """
        listener = Listener(self, channel, callback, on_connected)
        self._listeners.append(listener)
        return listener

    def system_identity(self) -> Deferred[SystemIdentity]:
        """Which history the database tells now. Raises `DatabaseUnavailable`."""

        async def look(sql: ISql) -> SystemIdentity:
            ((identifier, segment),) = await sql.query(IDENTITY)
            return SystemIdentity(identifier, int(segment[:8], 16))

        return self.read(look)

    def stop(self) -> Deferred[None]:
        """Take no more transactions; fires when those under way have ended and every connection is closed."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopped = True
        for waiter in self._take_waiters():
            waiter.errback(DatabaseUnavailable("the database is being closed"))
        for opener in list(self._openers):
            opener.cancel()
        for listener in self._listeners:
            await listener.stop()
        for connection in list(self._idle):
            connection.abandon()
        if self._count:
            empty: Deferred[None] = Deferred()
            self._when_empty.append(empty)
            await empty

    async def _transact(self, name: str, work: Callable[[Any], Awaitable[T]], begin: str) -> T:
        refuse_nesting(self)
        conflicts, losses = 0, 0
        while True:
            try:
                return await self._attempt(work, begin)
            except _Conflicted as error:
                conflicts += 1
                if conflicts >= CONFLICT_ATTEMPTS:
                    raise DatabaseUnavailable(f"{name} lost against other transactions {conflicts} times") from error
                await deferLater(self.reactor, CONFLICT_PAUSE_S * 2**conflicts * self._random())
            except _Lost as error:
                losses += 1
                # Its neighbours were probably lost with it, and have not noticed yet.
                for connection in list(self._idle):
                    connection.abandon()
                if losses > 1:
                    raise
                self._log.warn("{transaction} is tried again: {reason}", transaction=name, reason=str(error))

    async def _attempt(self, work: Callable[[Any], Awaitable[T]], begin: str) -> T:
        transaction = _Transaction(await self._borrow(), begin, self._limits)
        try:
            result = await within(self, work, transaction)
            transaction.end()
            if begin is BEGIN_WRITING:
                await transaction.commit()
            return result
        finally:
            self._give_back(transaction)

    # The pool.

    async def _borrow(self) -> _Connection:
        if self._stopped:
            raise DatabaseUnavailable("the database is closed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_dead:
                return connection
            connection.abandon()
        waiter: Deferred[_Connection] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        timer = self.reactor.callLater(self._limits.wait_s, self._give_up, waiter)
        self._open_more()
        try:
            return await waiter
        finally:
            if timer.active():
                timer.cancel()

    def _give_up(self, waiter: Deferred[_Connection]) -> None:
        self._waiters.remove(waiter)
        waiter.errback(DatabaseUnavailable(f"no connection to the database within {self._limits.wait_s} s: {self._trouble}"))

    def _take_waiters(self) -> list[Deferred[_Connection]]:
        waiters = list(self._waiters)
        self._waiters.clear()
        return waiters

    def _give_back(self, transaction: _Transaction) -> None:
        if transaction.is_clean or transaction.connection.is_dead:
            transaction.end_quietly()
            self._put(transaction.connection)
            return
        cleaned = Deferred.fromCoroutine(transaction.roll_back())
        cleaned.addBoth(lambda _: self._put(transaction.connection))

    def _put(self, connection: _Connection) -> None:
        """Take a connection that nobody uses into the pool, or lend it to who has waited longest."""
        if self._stopped or connection.identity != self._identity:
            connection.abandon()
        if connection.is_dead:
            connection.abandon()
        elif self._waiters:
            self._waiters.popleft().callback(connection)
        else:
            self._idle.append(connection)

    def _opener_ended(self, _: None, opener: Deferred[None]) -> None:
        self._openers.discard(opener)

    def _welcome(self, connection: _Connection) -> None:
        connection.lost.addCallback(lambda _: self._forget(connection))
        if connection.identity != self._identity:
            before, self._identity = self._identity, connection.identity
            if before is not None:
                self._log.critical(
                    "another database answers: it was {before} and is {after}", before=str(before), after=str(connection.identity)
                )
                # Two servers that both take writes would otherwise be mixed.
                for other in list(self._idle):
                    other.abandon()
                self.on_another_history()
        self._put(connection)

    def _forget(self, connection: _Connection) -> None:
        """Called once for each connection that was open and is lost."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._discount()

    def _discount(self) -> None:
        self._count -= 1
        if self._count == 0:
            waiting, self._when_empty = self._when_empty, []
            for empty in waiting:
                empty.callback(None)
        self._open_more()

    def _open_more(self) -> None:
        """Start as many openers as there are transactions waiting, within the size of the pool."""
        while not self._stopped and self._count < self._size and len(self._openers) < len(self._waiters):
            self._count += 1
            opener = Deferred.fromCoroutine(self._open_one())
            self._openers.add(opener)
            opener.addErrback(lambda failure: self._log.failure("opening a connection failed", failure))
            opener.addBoth(self._opener_ended, opener)

    async def _open_one(self) -> None:
        """Open a connection for those who wait; goes on trying while there are any."""
        pause_s = RECONNECT_FIRST_S
        try:
            while self._waiters and not self._stopped:
                try:
                    connection = await self._connect()
                except DatabaseUnavailable as error:
                    if self._trouble != str(error):
                        self._trouble = str(error)
                        self._log.warn("the database cannot be reached: {reason}", reason=self._trouble)
                    await deferLater(self.reactor, pause_s * (0.5 + self._random()))
                    pause_s = min(RECONNECT_LAST_S, pause_s * 2)
                else:
                    self._trouble = "none is free"
                    self._welcome(connection)
                    return
        except CancelledError:
            pass  # we are being stopped
        self._discount()

    async def _connect(self, heard: Callable[[str], None] | None = None) -> _Connection:
        """A connection to the first host that has one for us, beginning with the one that had the last.

        Raises:
            DatabaseUnavailable: none has.
        """
        reasons = []
        for _ in range(len(self._hosts)):
            try:
                for dsn in await addressed(self.reactor, self._hosts[0]).addTimeout(self._limits.connect_s, self.reactor):
                    connection = _Connection(self.reactor, heard)
                    try:
                        await connection.open(dsn, self._limits.connect_s)
                        return connection
                    except DatabaseUnavailable as error:
                        reasons.append(str(error))
            except (DatabaseUnavailable, TimeoutError) as error:
                reasons.append(str(error))
            self._hosts.rotate(-1)
        raise DatabaseUnavailable(" / ".join(reasons))


def single_hosts(dsn: str, limits: Limits) -> list[str]:
    """One connection string for each host that `dsn` names, with everything that a session of ours is to have.

    Raises:
        ValueError: it is not a connection string.
    """
    try:
        given = parse_dsn(dsn)
    except psycopg2.Error as error:
        raise ValueError(f"not a connection string of PostgreSQL: {error}") from error
    lists = {name: given.pop(name).split(",") for name in ("host", "hostaddr", "port") if name in given}
    session = {
        "statement_timeout": limits.statement_s,
        "lock_timeout": limits.lock_s,
        "idle_in_transaction_session_timeout": limits.idle_in_transaction_s,
    }
    options = " ".join(
        [
            given.pop("options", ""),
            *(f"-c {name}={int(seconds * 1000)}" for name, seconds in session.items()),
            "-c bytea_output=hex",
            "-c standard_conforming_strings=on",
        ]
    )
    common = {
        "application_name": "securifile",
        "gssencmode": "disable",  # Kerberos would be asked synchronously
        "target_session_attrs": "read-write",
        "keepalives_idle": max(1, int(limits.probe_s)),
        "keepalives_interval": max(1, int(limits.probe_s / 4)),
        "keepalives_count": 3,
        "tcp_user_timeout": int(limits.unacknowledged_s * 1000),
        **given,
        "client_encoding": "UTF8",
        "options": options.strip(),
    }
    found = []
    for index in range(max(len(lists.get("host", [""])), len(lists.get("hostaddr", [""])))):
        one = {name: values[index if len(values) > 1 else 0] for name, values in lists.items()}
        found.append(make_dsn(**common, **{name: value for name, value in one.items() if value}))
    return found


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects what a name is resolved to."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self.complete: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolution: Any) -> None:
        pass

    def addressResolved(self, address: Any) -> None:
        self._found.append(address.host)

    def resolutionComplete(self) -> None:
        if not self.complete.called:
            self.complete.callback(self._found)


def addressed(reactor: Any, dsn: str) -> Deferred[list[str]]:
    """The connection string with the addresses of its host, one string for each.

    Libpq looks names up synchronously. The name stays in the string, for certificates and passwords.

    Args:
        reactor: Resolves the name (`IReactorPluggableNameResolver`).
        dsn: A connection string with at most one host.

    Raises:
        DatabaseUnavailable: the name has no address.
    """
    given = parse_dsn(dsn)
    host = given.get("host", "")
    if not host or host.startswith(("/", "@")) or "hostaddr" in given or isIPAddress(host) or isIPv6Address(host):
        return succeed([dsn])

    def spell(addresses: list[str]) -> list[str]:
        if not addresses:
            raise DatabaseUnavailable(f"the name {host} has no address")
        return [make_dsn(dsn, hostaddr=address) for address in dict.fromkeys(addresses)]

    receiver = _Addresses()
    reactor.nameResolver.resolveHostName(receiver, host)
    return receiver.complete.addCallback(spell)


def _shielded(work: Deferred[T]) -> Deferred[T]:
    """A Deferred that fires as `work` does, and whose cancellation leaves `work` alone.

    Psycopg2's conversation with the server has to be brought to its end before the connection can be used again.
    """
    outer: Deferred[T] = Deferred()

    def forward(result: Any) -> None:
        if not outer.called:
            outer.callback(result)

    work.addBoth(forward)
    return outer

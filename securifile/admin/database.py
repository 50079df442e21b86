"""PostgreSQL behind `IDatabase`: a pool of connections (`transactions.py`) to one of its hosts (`connection_strings.py`).

A transaction borrows a connection from a pool, and the pool opens, drops and replaces connections as the world demands. What a caller
is told is exact, because a client will act on it:

    the connection broke before COMMIT was sent   DatabaseUnavailable: certainly not done (after one more try)
    it broke between COMMIT and the answer        OutcomeUnknown
    a serialisation failure or a deadlock         tried again, a few times, after a short pause of random length

A transaction that is cancelled leaves a question under way. The connection is kept aside until the answer has come and the
transaction is rolled back, and then goes back into the pool; the caller need not wait for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from securifile.admin.connection_strings import DEFAULT_LIMITS, Limits, addressed, single_hosts
from securifile.admin.transactions import (
    BEGIN_READING,
    BEGIN_WRITING,
    IDENTITY,
    Conflicted,
    Connection,
    Lost,
    SystemIdentity,
    Transaction,
    shielded,
)
from securifile.model.errors import DatabaseUnavailable
from securifile.model.interfaces import IDatabase, ISql
from securifile.sql.dialects import POSTGRESQL, refuse_nesting, within

T = TypeVar("T")

CONFLICT_ATTEMPTS = 5
CONFLICT_PAUSE_S = 0.01  # doubles with each attempt

RECONNECT_FIRST_S = 0.05
RECONNECT_LAST_S = 1.0


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
        self._connection: Connection | None = None
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
                await shielded(connection.runOperation(f'LISTEN "{quoted}"'))
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
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.reactor = reactor
        self._random = random
        self._size = size
        self._limits = limits
        self._hosts = deque(host for one in ([dsn] if isinstance(dsn, str) else dsn) for host in single_hosts(one, limits))
        self._idle: list[Connection] = []
        self._count = 0  # idle, lent and being opened
        self._waiters: deque[Deferred[Connection]] = deque()
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
            except Conflicted as error:
                conflicts += 1
                if conflicts >= CONFLICT_ATTEMPTS:
                    raise DatabaseUnavailable(f"{name} lost against other transactions {conflicts} times") from error
                await deferLater(self.reactor, CONFLICT_PAUSE_S * 2**conflicts * self._random())
            except Lost as error:
                losses += 1
                # Its neighbours were probably lost with it, and have not noticed yet.
                for connection in list(self._idle):
                    connection.abandon()
                if losses > 1:
                    raise
                self._log.warn("{transaction} is tried again: {reason}", transaction=name, reason=str(error))

    async def _attempt(self, work: Callable[[Any], Awaitable[T]], begin: str) -> T:
        transaction = Transaction(await self._borrow(), begin, self._limits)
        try:
            result = await within(self, work, transaction)
            transaction.end()
            if begin is BEGIN_WRITING:
                await transaction.commit()
            return result
        finally:
            self._give_back(transaction)

    # The pool.

    async def _borrow(self) -> Connection:
        if self._stopped:
            raise DatabaseUnavailable("the database is closed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_dead:
                return connection
            connection.abandon()
        waiter: Deferred[Connection] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        timer = self.reactor.callLater(self._limits.wait_s, self._give_up, waiter)
        self._open_more()
        try:
            return await waiter
        finally:
            if timer.active():
                timer.cancel()

    def _give_up(self, waiter: Deferred[Connection]) -> None:
        self._waiters.remove(waiter)
        waiter.errback(DatabaseUnavailable(f"no connection to the database within {self._limits.wait_s} s: {self._trouble}"))

    def _take_waiters(self) -> list[Deferred[Connection]]:
        waiters = list(self._waiters)
        self._waiters.clear()
        return waiters

    def _give_back(self, transaction: Transaction) -> None:
        if transaction.is_clean or transaction.connection.is_dead:
            transaction.end_quietly()
            self._put(transaction.connection)
            return
        cleaned = Deferred.fromCoroutine(transaction.roll_back())
        cleaned.addBoth(lambda _: self._put(transaction.connection))

    def _put(self, connection: Connection) -> None:
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

    def _welcome(self, connection: Connection) -> None:
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

    def _forget(self, connection: Connection) -> None:
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

    async def _connect(self, heard: Callable[[str], None] | None = None) -> Connection:
        """A connection to the first host that has one for us, beginning with the one that had the last.

        Raises:
            DatabaseUnavailable: none has.
        """
        reasons = []
        for _ in range(len(self._hosts)):
            try:
                for dsn in await addressed(self.reactor, self._hosts[0]).addTimeout(self._limits.connect_s, self.reactor):
                    connection = Connection(self.reactor, heard)
                    try:
                        await connection.open(dsn, self._limits.connect_s)
                        return connection
                    except DatabaseUnavailable as error:
                        reasons.append(str(error))
            except (DatabaseUnavailable, TimeoutError) as error:
                reasons.append(str(error))
            self._hosts.rotate(-1)
        raise DatabaseUnavailable(" / ".join(reasons))

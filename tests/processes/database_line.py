"""What stands between an admin server and its PostgreSQL, and breaks the line at the worst moment: when COMMIT has been sent.

PostgreSQL's messages have a letter, a length and a body; psycopg2 sends each statement as one (`Q`). The first message of a connection
has no letter, and the server's answer to it names the process that serves the connection (`K`): so this very process can be killed.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from enum import StrEnum
from pathlib import Path

from psycopg2.extensions import make_dsn, parse_dsn

SOCKET = ".s.PGSQL.5432"


class Fault(StrEnum):
    """What happens to a COMMIT."""

    ANSWER_LOST = "answer lost"
    """PostgreSQL has committed, and says so to nobody."""
    COMMIT_LOST = "commit lost"
    """PostgreSQL never hears of it, and rolls back."""
    KILLED = "killed"
    """The process that is to commit is killed (SIGKILL) a moment after it was told; PostgreSQL stops as in a crash, and replays its log."""


class DatabaseLine(AbstractContextManager["DatabaseLine"]):
    """A unix socket in `directory` that leads to the PostgreSQL of `dsn`."""

    def __init__(self, directory: Path, dsn: str) -> None:
        directory.mkdir(mode=0o700)
        self._server = os.path.join(parse_dsn(dsn)["host"], SOCKET)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(directory / SOCKET))
        self._listener.listen(100)
        self.dsn = make_dsn(dsn, host=os.fspath(directory))
        """How to connect through it."""
        self._lock = threading.Lock()
        self._waiting: tuple[Fault, bytes, float] | None = None
        self.struck = threading.Event()
        """Set when the fault has happened for which it was armed."""

    def __enter__(self) -> DatabaseLine:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *why: object) -> None:
        self._listener.close()

    def arm(self, fault: Fault, statement: bytes, moment_s: float) -> None:
        """Let it strike at the COMMIT of the next transaction with a statement that contains these words; `moment_s` is for `KILLED`."""
        with self._lock:
            self.struck.clear()
            self._waiting = fault, statement, moment_s

    def disarm(self) -> None:
        """Let everything through."""
        with self._lock:
            self._waiting = None

    def strike(self, transaction: bytes) -> tuple[Fault | None, float]:
        """The fault that this transaction's COMMIT meets, if it is the one that was waited for, and the moment that it takes."""
        with self._lock:
            if self._waiting is None or self._waiting[1] not in transaction:
                return None, 0.0
            (fault, _, moment_s), self._waiting = self._waiting, None
            return fault, moment_s

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self._server)
                except OSError:
                    client.close()
                    continue
                threading.Thread(target=_Connection(self, client, server).run, daemon=True).start()


class _Connection:
    """One connection, with a thread for each direction."""

    def __init__(self, line: DatabaseLine, client: socket.socket, server: socket.socket) -> None:
        self._line = line
        self._client = client
        self._server = server
        self._backend = 0
        self._fault: Fault | None = None

    def run(self) -> None:
        """Pass on what comes, until one of them has gone, or a fault has struck."""
        back = threading.Thread(target=self._pump, args=(self._to_client,), daemon=True)
        with self._client, self._server:
            back.start()
            self._pump(self._to_server)
            back.join()

    def _pump(self, direction: Callable[[], None]) -> None:
        with suppress(OSError, EOFError):
            direction()
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _to_server(self) -> None:
        self._server.sendall(self._message(self._client, letter=False))
        transaction, moment_s = b"", 0.0
        while True:
            message = self._message(self._client)
            if message.startswith(b"Q") and message[5:].startswith(b"BEGIN"):
                transaction = b""
            transaction += message
            # It may travel with statements before it.
            if message[5:] == b"COMMIT\0" or message.endswith(b";\nCOMMIT\0"):
                self._fault, moment_s = self._line.strike(transaction)
            if self._fault is Fault.COMMIT_LOST:
                self._line.struck.set()
                return
            self._server.sendall(message)
            if self._fault is Fault.KILLED:
                # Before, while and after it writes its log: a commit takes a few milliseconds.
                threading.Event().wait(moment_s)
                os.kill(self._backend, signal.SIGKILL)
                self._line.struck.set()
                return

    def _to_client(self) -> None:
        while True:
            message = self._message(self._server)
            if message.startswith(b"K"):
                self._backend = int.from_bytes(message[5:9], "big")
            if self._fault is Fault.ANSWER_LOST:
                self._line.struck.set()
                return
            if self._fault is not None:
                # Nobody hears it; and a process that was killed has not answered.
                continue
            self._client.sendall(message)

    def _message(self, end: socket.socket, *, letter: bool = True) -> bytes:
        head = self._exactly(end, 5 if letter else 4)
        return head + self._exactly(end, int.from_bytes(head[-4:], "big") - 4)

    def _exactly(self, end: socket.socket, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            more = end.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

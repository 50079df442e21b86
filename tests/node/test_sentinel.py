"""The sentinel's process by itself, beside a process that stands for a node's, and a server that hears it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from fcntl import F_DUPFD, fcntl
from pathlib import Path
from typing import Any

import pytest

from securifile.model.servers import ServerKind
from securifile.node.sentinel import program
from securifile.protocol.connection import Connection, PeerIdentity, RequestReceived, Side, State, notice
from securifile.protocol.messages import Done, Ended, Refused

X = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="x")
Y = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="y")
SOON_S = 20.0
"""For what comes at once on a machine with nothing else to do."""
SILENT_S = 0.5

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfd_open")


class Hearing:
    """A server `y` without TLS; it hears one connection after the other."""

    def __init__(self, *, welcomes: bool = True) -> None:
        self.heard: list[Any] = []
        self.connections = 0
        self._welcomes = welcomes
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with accepted:
                self._hear(accepted)

    def _hear(self, accepted: socket.socket) -> None:
        connection = Connection(Side.SERVER, Y)
        while piece := accepted.recv(4096):
            for event in connection.receive(piece):
                if isinstance(event, RequestReceived):
                    self.heard.append(event.message)
                    accepted.sendall(connection.answer(event.id, Done()))
            if connection.state is State.JUDGING and not self._welcomes:
                accepted.sendall(connection.goodbye(Refused(code="not-a-member", detail="who are you?")))
                return
            if connection.state is State.JUDGING:
                accepted.sendall(connection.accept())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class Watched:
    """A process that stands for a node's, with its sentinel."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.process = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        pidfd = os.pidfd_open(self.process.pid)
        told, self.telling = os.pipe()
        lifeline, self.lifeline = os.pipe()
        places = {0: told, program.PROCESS: pidfd, program.LIFELINE: lifeline}
        # Far from the places where they are to be, so that none is put on another one.
        far = {place: fcntl(descriptor, F_DUPFD, 100) for place, descriptor in places.items()}
        self.pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", str(Path(program.__file__))],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, descriptor, place) for place, descriptor in far.items()]
            + [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in far.values()],
        )
        self.own = os.pidfd_open(self.pid)
        for descriptor in (*far.values(), *places.values()):
            os.close(descriptor)
        self._closed: set[int] = set()

    def tell(self, *, ports: tuple[int, ...] | None = None) -> None:
        """What a node process tells it."""
        hello, request = (piece.hex() for piece in notice(X, Ended(boot="b")))
        servers = [("127.0.0.1", port, "securifile://c/node/y") for port in ports or (self.port,)]
        os.write(self.telling, json.dumps({"servers": servers, "hello": hello, "request": request, "tls": None}).encode() + b"\n")

    def kill(self) -> None:
        """As `kill -9` does; what it had open is closed."""
        self.process.kill()
        self.process.wait()
        self.close(self.telling)
        self.close(self.lifeline)

    def close(self, descriptor: int) -> None:
        """Once."""
        if descriptor not in self._closed:
            self._closed.add(descriptor)
            os.close(descriptor)

    def has_ended(self, within_s: float) -> bool:
        """Whether the sentinel has."""
        poll = select.poll()
        poll.register(self.own, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def clear(self) -> None:
        """Leave nothing behind."""
        self.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.own)


@pytest.fixture
def hearing() -> Iterator[Hearing]:
    """Who is told."""
    made = Hearing()
    yield made
    made.close()


@pytest.fixture
def watched(hearing: Hearing) -> Iterator[Watched]:
    """Who is watched."""
    made = Watched(hearing.port)
    yield made
    made.clear()


def test_the_end_is_told_and_then_it_ends(watched: Watched, hearing: Hearing) -> None:
    """Once, and in the words that it was given."""
    watched.tell()
    assert not watched.has_ended(SILENT_S)
    watched.kill()
    assert watched.has_ended(SOON_S)
    assert hearing.heard == [Ended(boot="b")]


def test_the_last_that_it_was_told_counts(watched: Watched, hearing: Hearing) -> None:
    """Servers come and go, also in the moment before the end; half a line is nothing."""
    watched.tell(ports=(9,))
    watched.tell(ports=(9, hearing.port))
    os.write(watched.telling, b'{"servers": [')
    watched.kill()
    assert watched.has_ended(SOON_S)
    assert hearing.heard == [Ended(boot="b")]


def test_who_hangs_has_not_ended(watched: Watched, hearing: Hearing) -> None:
    """A process that is stopped lives, and may go on at any time."""
    watched.tell()
    watched.process.send_signal(signal.SIGSTOP)
    assert not watched.has_ended(SILENT_S)
    assert hearing.connections == 0


def test_it_says_nothing_while_somebody_serves_for_the_dead(watched: Watched, hearing: Hearing) -> None:
    """A front that has the lifeline may still answer people. When it ends, the end is told."""
    watched.tell()
    watched.process.kill()
    watched.process.wait()
    watched.close(watched.telling)
    assert not watched.has_ended(SILENT_S)
    assert hearing.connections == 0
    watched.close(watched.lifeline)
    assert watched.has_ended(SOON_S)
    assert hearing.heard == [Ended(boot="b")]


def test_a_node_that_does_without_it_is_left_in_peace(watched: Watched, hearing: Hearing) -> None:
    """When its process lives on for seconds after it has closed the pipe, the sentinel ends, and says nothing."""
    watched.tell()
    watched.close(watched.telling)
    assert not watched.has_ended(SILENT_S)
    assert watched.has_ended(program.LEFT_S + SOON_S)
    assert hearing.connections == 0


def test_an_orderly_end_is_an_end(watched: Watched, hearing: Hearing) -> None:
    """The pipe is closed first, and the process ends a moment later: that is told as well."""
    watched.tell()
    watched.close(watched.telling)
    assert not watched.has_ended(SILENT_S)
    watched.kill()
    assert watched.has_ended(SOON_S)
    assert hearing.heard == [Ended(boot="b")]


def test_it_has_nothing_to_say_before_it_was_told(watched: Watched, hearing: Hearing) -> None:
    """A node process that ends as soon as it has started it."""
    watched.kill()
    assert watched.has_ended(SOON_S)
    assert hearing.connections == 0


def test_what_is_said_to_all_processes_does_not_end_it(watched: Watched, hearing: Hearing) -> None:
    """Ctrl-C, a hang-up and the signal of a service manager are for the node process; it is in a session of its own."""
    watched.tell()
    # Only who has started knows what to pass over: whoever is awake has a session.
    while os.getsid(watched.pid) != watched.pid:
        assert not watched.has_ended(0.01)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(watched.pid, number)
    assert not watched.has_ended(SILENT_S)
    watched.kill()
    assert watched.has_ended(SOON_S)
    assert hearing.heard == [Ended(boot="b")]


def test_who_does_not_take_it_is_not_asked_again() -> None:
    """A server that does not know such a member, or of an earlier release; and it ends."""
    hearing = Hearing(welcomes=False)
    watched = Watched(hearing.port)
    try:
        watched.tell()
        watched.kill()
        assert watched.has_ended(SOON_S)
        assert hearing.connections == 1
        assert hearing.heard == []
    finally:
        watched.clear()
        hearing.close()


def test_who_is_not_there_or_silent_holds_up_nobody(watched: Watched, hearing: Hearing) -> None:
    """The others are told at once; those are tried again for some seconds, and then it ends."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        watched.tell(ports=(9, silent.getsockname()[1], hearing.port))
        watched.kill()
        assert watched.has_ended(2 * program.TELLING_S + SOON_S)
    assert hearing.heard == [Ended(boot="b")]

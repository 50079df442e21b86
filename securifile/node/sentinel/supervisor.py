"""The sentinel, seen from the node process: it starts one, keeps it informed, and starts another one when that ends.

    node process ── pidfd of itself, lifeline, whom to tell what ──> sentinel ── when both have ended: Ended(boot) ──> every other server
         └── lifeline ──> fronts

That the node process has ended the system tells by the pidfd; that its fronts have, by the lifeline: a pipe that nothing is written to,
and whose end comes when the last of those has gone that have its writing end. See `docs/decisions/0024-sentinels.md`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger

from securifile.audit.backoff import Backoff
from securifile.certificates.identity import IDENTITY_FILE, SERVERS_FILE
from securifile.certificates.names import ServerUri
from securifile.model.facts import Fact, Server, ServerGone
from securifile.model.servers import HostPort
from securifile.node.sentinel import program
from securifile.protocol.connection import PeerIdentity, notice
from securifile.protocol.messages import Ended

LASTING_S = 60.0
"""A sentinel that has lived for so long was no failure: the next one is started soon."""


class Supervisor:
    """Keeps a sentinel beside this process."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        here: PeerIdentity,
        boot: str,
        data: Path,
        tls: bool,
        servers: Callable[[], Iterable[Server]],
        random: Callable[[int], bytes],
    ) -> None:
        """Nothing is started yet.

        Args:
            here: this node.
            boot: the life of this process.
            data: its folder, with its key.
            servers: all members of the cluster, as far as is known.
        """
        self._reactor = reactor
        self._here = here
        self._files = [str((data / name).resolve()) for name in (IDENTITY_FILE, SERVERS_FILE)] if tls else None
        self._words = [piece.hex() for piece in notice(here, Ended(boot=boot))]
        self._servers = servers
        self._backoff = Backoff(random)
        self._process: Any = None
        self._begun_at = 0.0
        self._timer: Any = None
        self._describing: Any = None
        self._stopped = False
        self._pidfd: int | None = None
        self._lifeline_end, self.lifeline = os.pipe()
        """The reading end; and the writing end, for each process that serves people for this node."""

    def start(self) -> None:
        """Start a sentinel, if the system can tell it when this process ends."""
        try:
            # Of itself, while it lives: whose pidfd it is cannot be mistaken.
            self._pidfd = os.pidfd_open(os.getpid())
        except (AttributeError, OSError) as error:
            self._log.warn(
                "this system does not tell of the end of a process (pidfd_open: {error}): should this node be killed, writes through others"
                " wait until it has lost its standing",
                error=str(error),
            )
            return
        self._spawn()

    @property
    def pid(self) -> int | None:
        """The sentinel that is there now."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """This node stops in an orderly way. The sentinel stays until the process has ended, and tells it; or ends by itself soon."""
        self._stopped = True
        for timer in (self._timer, self._describing):
            if timer is not None:
                timer.cancel()
        self._timer = self._describing = None
        if self._process is not None:
            self._process.closeStdin()
        for descriptor in (self._pidfd, self._lifeline_end, self.lifeline):
            if descriptor is not None:
                os.close(descriptor)

    def learn(self, fact: Fact) -> None:
        """Servers come, go and move."""
        if isinstance(fact, Server | ServerGone) and self._describing is None and not self._stopped:
            # Not now: a snapshot tells of all of them at once, and the others who listen have not heard of it yet.
            self._describing = self._reactor.callLater(0, self._describe)

    def describe(self) -> bytes:
        """Whom to tell what."""
        others = [
            (address.host, address.port, str(ServerUri(self._here.cluster, server.kind, server.name)))
            for server in self._servers()
            if server.name != self._here.name
            for address in _address(server)
        ]
        hello, request = self._words
        return json.dumps({"servers": others, "hello": hello, "request": request, "tls": self._files}).encode() + b"\n"

    def _describe(self) -> None:
        self._describing = None
        if self._process is not None:
            self._process.write(self.describe())

    def _spawn(self) -> None:
        self._timer = None
        self._begun_at = self._reactor.seconds()
        assert self._pidfd is not None
        try:
            self._process = self._reactor.spawnProcess(
                _Process(self),
                sys.executable,
                [sys.executable, "-I", "-S", str(Path(program.__file__).resolve())],
                env=os.environ,
                # It is to hold no file system, and nothing of this process but these.
                path="/",
                childFDs={0: "w", 1: 1, 2: 2, program.PROCESS: self._pidfd, program.LIFELINE: self._lifeline_end},
            )
        except OSError as error:
            self._log.error("no sentinel can be started now: {error}", error=str(error))
            self._again()
            return
        self._process.write(self.describe())

    def _again(self) -> None:
        self._timer = self._reactor.callLater(self._backoff.failed(), self._spawn)

    def ended(self, reason: Any) -> None:
        """The sentinel is no more."""
        self._process = None
        if self._stopped:
            return
        if self._reactor.seconds() - self._begun_at >= LASTING_S:
            self._backoff.succeeded()
        self._log.warn("the sentinel has ended: {reason}; another one is started", reason=reason.getErrorMessage())
        self._again()


class _Process(ProcessProtocol):
    """Hears of the end of a sentinel."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def processEnded(self, reason: Any) -> None:
        self._supervisor.ended(reason)


def _address(server: Server) -> list[HostPort]:
    """Where a server is; nothing if what it told is no address."""
    try:
        return [HostPort.parse(server.protocol_address)]
    except ValueError:
        return []

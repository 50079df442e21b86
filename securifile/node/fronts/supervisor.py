"""The fronts of a node, seen from the node process: it starts them, gives them work, and ends them.

    port ── accepted here ──┬── the front with the fewest connections ── tunnel ──┐
                            └── nobody is there to take it: served here ──────────┴── HTTP of the node process

The node process stays the one that accepts, so that a front that dies takes its own connections along and no others, no process that is
left over holds the port, and people are served while there is no front at all. It keeps the scoreboard; see there.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger
from twisted.protocols import amp

import securifile
from securifile.audit.backoff import Backoff
from securifile.http.identity import BasicCache, BasicPassword
from securifile.model.errors import SpoolFull
from securifile.model.facts import Fact, Server, ServerGone, Settings
from securifile.model.ids import AttemptId
from securifile.node.cluster import Cluster
from securifile.node.fronts import control as c
from securifile.node.fronts.handover import Taking, hand, pair
from securifile.node.fronts.options import CONTROL, HANDOVER, LIFELINE, SCOREBOARD, FrontOptions
from securifile.node.fronts.scoreboard import Scoreboard, YoungMarks, make_memory
from securifile.node.fronts.tunnel import NodeEnds, noted_address
from securifile.node.index import Index

GRANT_S = 0.2
"""How often the right to serve is given anew: it lasts for 2.5 heartbeat intervals at most."""
PING_S = 1.0
"""How often a front is asked whether it is there."""
MISSED_MAX = 5
"""A front that has not answered so many times in a row hangs; it is ended, and another one started."""
LASTING_S = 60.0
"""A front that has lived for so long was no failure: the next one is started at once."""
FULL_S = 1.0
"""For how long a front that has missed a connection is given no other: it would have the fewest, and be given all of them."""
DRAINED_S = 2.0
"""How much longer than its grace a front may take to stop."""


class Fronts:
    """The fronts of one node process."""

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        count: int,
        data: Path,
        tls: bool,
        connections_max: int,
        random: Callable[[int], bytes],
        cluster: Cluster,
        index: Index,
        audit: Any,
        passwords: BasicCache,
        credentials_of: Callable[[str], int | None],
        suspect: Callable[[AttemptId, str], None],
        wall: Callable[[], float],
        tunnels: NodeEnds,
        lifeline: int,
    ) -> None:
        """Nothing is started yet.

        Args:
            count: of fronts, one at least.
            connections_max: of people, all fronts together.
            passwords: which passwords the node process remembers.
            credentials_of: the present `credentials` number of a person.
            suspect: told of a blob that a front could not read.
            tunnels: the HTTP interface of the node process.
            lifeline: a descriptor for each of them, to be kept until it ends.
        """
        self.reactor = reactor
        self._count = count
        self._options = data, tls, max(1, connections_max // count)
        self._cluster = cluster
        self._audit = audit
        self.passwords = passwords
        self.credentials_of = credentials_of
        self.suspect = suspect
        self._wall = wall
        self.tunnels = tunnels
        self.lifeline = lifeline
        self.memory = make_memory(count)
        self.board = Scoreboard(self.memory, count)
        self.board.withdraw()
        self._fronts = [Place(self, number, Backoff(random)) for number in range(count)]
        self._timer: Any = None
        self.stopping = False
        self.restarted = 0
        self.available: list[str] = []
        """The nodes that can be asked for files, as the fronts know."""
        cluster.settling.show_on(YoungMarks(self.board))
        index.watch_commits(self._committing)
        index.listen(self._learn)
        cluster.heartbeats.on_doubt = self._grant

    def start(self) -> None:
        """Start them all, and give them the right to serve from now on."""
        self._granting()
        for place in self._fronts:
            place.start()

    def options(self, number: int) -> FrontOptions:
        """What a front is told."""
        data, tls, connections_max = self._options
        return FrontOptions(data=data, number=number, fronts=self._count, parent=os.getpid(), tls=tls, connections_max=connections_max)

    def give(self, descriptor: int) -> bool:
        """Have a front take a connection; False when there is none that can."""
        ready = sorted((place for place in self._fronts if place.is_ready and not place.is_full), key=lambda place: place.load)
        return any(place.give(descriptor) for place in ready)

    def renewed(self) -> None:
        """The certificate in the data folder is a new one."""
        for place in self._fronts:
            place.tell(c.Renewed)

    def left(self) -> None:
        """A blob has left the store."""
        self.board.left += 1

    @property
    def ready(self) -> int:
        """How many take connections."""
        return sum(place.is_ready for place in self._fronts)

    @property
    def metrics(self) -> dict[str, float]:
        """For `/metrics`, by name."""
        figures = {
            "https_processes": float(self.ready),
            "https_processes_restarted": float(self.restarted),
        }
        for place in self._fronts:
            label = f'{{process="{place.number}"}}'
            figures[f"https_connections{label}"] = float(place.connections)
            figures[f"https_answered{label}"] = float(place.score.answered)
            figures[f"https_passed_on{label}"] = float(place.score.passed_on)
        return figures

    @property
    def pids(self) -> list[int]:
        """The processes that are there now."""
        return [place.pid for place in self._fronts if place.pid is not None]

    async def drain(self, grace_s: float) -> None:
        """Let answers under way come to their end; give nothing more to do."""
        self.stopping = True
        await DeferredList([place.drain(grace_s) for place in self._fronts], consumeErrors=True)

    async def stop(self) -> None:
        """End them all."""
        self.stopping = True
        self.board.withdraw()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await DeferredList([place.end() for place in self._fronts])
        os.close(self.memory)

    # --- the scoreboard ---

    def _granting(self) -> None:
        interval_s = self._cluster.roster.settings.heartbeat_interval_s
        self._timer = self.reactor.callLater(min(GRANT_S, interval_s / 2), self._granting)
        self._grant()
        available = [name for name in self._cluster.roster.nodes if self._cluster.is_available(name)]
        if available != self.available:
            self.available = available
            for place in self._fronts:
                place.tell(c.Available, names=available)

    def _grant(self) -> None:
        """Say on the scoreboard until when may be served, by what is known now."""
        board = self.board
        if self.stopping and self._timer is None:
            return
        board.serves_until, board.goes_on_until = self._cluster.admission.serves_until()
        board.alive_at = self.reactor.seconds()
        board.wall_offset = self._wall() - self.reactor.seconds()
        board.has_room = int(self._audit.has_room())

    def _committing(self) -> None:
        self.board.changes += 1

    def _learn(self, fact: Fact) -> None:
        concerns_servers = isinstance(fact, Server | ServerGone | Settings)
        if concerns_servers:
            self.board.server_changes += 1
        if concerns_servers or self.board.serves_until < self.reactor.seconds():
            self._grant()

    def record(self, records: bytes) -> None:
        """Take audit records of a front."""
        for record in c.unpack_records(records):
            try:
                self._audit.note(record)
            except SpoolFull:
                self._log.error(
                    "no room to record {event} of {person}: {status}", event=record.event, person=record.person, status=record.status
                )
        self.board.has_room = int(self._audit.has_room())


class Place:
    """One place for a front: the process that has it, and the one after that."""

    _log = Logger()

    def __init__(self, fronts: Fronts, number: int, backoff: Backoff) -> None:
        self.number = number
        self.pid: int | None = None
        self._fronts = fronts
        self._backoff = backoff
        self._process: Any = None
        self._control: Any = None
        self._taking: Taking | None = None
        self._handover: socket.socket | None = None
        self._given = 0
        self._missed_seen = 0
        self._full_until = 0.0
        self._begun_at = 0.0
        self._is_ready = False
        self._asked = False
        """Whether an answer is awaited."""
        self._missed = 0
        """How often it was to be asked again, and had not answered."""
        self._timer: Any = None
        self._ended: list[Deferred[None]] = []

    @property
    def score(self) -> Any:
        """What its front tells of itself."""
        return self._fronts.board.fronts[self.number]

    @property
    def is_ready(self) -> bool:
        """Whether there is a front that takes connections, and answers."""
        return self._is_ready and not self._missed and not self._fronts.stopping

    @property
    def is_full(self) -> bool:
        """Whether it had no room for a connection just now."""
        now: float = self._fronts.reactor.seconds()
        missed = self.score.missed
        if missed != self._missed_seen:
            self._missed_seen, self._full_until = missed, now + FULL_S
        return now < self._full_until

    @property
    def connections(self) -> int:
        """How many the front has."""
        return self._given - self.score.ended if self._process is not None else 0

    @property
    def load(self) -> tuple[int, int]:
        """What to give connections by: the least first; equals take turns."""
        return self.connections, self._given

    def start(self) -> None:
        """Start a process here."""
        reactor, fronts = self._fronts.reactor, self._fronts
        self._timer = None
        self._begun_at = reactor.seconds()
        self._given, self._asked, self._missed, self._missed_seen = 0, False, 0, 0
        self.score.clear()
        control, its_control = pair()
        self._handover, its_handover = pair()
        self._control = _Control(self)
        home = str(Path(securifile.__file__).resolve().parent.parent)
        paths = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._process = reactor.spawnProcess(
                _Process(self),
                sys.executable,
                [sys.executable, "-P", "-m", "securifile.node.fronts", *fronts.options(self.number).arguments],
                env=os.environ | {"PYTHONPATH": paths},
                childFDs={
                    0: 0,
                    1: 1,
                    2: 2,
                    CONTROL: its_control.fileno(),
                    HANDOVER: its_handover.fileno(),
                    SCOREBOARD: fronts.memory,
                    LIFELINE: fronts.lifeline,
                },
            )
            self.pid = self._process.pid
            reactor.adoptStreamConnection(control.fileno(), socket.AF_UNIX, _One(self._control))
            self._taking = Taking(reactor, self._handover, self._tunnel)
        finally:
            for end in (control, its_control, its_handover):
                end.close()

    def give(self, descriptor: int) -> bool:
        """Have it take a connection; False when it cannot."""
        if self._handover is None or not hand(self._handover, descriptor):
            return False
        self._given += 1
        return True

    def tell(self, command: Any, **arguments: Any) -> None:
        """Tell it something that needs no answer."""
        if self._control is not None and self._is_ready:
            self._control.callRemote(command, **arguments)

    def drain(self, grace_s: float) -> Deferred[Any]:
        """Let its answers come to their end."""
        done: Deferred[Any] = Deferred()
        if self._control is None or not self._is_ready:
            done.callback(None)
            return done
        timer = self._fronts.reactor.callLater(grace_s + DRAINED_S, done.cancel)
        draining = self._control.callRemote(c.Drain, grace_s=grace_s)

        def drained(_: Any) -> None:
            if timer.active():
                timer.cancel()
            if not done.called:
                done.callback(None)

        draining.addBoth(drained)
        return done

    def end(self) -> Deferred[None]:
        """End it; fires when it has ended."""
        done: Deferred[None] = Deferred()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._process is None:
            done.callback(None)
            return done
        self._ended.append(done)
        self.kill()
        return done

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None and self._process.pid is not None:
            self._process.signalProcess("KILL")

    # --- what the process says ---

    def ready(self) -> None:
        """It takes connections."""
        self._is_ready = True
        self.tell(c.Available, names=self._fronts.available)
        self._ping()

    def _ping(self) -> None:
        if self._control is None:
            return
        reactor = self._fronts.reactor
        self._timer = reactor.callLater(PING_S, self._ping)
        # Counted, not timed: after this process itself has hung, the answer is there and has not been read yet.
        if not self._asked:
            self._asked = True
            self._control.callRemote(c.Ping).addCallbacks(self._answered, _gone)
        elif self._missed < MISSED_MAX:
            self._missed += 1
        else:
            self._log.error("the HTTPS process {pid} does not answer; it is ended", pid=self.pid)
            self.kill()

    def _answered(self, _: Any) -> None:
        self._asked, self._missed = False, 0

    def record(self, records: bytes) -> None:
        """It has answered requests."""
        self._fronts.record(records)

    def suspect(self, attempt: bytes, reason: str) -> None:
        """It could not read a blob."""
        self._fronts.suspect(AttemptId(attempt), reason)

    def known_password(self, username: str, password: str) -> tuple[str, int] | None:
        """The username that a password is known to be right for, with their `credentials`."""
        fronts = self._fronts
        found = fronts.passwords.look(BasicPassword(username, password), fronts.credentials_of)
        credentials = None if found is None else fronts.credentials_of(found)
        return None if found is None or credentials is None else (found, credentials)

    def _tunnel(self, descriptor: int, note: str) -> None:
        if note:
            self._fronts.reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, self._fronts.tunnels.of(noted_address(note)))

    def ended(self, reason: Any) -> None:
        """The process is no more."""
        pid, self.pid, self._process, self._control, self._is_ready = self.pid, None, None, None, False
        if self._taking is not None:
            self._taking.close()
            self._taking = self._handover = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._ended = self._ended, []
        for deferred in waiting:
            deferred.callback(None)
        if self._fronts.stopping:
            return
        if self._fronts.reactor.seconds() - self._begun_at >= LASTING_S:
            self._backoff.succeeded()
        self._fronts.restarted += 1
        again_s = self._backoff.failed()
        self._log.error("the HTTPS process {pid} has ended: {reason}; another one is started", pid=pid, reason=reason.getErrorMessage())
        self._timer = self._fronts.reactor.callLater(again_s, self._start_again)

    def _start_again(self) -> None:
        try:
            self.start()
        except OSError as error:
            self._log.error("no HTTPS process can be started now: {error}", error=str(error))
            self._timer = self._fronts.reactor.callLater(self._backoff.failed(), self._start_again)


class _Process(ProcessProtocol):
    """Hears of the end of a front."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def processEnded(self, reason: Any) -> None:
        self._place.ended(reason)


class _Control(amp.AMP):
    """The node process's end of a control connection."""

    def __init__(self, place: Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._place = place

    @c.Ready.responder
    def ready(self) -> dict[str, Any]:
        self._place.ready()
        return {}

    @c.Records.responder
    def records(self, records: bytes) -> dict[str, Any]:
        self._place.record(records)
        return {}

    @c.Suspect.responder
    def suspect(self, attempt: bytes, reason: str) -> dict[str, Any]:
        self._place.suspect(attempt, reason)
        return {}

    @c.KnownPassword.responder
    def known_password(self, username: str, password: str) -> dict[str, Any]:
        found = self._place.known_password(username, password)
        return {"known": found is not None, "username": found[0] if found else "", "credentials": found[1] if found else 0}


def _gone(failure: Any) -> None:
    """Who was asked has ended: its process's end says so, too."""
    failure.trap(ConnectionDone, ConnectionLost)


class _One(Factory):
    """A factory for one protocol."""

    noisy = False

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Any:
        return self._protocol

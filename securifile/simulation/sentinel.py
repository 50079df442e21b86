"""The sentinel of a simulated node: what `node/sentinel/program.py` says after its node's end, on the network of the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from securifile.model.errors import DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.servers import HostPort
from securifile.node.sentinel.program import ANSWER_S, PAUSES_S
from securifile.protocol.connection import Connection, PeerIdentity, Purpose, Side
from securifile.protocol.messages import Ended
from securifile.protocol.rpc import Peer
from securifile.protocol.wire import Connector, Wire, claimed, open_wire
from securifile.simulation.clock import ProcessClock


class SimulatedSentinel:
    """A process that outlives its node's, and says that one life of it is over."""

    _log = Logger()

    def __init__(self, clock: ProcessClock, connector: Connector, here: PeerIdentity, boot: str) -> None:
        self.clock = clock
        """Of its own process: it ends with the machine's power."""
        self._connector = connector
        self._here = here
        self._boot = boot
        self._telling: list[Deferred[None]] = []

    def tell(self, servers: Iterable[tuple[HostPort, PeerIdentity]], after_s: float) -> None:
        """Tell these, after a while."""
        self.clock.callLater(after_s, self._begin, list(servers))

    def _begin(self, servers: list[tuple[HostPort, PeerIdentity]]) -> None:
        self._telling = [Deferred.fromCoroutine(self._tell(address, expected)) for address, expected in servers]
        for one in self._telling:
            one.addErrback(self._failed)

    async def _tell(self, address: HostPort, expected: PeerIdentity) -> None:
        for pause_s in (*PAUSES_S, 0.0):
            wire = Wire(
                clock=self.clock,
                connection=Connection(Side.CLIENT, self._here, Purpose.NOTICE),
                identify=claimed,
                judge=lambda identity: None,
                open_session=lambda opened: Peer(opened, {}),
            )
            try:
                await open_wire(self._connector(address, expected), wire, ANSWER_S)
                peer = cast(Peer, wire.session)
                await peer.ask(Ended(boot=self._boot), ANSWER_S)
                peer.close()
                return
            except Refusal:
                return
            except (PeerUnreachable, DeadlineExceeded):
                await deferLater(self.clock, pause_s)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("a sentinel failed", failure)

"""The network of a run: `MemoryNetwork` with weather.

Each way between two hosts has its own delay with jitter, and may be cut in one direction only. A process that is paused reads nothing;
one that has died resets its connections; a machine without power says nothing at all, until it is up again and resets what
others still take for connections. Of a lost, doubled or reordered packet TCP shows nothing but a delay, and connections that break.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from securifile.model.servers import HostPort
from securifile.protocol.memory import MemoryNetwork, MemoryTransport
from securifile.protocol.wire import Connector
from securifile.simulation.chance import Chance
from securifile.simulation.clock import VirtualTime

LATENCY_S = 0.0005
"""One way within a house."""

RETRANSMITTED_S = (0.2, 0.8)
"""What a lost packet costs: TCP sends it again after at least 200 ms, and waits twice as long when that is lost, too."""

AGAIN_S = 0.05
"""How often a connection attempt that meets silence is looked at again: finer than any timeout."""


class Weather(MemoryNetwork):
    """The network, and what befalls it."""

    def __init__(self, time: VirtualTime, chance: Chance, *, latency_s: float = LATENCY_S, jitter: float = 0.5) -> None:
        """Args:
        jitter: each piece takes up to this much longer, as a part of the latency.
        """
        super().__init__(time, latency_s=latency_s)
        self._chance = chance
        self._jitter = jitter
        self._blocked: set[tuple[str, str]] = set()
        self._slow: dict[frozenset[str], float] = {}
        self._lossy: dict[frozenset[str], float] = {}
        self._asleep: set[str] = set()
        self._dark: set[str] = set()
        self.buried: list[Any] = []
        """What the dead had for connections: see `SimulatedCluster.bury`."""

    # --- what the base asks ---

    def delay_s(self, here: str, there: str) -> float:
        """See `MemoryNetwork`."""
        factor = self._slow.get(frozenset((here, there)), 1.0) if self._slow else 1.0
        delay_s = self.latency_s * factor * (1.0 + self._jitter * self._chance.fraction())
        if self._lossy and self._chance.happens(self._lossy.get(frozenset((here, there)), 0.0)):
            delay_s += self._chance.between(*RETRANSMITTED_S)
        return delay_s

    def is_cut(self, one: str, other: str) -> bool:
        """Whether nothing passes from `one` to `other`."""
        return (one, other) in self._blocked or one in self._dark or other in self._dark

    def is_awake(self, host: str) -> bool:
        """See `MemoryNetwork`."""
        return host not in self._asleep

    def connector_of(self, host: str, clock: IReactorTime) -> Connector:
        """How one process on that host connects: what it began ends with it, or waits while it is paused."""
        return lambda address, expected: _Endpoint(self, clock, host, address)

    def attempt(self, clock: IReactorTime, host: str, address: HostPort, factory: Any, done: Deferred[IProtocol]) -> None:
        """Connect, if anybody answers; a SYN needs its answer, so a cut in either direction is enough to prevent it."""
        if done.called:
            return
        there = address.host
        if self.is_cut(host, there) or self.is_cut(there, host) or not self.is_awake(there):
            clock.callLater(AGAIN_S, self.attempt, clock, host, address, factory, done)
        else:
            self.connect(host, address, factory, done)

    # --- what befalls it ---

    def cut(self, one: str, other: str) -> None:
        """Nothing passes in either direction."""
        self.block(one, other)
        self.block(other, one)

    def block(self, source: str, target: str) -> None:
        """Nothing passes from `source` to `target`; the other direction is open."""
        self._blocked.add((source, target))

    def is_blocked(self, source: str, target: str) -> bool:
        """Whether that way is cut."""
        return (source, target) in self._blocked

    def unblock(self, source: str, target: str) -> None:
        """That way is open again."""
        self._blocked.discard((source, target))
        self._stir(lambda here, there: (here, there) == (source, target))

    def heal(self, one: str, other: str) -> None:
        """Everything passes again between the two."""
        self._blocked -= {(one, other), (other, one)}
        self._stir(lambda here, there: {here, there} == {one, other})

    def slow(self, one: str, other: str, factor: float) -> None:
        """From now on everything takes so many times longer between the two; 1 is as usual."""
        self._slow[frozenset((one, other))] = factor

    def lose(self, one: str, other: str, probability: float) -> None:
        """From now on so many packets between the two have to be sent again; 0 is as usual."""
        self._lossy[frozenset((one, other))] = probability

    def sleep(self, host: str) -> None:
        """The process on that host is paused."""
        self._asleep.add(host)

    def wake(self, host: str) -> None:
        """It goes on."""
        self._asleep.discard(host)
        self._stir(lambda here, there: host in (here, there))

    def crash(self, host: str) -> None:
        """Its process is gone without a word; the kernel resets its connections."""
        for end in self.transports(host):
            end.connected = False
            self.buried.append(end.protocol)
            end.protocol = Protocol()
            self.forget(end)
            end.other.deliver_soon()

    def go_dark(self, host: str) -> None:
        """The machine has no power: others hear nothing, not even a reset."""
        self._dark.add(host)
        self.crash(host)

    def light(self, host: str) -> None:
        """The machine is up, and knows nothing of the connections it had."""
        self._dark.discard(host)
        self._stir(lambda here, there: host in (here, there))

    def break_one(self, one: str, other: str) -> bool:
        """One connection between the two breaks; False when there is none."""
        ends = [end for end in self.transports(one) if end.getPeer().host == other]
        if not ends or not (self.is_awake(one) and self.is_awake(other)):
            return False
        end: MemoryTransport = self._chance.pick(ends)
        for broken in (end, end.other):
            broken.end(ConnectionLost("the network broke it"))
        return True

    def _stir(self, concerned: Callable[[str, str], bool]) -> None:
        for end in list(self._transports):
            if concerned(end.getHost().host, end.getPeer().host):
                end.deliver_soon()


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _Endpoint:
    _network: Weather
    _clock: IReactorTime
    _host: str
    _address: HostPort

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        done: Deferred[IProtocol] = Deferred()
        delay_s = self._network.delay_s(self._host, self._address.host)
        self._clock.callLater(delay_s, self._network.attempt, self._clock, self._host, self._address, protocolFactory, done)
        return done

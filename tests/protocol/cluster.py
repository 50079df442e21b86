"""Two servers and a network in memory, for the tests of this room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from securifile.model.servers import HostPort, ServerKind
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import FEATURES, PeerIdentity
from securifile.protocol.memory import MemoryNetwork
from securifile.protocol.rpc import Link, Peer
from securifile.protocol.transport import ControlAndBulkFactory
from securifile.protocol.wire import Traffic

T = TypeVar("T")

N1 = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n1")
N2 = PeerIdentity(cluster="c", kind=ServerKind.NODE, name="n2")
A1 = PeerIdentity(cluster="c", kind=ServerKind.ADMIN, name="a1")
AT_N1 = HostPort("n1", 7000)


@attrs.define
class Rig:
    """`n1` listens; `n2` connects."""

    clock: Clock = attrs.field(factory=Clock)
    members: set[PeerIdentity] = attrs.field(factory=lambda: {N1, N2, A1})
    network: MemoryNetwork = attrs.field(init=False)
    arrived: list[Peer] = attrs.field(factory=list)
    left: list[Peer] = attrs.field(factory=list)
    connected: list[Peer] = attrs.field(factory=list)
    lost: list[Peer] = attrs.field(factory=list)
    traffic: Traffic = attrs.field(factory=Traffic)
    """Of n1."""

    def __attrs_post_init__(self) -> None:
        self.network = MemoryNetwork(self.clock)

    def serve(
        self,
        handlers: Any = None,
        bulk: Any = None,
        stall_s: float = 30.0,
        features: frozenset[str] = FEATURES,
        notices: Any = None,
    ) -> ControlAndBulkFactory:
        """Start to listen on n1."""
        factory = ControlAndBulkFactory(
            clock=self.clock,
            here=N1,
            is_member=lambda identity: identity in self.members,
            handlers=handlers or {},
            notices=notices,
            bulk=bulk,
            on_connected=self.arrived.append,
            on_lost=self.left.append,
            stall_s=stall_s,
            traffic=self.traffic,
            features=features,
        )
        self.network.listen(AT_N1, factory)
        return factory

    def link(self, handlers: Any = None, here: PeerIdentity = N2, expected: PeerIdentity = N1, start: bool = True) -> Link:
        """n2's link to n1, connected if it can be."""
        link = Link(
            clock=self.clock,
            jitter=lambda: 0.5,
            connector=self.network.connector(here.name),
            address=AT_N1,
            expected=expected,
            here=here,
            handlers=handlers or {},
            on_connected=self.connected.append,
            on_lost=self.lost.append,
        )
        if start:
            link.start()
            self.settle()
        return link

    def pool(self, **options: Any) -> BulkPool:
        """n2's bulk connections."""
        options.setdefault("stall_s", 30.0)
        return BulkPool(clock=self.clock, connector=self.network.connector("n2"), here=N2, locate=lambda name: (AT_N1, N1), **options)

    def settle(self, seconds: float = 0.0, steps: int = 50) -> None:
        """Let what is under way arrive, and let time pass."""
        for _ in range(steps):
            self.clock.advance(seconds / steps)

    def result(self, waiting: Deferred[T] | Awaitable[T], steps: int = 50) -> T:
        """What a Deferred or coroutine comes to, once things have settled; raises what it fails with."""
        outcome = self.outcome(waiting, steps)
        if isinstance(outcome, Failure):
            outcome.raiseException()
        return outcome  # type: ignore[no-any-return]

    def outcome(self, waiting: Any, steps: int = 50) -> Any:
        """Like `result`, a failure as a `Failure`."""
        deferred = waiting if isinstance(waiting, Deferred) else Deferred.fromCoroutine(waiting)
        results: list[Any] = []
        deferred.addBoth(results.append)
        for _ in range(steps):
            if results:
                break
            self.clock.advance(0)
        assert results, "nothing came of it"
        return results[0]


def answering(answer: Any) -> Callable[[Peer, Any], Awaitable[Any]]:
    """A handler that gives this answer, or raises it."""

    async def handler(peer: Peer, message: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler

"""A cluster of fakes on loopback, and clients for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from securifile.client.api import Client
from securifile.client.asking import KnownServer
from securifile.client.exchange import Http, Patience
from securifile.client.trust import endpoints
from securifile.model.interfaces import IWorker
from tests.client.fake_cluster import TOKEN, FakeCluster

T = TypeVar("T")


@implementer(IWorker)
class AtOnce:
    """Does work in the caller's thread."""

    def do(self, work: Callable[..., T], *arguments: Any) -> Deferred[T]:
        return execute(work, *arguments)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """An admin server and three nodes."""
    made = FakeCluster()
    list(made.listen(reactor, "admin1 node1 node2 node3"))
    yield made
    for server in made.servers:
        pytest_twisted.blockon(Deferred.fromCoroutine(server.stop()))


class Impatient:
    """The reactor, except that every pause between tries is over at once."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **kw: object) -> Any:
        self.pauses.append(delay)
        return reactor.callLater(0, call, *args, **kw)

    def seconds(self) -> float:
        return 0.0


@pytest.fixture
def pauses() -> Impatient:
    return Impatient()


@pytest.fixture
def client(cluster: FakeCluster, pauses: Impatient) -> Iterator[Client]:
    """Signed in at the cluster; draws node1, node2, node3 in that order."""
    http = Http(endpoints(reactor, None), reactor, Patience(connect_s=5, answer_s=5, stall_s=5, leave_s=0.2))
    order = iter(range(1_000_000))
    made = Client(
        http,
        [KnownServer(**server.told()) for server in cluster.servers],
        clock=pauses,  # type: ignore[arg-type]
        random=lambda count: next(order).to_bytes(count, "big") if count == 8 else os.urandom(count),
        worker=AtOnce(),
        token=TOKEN,
    )
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))

"""What an administrator does with a node: taking it offline and back, having it repaired, draining it. Nobody else may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed

from securifile.admin.ledger import Entered
from securifile.admin.operations_api import OperationsApi
from securifile.http.authentication import Caller
from securifile.http.exchange import Access, Answer
from securifile.model.errors import Code, PeerUnreachable, Refusal
from securifile.model.facts import Person
from securifile.model.ids import EntryId
from securifile.model.servers import ServerKind, Status
from securifile.protocol import messages as m
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import World, node

ROUTES = {("POST", "offline"), ("POST", "online"), ("POST", "repair"), ("POST", "drain"), ("DELETE", "drain")}


def caller(*, administrator: bool) -> Caller:
    """Somebody who has signed in."""
    return Caller(
        person=Person(
            username="ann",
            email="ann@example.org",
            administrator=administrator,
            valid_from=0.0,
            valid_until=None,
            disabled=False,
            quota_bytes=None,
            credentials=1,
        )
    )


@attrs.define
class FakeRequest:
    """A path and a query."""

    path: bytes
    queries: dict[str, str] = attrs.field(factory=dict)

    def query(self, name: str) -> str | None:
        """See `Request`."""
        return self.queries.get(name)


class FakeBackend:
    """Has the catalogue changed, and nobody to spread it to."""

    async def enter(self, work: Deferred[Entered[Any]]) -> Any:
        """See `AdminBackend`."""
        return (await work).answer


@attrs.define(eq=False)
class FakePeers:
    """The nodes: each is asked and answers the same."""

    answer: Any = attrs.field(factory=lambda: m.Repaired(checked=7, fetched=2, lost=(EntryId(b"f" * 16),)))
    asked: list[tuple[str, Any]] = attrs.field(factory=list)

    def ask(self, name: str, message: Any, timeout_s: float) -> Deferred[Any]:
        """See `Peers`."""
        self.asked.append((name, message))
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class Operating:
    """The routes over a catalogue in memory."""

    def __init__(self) -> None:
        self.world = World(SqliteDatabase(None))
        self.peers = FakePeers()
        self.routes: dict[tuple[str, str], Callable[[Any, Access], Awaitable[Answer]]] = {}
        backend: Any = FakeBackend()
        peers: Any = self.peers
        here: Any = self
        OperationsApi(backend=backend, catalogue=self.world.catalogue, peers=peers).register(here, here)

    def route(self, app: Any, path: str, method: str, name: str, handler: Any) -> None:
        """See `SharedApi`."""
        self.routes[method, path.rpartition("/")[2]] = handler

    async def do(self, method: str, verb: str, name: str, *, administrator: bool = True, **queries: str) -> Any:
        """Ask for it; the answer's JSON."""
        self.access = Access(event=verb, caller=caller(administrator=administrator))
        answer = await self.routes[method, verb](FakeRequest(f"/api/v1/servers/{name}/{verb}".encode(), queries), self.access)
        assert answer.status == 200
        return answer.value

    async def refused(self, method: str, verb: str, name: str, **more: Any) -> Code:
        """The code that it is refused with."""
        with pytest.raises(Refusal) as caught:
            await self.do(method, verb, name, **more)
        return caught.value.code


@pytest.fixture
def operating() -> Iterator[Operating]:
    made = Operating()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.world.open()))
    yield made


@pytest_twisted.ensureDeferred
async def test_only_administrators_may(operating: Operating) -> None:
    """Anybody else is refused, for nodes there are and nodes there are not, and nothing happens."""
    assert set(operating.routes) == ROUTES
    before = operating.world.catalogue.ledger.position
    for method, verb in sorted(ROUTES):
        for name in ("n1", "nobody"):
            assert await operating.refused(method, verb, name, administrator=False) is Code.FORBIDDEN
    assert (operating.world.catalogue.ledger.position, operating.peers.asked) == (before, [])


@pytest_twisted.ensureDeferred
async def test_what_is_no_node_is_not_found(operating: Operating) -> None:
    """Neither a name that nobody has, nor an admin server's."""
    await operating.world.catalogue.members.put_admin(attrs.evolve(node("a1"), kind=ServerKind.ADMIN))
    for method, verb in sorted(ROUTES):
        for name in ("nobody", "a1"):
            assert await operating.refused(method, verb, name) is Code.NOT_FOUND
            assert await operating.refused(method, verb, name, dry_run="1") is Code.NOT_FOUND
    assert operating.peers.asked == []


@pytest_twisted.ensureDeferred
async def test_offline_and_online(operating: Operating) -> None:
    """The answer says what the node is now, the record what changed; a running node stays running by online."""
    assert await operating.do("POST", "offline", "n1") == {"name": "n1", "offline": True, "status": "down"}
    assert operating.access.detail == "n1: running -> down"
    assert operating.world.catalogue.roster.running == ["n2", "n3"]
    assert await operating.do("POST", "online", "n1") == {"name": "n1", "offline": False, "status": "down"}
    assert await operating.do("POST", "online", "n2") == {"name": "n2", "offline": False, "status": "running"}
    assert operating.access.detail == "n2"


@pytest_twisted.ensureDeferred
async def test_repair_of_a_node_that_is_not_running(operating: Operating) -> None:
    """It reads all it has and fetches what is bad; the answer names what is lost. A running one is not disturbed."""
    assert await operating.refused("POST", "repair", "n1") is Code.CONFLICT
    await operating.world.hold({"n1": Status.FAILED, "n2": Status.DOWN})
    for name in ("n1", "n2"):
        found = await operating.do("POST", "repair", name)
        assert found == {"name": name, "checked": 7, "fetched": 2, "lost": [str(EntryId(b"f" * 16))]}
    assert operating.access.detail == "n2: 7 checked, 2 fetched, 1 lost"
    assert operating.peers.asked == [("n1", m.RepairSelf()), ("n2", m.RepairSelf())]


@pytest_twisted.ensureDeferred
async def test_repair_of_a_node_that_is_away(operating: Operating) -> None:
    """The administrator is told to start it."""
    await operating.world.hold({"n1": Status.DOWN})
    operating.peers.answer = PeerUnreachable("n1 is not connected")
    assert await operating.refused("POST", "repair", "n1") is Code.NOT_RUNNING


@pytest_twisted.ensureDeferred
async def test_draining(operating: Operating) -> None:
    """It says how many copies are to be kept elsewhere, and with dry_run=1 no more than that; it can be taken back."""
    await operating.world.put("alice/f")
    only = await operating.do("POST", "drain", "n1", dry_run="1")
    assert (only["copies"], only["only_copies"], only["dry_run"]) == (1, 0, True)
    assert not operating.world.catalogue.roster.servers["n1"].draining
    await operating.do("POST", "drain", "n1")
    assert operating.world.catalogue.roster.servers["n1"].draining
    assert await operating.refused("POST", "drain", "n2") is Code.CONFLICT
    await operating.do("DELETE", "drain", "n1")
    assert not operating.world.catalogue.roster.servers["n1"].draining

"""A catalogue whose database is gone, or is another one than before: what is refused, what is made anew, and what is listed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.admin.duties import Duty
from securifile.admin.followers import Followers
from securifile.admin.ledger import CatalogueGone, WentBack, WhenEmpty
from securifile.admin.reconciliation import Reconciling
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Sidecar
from securifile.model.errors import Code, DatabaseUnavailable, Refusal
from securifile.model.facts import Claim, Fact, File, Server
from securifile.model.ids import AttemptId, Position
from securifile.model.roles import Role
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages as m
from securifile.sql.facts import every_fact
from securifile.sql.sqlite import SqliteDatabase
from securifile.workers import InlineWorker
from tests.admin.catalogues import World
from tests.admin.test_followers import FakePeer

T = TypeVar("T")


@attrs.frozen
class Told:
    """Questions over a connection that tells which history it leads to."""

    sql: Any
    history: str

    async def query(self, *asked: Any) -> Any:
        return await self.sql.query(*asked)

    async def execute(self, *asked: Any) -> Any:
        return await self.sql.execute(*asked)

    def later(self, *asked: Any) -> None:
        self.sql.later(*asked)


class Line:
    """The way to a database: it says whose history it leads to, and things happen before a transaction of some name."""

    def __init__(self, engine: SqliteDatabase) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        self.history = "one"
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}

    def transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        return Deferred.fromCoroutine(self._transact(name, work))

    async def _transact(self, name: str, work: Callable[[Any], Awaitable[T]]) -> T:
        first = self.before.pop(name, None)
        if first is not None:
            await first()
        return await self.engine.transact(name, lambda sql: work(Told(sql, self.history)))

    def read(self, work: Callable[[Any], Awaitable[T]]) -> Deferred[T]:
        return self.engine.read(lambda sql: work(Told(sql, self.history)))


class Anew:
    """A catalogue that is to be made anew, in an empty database, from the nodes of a world that is lost."""

    def __init__(self, engine: SqliteDatabase | None = None) -> None:
        self.line = Line(engine or SqliteDatabase(None))
        self.world = World(self.line, seed=2)

    async def open(self) -> None:
        catalogue = self.world.catalogue
        await catalogue.open(cluster="test", settings=ClusterSettings(), system_identifier="other", when_empty=WhenEmpty.REBUILD)
        clock = Clock()
        duty = Duty(clock=clock, database=self.line, holder="admin1")
        await duty.look()
        self.reconciling = Reconciling(ledger=catalogue.ledger, duty=duty, worker=InlineWorker())
        self.followers = Followers(
            clock=clock, ledger=catalogue.ledger, roster=catalogue.roster, readdress=self._readdress, reconciling=self.reconciling
        )

    async def _readdress(self, *where: str) -> None:
        raise AssertionError("nobody is known yet")

    async def come(
        self, name: str, position: Position, facts: list[Fact], blobs: tuple[Sidecar, ...] = (), ahead: tuple[Fact, ...] = ()
    ) -> FakePeer:
        """A node follows, and hands in what it has otherwise than the snapshot it is sent: here all of it."""
        peer: Any = FakePeer(name)
        asked = m.Follow(position=position, url=f"https://{name}.example:9441", protocol_address=f"{name}.example:9451")
        assert (await self.followers.follow(peer, asked)).snapshot
        assert all(part.compare and part.blobs for part in peer.taken)
        later = attrs.evolve(position, revision=position.revision + 5)
        claims = (*(Claim(fact=fact, at=position) for fact in facts), *(Claim(fact=fact, at=later) for fact in ahead))
        await self.reconciling.take(name, m.HandIn(position=position, number=0, claims=claims, last=True, blobs=blobs))
        return peer  # type: ignore[no-any-return]

    async def facts(self) -> list[Fact]:
        """Everything there is."""
        found: list[Fact] = await self.world.catalogue.read(every_fact)
        return found


class Lost:
    """What there was before: people, files, rights, and where it ended."""

    def __init__(self) -> None:
        self.world = World(SqliteDatabase(None))

    async def happen(self) -> None:
        world = self.world
        await world.open()
        await world.make_folder("alice/shared")
        for path in ("alice/f", "alice/shared/kept", "alice/shared/revoked"):
            await world.put(path)
        self.early, self.then = await self.now()
        await world.grant("alice/shared/kept", "bob", Role.READER)
        await world.put("alice/f")
        await world.delete("alice/shared/revoked")
        self.late, self.end = await self.now()

    async def now(self) -> tuple[list[Fact], Position]:
        """Everything there is, and the position."""
        return await self.world.catalogue.read(every_fact), self.world.catalogue.ledger.position

    def blobs(self, node: str) -> tuple[Sidecar, ...]:
        """What is on a node's disk at the end."""
        files = [fact for fact in self.late if isinstance(fact, File)]
        return tuple(sidecar(file) for file in files if node in file.version.holders)


def sidecar(of: File, **more: Any) -> Sidecar:
    version = of.version
    made = Sidecar(
        attempt=version.attempt,
        file=of.id.value,
        version=version.number,
        size=version.size,
        digest=version.digest,
        algorithm=DigestAlgorithm.SHA256,
        committed_at=(1, 1),
    )
    return attrs.evolve(made, **more)


@pytest.fixture
def lost() -> Lost:
    made = Lost()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.happen()))
    return made


@pytest.fixture
def anew() -> Anew:
    made = Anew()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    return made


@pytest_twisted.ensureDeferred
async def test_an_empty_database_is_left_alone_when_a_catalogue_was_to_be_in_it() -> None:
    """Not even tables are made: it may be somebody else's."""
    engine = SqliteDatabase(None)
    catalogue = World(engine).catalogue
    with pytest.raises(CatalogueGone):
        await catalogue.open(cluster="test", settings=ClusterSettings(), system_identifier="one", when_empty=WhenEmpty.REFUSE)
    assert await engine.sql.query("SELECT name FROM sqlite_master") == []
    await catalogue.open(cluster="test", settings=ClusterSettings(), system_identifier="one")
    again = World(engine).catalogue
    await again.open(cluster="test", settings=ClusterSettings(), system_identifier="one", when_empty=WhenEmpty.REFUSE)
    assert again.ledger.reconciled


@pytest_twisted.ensureDeferred
async def test_it_is_made_anew_from_the_index_that_knows_most(lost: Lost, anew: Anew) -> None:
    """All that was there at the end is there, in a later epoch; nodes follow from a snapshot, and people may change things."""
    await anew.come("n1", lost.then, lost.early, lost.blobs("n1"))
    await anew.come("n2", lost.end, lost.late, lost.blobs("n2"))
    assert anew.world.catalogue.ledger.position.epoch > lost.end.epoch
    with pytest.raises(Refusal) as refused:
        await anew.world.catalogue.members.set_settings(ClusterSettings(replicas=0))
    assert refused.value.code is Code.CATALOGUE_UNAVAILABLE
    await anew.reconciling.round()
    state = await anew.reconciling.state()
    assert (state.reconciled, state.missing) == (False, ("n3",))
    assert (await anew.reconciling.plan()).counts["files"] == 2
    plan = await anew.reconciling.accept()
    assert plan.knows_most == "n2"
    assert sorted(map(repr, await anew.facts())) == sorted(map(repr, lost.late))
    assert anew.world.catalogue.ledger.reconciled
    assert {fact.name for fact in lost.late if isinstance(fact, Server)} == set(anew.world.catalogue.roster.servers)
    state = await anew.reconciling.state()
    assert [why for _, _, why in state.left] == [f"{name} has no password: give them a new one" for name in ("alice", "bob")]
    await anew.world.put("alice/f")


@pytest_twisted.ensureDeferred
async def test_nothing_is_made_of_nothing(anew: Anew) -> None:
    """Nor of indexes that are empty."""
    for _ in range(2):
        with pytest.raises(Refusal) as refused:
            await anew.reconciling.accept()
        assert refused.value.code is Code.CONFLICT
        await anew.come("n1", Position(0, 0), [])


@pytest_twisted.ensureDeferred
async def test_who_was_removed_is_not_believed(lost: Lost, anew: Anew) -> None:
    """Its certificate is good, and it may say that it knows most; an administrator has to say whom to believe."""
    members = [fact for fact in lost.late if fact != lost.world.catalogue.roster.servers["n3"]]
    await anew.come("n1", lost.end, members)
    await anew.come("n3", attrs.evolve(lost.end, revision=10_000), lost.late)
    assert (await anew.reconciling.plan()).strangers == {"n3": ("n1",)}
    with pytest.raises(Refusal) as refused:
        await anew.reconciling.accept()
    assert "n3" in refused.value.detail
    plan = await anew.reconciling.plan(trusted=["n3"])
    assert plan.knows_most == "n3"
    with pytest.raises(Refusal):
        await anew.reconciling.plan(without=["n9"])
    assert (await anew.reconciling.accept(without=["n3"])).knows_most == "n1"


@pytest_twisted.ensureDeferred
async def test_an_admin_server_that_dies_half_way_has_published_nothing(lost: Lost, anew: Anew) -> None:
    """What it wrote is not reconciled; the next one decides again, and comes to the same."""

    async def die() -> None:
        raise DatabaseUnavailable("the admin server was killed")

    await anew.come("n2", lost.end, lost.late, lost.blobs("n2"))
    anew.line.before["end the reconciliation"] = die
    with pytest.raises(DatabaseUnavailable):
        await anew.reconciling.accept()
    after = Anew(anew.line.engine)
    await after.open()
    assert after.world.catalogue.ledger.rebuilding
    with pytest.raises(Refusal):
        await after.world.put("alice/f")
    peer = FakePeer("n1")
    given: Any = peer
    await after.followers.follow(given, m.Follow(position=lost.then, url="https://n1.example:9441", protocol_address="n1.example:9451"))
    assert all(part.compare for part in peer.taken)
    await after.reconciling.accept()
    assert sorted(map(repr, await after.facts())) == sorted(map(repr, lost.late))


@pytest_twisted.ensureDeferred
async def test_of_two_admin_servers_one_reconciles(lost: Lost, anew: Anew) -> None:
    """People may have changed things since: the slower one must not write them over."""
    await anew.come("n2", lost.end, lost.late)
    other = Anew(anew.line.engine)
    await other.open()

    async def be_faster() -> None:
        await other.reconciling.accept()
        await other.world.put("alice/f")

    anew.line.before["reconcile"] = be_faster
    with pytest.raises(Refusal) as refused:
        await anew.reconciling.accept()
    assert refused.value.code is Code.CONFLICT
    entry = await other.world.entry("alice/f")
    assert entry.version.number == 3


@pytest_twisted.ensureDeferred
async def test_a_late_node_adds_to_the_list_what_nobody_else_knew(lost: Lost, anew: Anew) -> None:
    """What it has otherwise because it is older is not listed, and nothing of it is published."""
    await anew.come("n2", lost.end, lost.late)
    await anew.reconciling.accept()
    await anew.reconciling.dismiss()
    facts = await anew.facts()
    unknown = sidecar(file_of(lost), attempt=AttemptId(b"u" * 16), file=b"f" * 16)
    blobs = (unknown, attrs.evolve(unknown, attempt=AttemptId(b"v" * 16), committed_at=(1, 10_000)))
    await anew.come("n1", lost.then, lost.early, blobs, ahead=())
    (only,) = (await anew.reconciling.state()).left
    assert only[0] == "n1"
    assert "committed later" in only[2]
    file = file_of(lost)
    beyond = attrs.evolve(lost.end, revision=lost.end.revision + 1)
    await anew.come("n3", beyond, [attrs.evolve(file, version=attrs.evolve(file.version, number=9))])
    assert [node for node, _, _ in (await anew.reconciling.state()).left] == ["n3", "n1"]
    # Asked again, it says the same.
    await anew.come("n3", beyond, [attrs.evolve(file, version=attrs.evolve(file.version, number=9))])
    assert len((await anew.reconciling.state()).left) == 2
    assert await anew.facts() == facts


@pytest_twisted.ensureDeferred
async def test_an_old_node_shares_no_history_with_a_catalogue_that_was_made_anew(lost: Lost, anew: Anew) -> None:
    """Nor when the changes at its revision, by which others are compared, are not kept any more."""
    await anew.come("n2", lost.end, lost.late)
    await anew.reconciling.accept()
    await anew.world.catalogue.ledger.trim(0)
    await anew.come("n1", Position(1, 2), [])


def file_of(lost: Lost) -> File:
    """One of the files there were."""
    return next(fact for fact in lost.late if isinstance(fact, File))


@pytest_twisted.ensureDeferred
async def test_an_upload_whose_end_nobody_knows_is_kept_until_it_was_looked_at(lost: Lost, anew: Anew) -> None:
    """Its node asks how it ended, and would drop it if it was told that it was given up."""
    staged = sidecar(file_of(lost), attempt=AttemptId(b"s" * 16), file=b"f" * 16, committed_at=None)
    await anew.come("n2", lost.end, lost.late, (staged,))
    await anew.reconciling.accept()
    files = anew.world.catalogue.files
    assert (await files.outcome(staged.attempt, True)).ended is None
    await anew.reconciling.dismiss()
    assert (await files.outcome(staged.attempt, True)).ended == "abandoned"


@pytest_twisted.ensureDeferred
async def test_a_copy_that_is_not_on_the_disk_is_pending(lost: Lost, anew: Anew) -> None:
    """Its node fetches it again, as it does any copy that it should have."""
    await anew.come("n1", lost.end, lost.late, lost.blobs("n1"))
    await anew.come("n2", lost.end, lost.late, ())
    await anew.reconciling.accept()
    entry = await anew.world.entry("alice/f")
    assert {copy.node: copy.durable for copy in entry.version.copies} == {"n1": True, "n2": False}


@pytest_twisted.ensureDeferred
async def test_another_history_is_not_written_to_before_an_epoch_has_begun() -> None:
    """A connection tells whose history it leads to: a standby was promoted, or a backup put in place, under a running admin server."""
    line = Line(SqliteDatabase(None))
    world = World(line)
    await world.open()
    before = world.catalogue.ledger.position
    line.history = "two"
    for act in (world.put("alice/f"), world.catalogue.files.outcome(AttemptId(b"a" * 16), True)):
        with pytest.raises(WentBack):
            await act
    assert await line.engine.sql.query("SELECT 1 FROM attempts") == []
    await world.catalogue.ledger.catch_up()
    assert world.catalogue.ledger.position == attrs.evolve(before, epoch=before.epoch + 1)
    assert not world.catalogue.ledger.reconciled
    with pytest.raises(Refusal):
        await world.put("alice/f")


@pytest_twisted.ensureDeferred
async def test_while_it_is_not_known_how_far_another_database_is_nobody_is_trusted() -> None:
    """From the moment a connection has led to another history; if it turns out to be the same catalogue, things go on."""
    line = Line(SqliteDatabase(None))
    world = World(line)
    await world.open()
    ledger = world.catalogue.ledger
    ledger.doubt()
    await ledger.catch_up()
    assert ledger.reconciled
    line.history = "two"
    seen: list[bool] = []

    async def look() -> None:
        seen.append(ledger.reconciled)

    line.before["open the ledger"] = look
    ledger.doubt()
    assert seen == [False]
    assert not ledger.reconciled


@pytest_twisted.ensureDeferred
async def test_no_cluster_is_begun_in_a_database_that_was_emptied_under_a_running_server() -> None:
    """The rows are gone, or the whole database is another one: it is as if there were none."""
    line = Line(SqliteDatabase(None))
    world = World(line)
    await world.open()
    await line.engine.sql.execute("DELETE FROM cluster")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await world.catalogue.ledger.catch_up()
        with pytest.raises(DatabaseUnavailable):
            await world.put("alice/f")
        line.history = "two"
    assert await line.engine.sql.query("SELECT 1 FROM cluster") == []

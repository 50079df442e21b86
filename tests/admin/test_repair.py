"""Rounds of repair over a catalogue in memory: what comes first, how much at a time, and what other changes do to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from securifile.admin.failing import KEPT_S, FailingCopies
from securifile.admin.ledger import Decision
from securifile.admin.repair import REST_ROUNDS, AtOnce, Coming, Repair
from securifile.model.entries import Copy
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File
from securifile.model.repair import STUCK_DISK_S, STUCK_FAILURES
from securifile.model.servers import Status
from securifile.model.settings import ClusterSettings
from securifile.protocol import messages as m
from securifile.sql import directory
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import World

GRACE_S = 600.0
SETTINGS = ClusterSettings(replicas=1, write_copies=1, repair_after_s=GRACE_S)
ROOM = 1000
FEW = AtOnce(small=AtOnce().copies)
"""As many small ones as large ones."""


class Repairing:
    """Six running nodes with room, r = 1, and a planner."""

    def __init__(self) -> None:
        self.world = World(SqliteDatabase(None))
        self.room: dict[str, int] = {}
        self.verifying: list[str] = []
        self.failing = FailingCopies(wall=lambda: self.world.now, settings=lambda: self.world.catalogue.roster.settings)
        self.repair: Repair

    async def open(self) -> None:
        await self.world.open(SETTINGS)
        for name in ("n4", "n5", "n6"):
            await self.world.join(name)
        self.room = dict.fromkeys(self.world.catalogue.roster.nodes, ROOM)
        self.repair = self.planner(self.world.catalogue.ledger)

    def planner(self, ledger: Any, at_once: AtOnce = FEW, **more: int) -> Repair:
        """A planner on that ledger."""
        roster = self.world.catalogue.roster
        return Repair(
            ledger=ledger,
            roster=roster,
            wall=lambda: self.world.now,
            room=lambda: self.room,
            below=Random(1).randrange,
            stuck=self.failing.stuck,
            verifying=lambda: self.verifying,
            at_once=at_once,
            **more,
        )

    async def fails(self, node: str, *, own_disk: bool = True, since_s: float = STUCK_DISK_S) -> None:
        """A node tells that it cannot make any of its pending copies."""
        copies = tuple(
            m.FailingCopy(
                file=file.id,
                attempt=file.version.attempt,
                failures=STUCK_FAILURES,
                since_s=since_s,
                reason="no room",
                own_disk=own_disk,
            )
            for file in await self._pending_on(node)
        )
        self.failing.note(node, m.CopiesFailing(copies=copies))

    async def put(self, path: str, copies: str) -> None:
        """A new version with copies on these nodes: `n1 n2?`, the second one pending."""
        listed = tuple(
            Copy(node=text.removesuffix("?"), priority=priority, durable=not text.endswith("?"))
            for priority, text in enumerate(copies.split())
        )
        asked = await self.world.upload(path, copies=listed)
        await self.world.catalogue.files.commit(asked, listed[0].node)

    async def down(self, *names: str) -> None:
        """Nodes that have been down for longer than the grace time."""
        await self.world.hold(dict.fromkeys(names, Status.DOWN))
        self.world.now += GRACE_S + 1

    async def change(self, name: str, **more: Any) -> None:
        """A node is so from now on."""
        before = self.world.catalogue.roster.servers[name]
        if all(getattr(before, key) == value for key, value in more.items()):
            return
        changed = attrs.evolve(before, since=self.world.now, **more)

        async def decide(sql: Any, position: Any) -> Decision[None]:
            return Decision(facts=(changed,), answer=None)

        await self.world.catalogue.ledger.enter("change", decide)

    async def copies(self, path: str) -> str:
        """A file's copies, as `put` takes them."""
        return " ".join(f"{copy.node}{'' if copy.durable else '?'}" for copy in (await self.world.entry(path)).version.copies)

    async def pending(self) -> list[tuple[str, str]]:
        """(file name, node) of the copies that are to be made."""
        return [(file.name, node) for node in self.world.catalogue.roster.nodes for file in await self._pending_on(node)]

    async def _pending_on(self, node: str) -> list[File]:
        found: list[File] = await self.world.catalogue.read(lambda sql: directory.pending_on(sql, node))
        return found

    async def make_pending(self) -> None:
        """Let the running nodes make what they should."""
        for node in self.world.catalogue.roster.running:
            for file in await self._pending_on(node):
                await self.world.catalogue.files.copy_made(m.CopyMade(file=file.id, attempt=file.version.attempt), node)

    async def settle(self, rounds: int = 6) -> None:
        """Plan and make copies, in turn."""
        for _ in range(rounds):
            await self.repair.round()
            await self.make_pending()


@attrs.frozen
class Before:
    """A ledger in which something else is entered just before each repair."""

    ledger: Any
    first: Callable[[], Awaitable[Any]]

    @property
    def database(self) -> Any:
        return self.ledger.database

    def enter(self, name: str, decide: Any) -> Deferred[Any]:
        """See `Ledger`."""

        async def both() -> Any:
            await self.first()
            return await self.ledger.enter(name, decide)

        return Deferred.fromCoroutine(both())


@pytest.fixture
def repairing() -> Iterator[Repairing]:
    made = Repairing()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made


@pytest_twisted.ensureDeferred
async def test_what_is_as_it_should_be_is_left_alone(repairing: Repairing) -> None:
    """With all copies good, and with a node that is away only for a while, a round changes nothing at all."""
    await repairing.put("alice/a", "n1 n2")
    before = repairing.world.catalogue.ledger.position
    await repairing.repair.round()
    assert repairing.world.catalogue.ledger.position == before
    await repairing.world.hold({"n2": Status.DOWN})
    repairing.world.now = repairing.world.catalogue.roster.servers["n2"].since + GRACE_S - 1
    before = repairing.world.catalogue.ledger.position
    await repairing.repair.round()
    assert repairing.world.catalogue.ledger.position == before


@pytest_twisted.ensureDeferred
async def test_flapping_nodes_cause_no_copying(repairing: Repairing) -> None:
    """However often nodes go and return within the grace time, or stay away longer after a planned stop: the catalogue is not changed."""
    for number in range(5):
        await repairing.put(f"alice/{number}", f"n{number + 1} n{number + 2}")
    copies = [await repairing.copies(f"alice/{number}") for number in range(5)]
    for turn in range(20):
        flapping = [f"n{number}" for number in range(1, 7) if (turn + number) % 3]
        for name in repairing.world.catalogue.roster.nodes:
            await repairing.change(name, status=Status.DOWN if name in flapping else Status.RUNNING)
        # Away for two turns at a time.
        repairing.world.now += GRACE_S / 2 - 1
        before = repairing.world.catalogue.ledger.position
        await repairing.repair.round()
        assert repairing.world.catalogue.ledger.position == before
    for name in repairing.world.catalogue.roster.nodes:
        await repairing.change(name, status=Status.RUNNING)
    await repairing.change("n2", status=Status.DOWN, offline=True)
    repairing.world.now += SETTINGS.repair_after_offline_s - 1
    await repairing.repair.round()
    assert [await repairing.copies(f"alice/{number}") for number in range(5)] == copies
    repairing.world.now += 1
    await repairing.repair.round()
    assert await repairing.pending() != []


@pytest_twisted.ensureDeferred
async def test_lost_copies_are_made_anew(repairing: Repairing) -> None:
    """The node is lost: another one is to have the copy, and when it has, the lost one is forgotten; the next one is the origin."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.down("n1")
    await repairing.repair.round()
    ((_, node),) = await repairing.pending()
    assert await repairing.copies("alice/a") == f"n2 n1 {node}?"
    await repairing.settle()
    assert await repairing.copies("alice/a") == f"n2 {node}"


@pytest_twisted.ensureDeferred
async def test_what_a_node_has_that_is_being_verified_is_not_copied(repairing: Repairing) -> None:
    """However long that takes; when it has come to nothing, its copies are made anew."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.down("n2")
    repairing.verifying = ["n2"]
    await repairing.settle()
    assert await repairing.copies("alice/a") == "n1 n2"
    repairing.verifying = []
    await repairing.settle()
    assert "n2" not in await repairing.copies("alice/a")


@pytest_twisted.ensureDeferred
async def test_the_most_endangered_come_first_and_not_too_many_at_once(repairing: Repairing) -> None:
    """Files with one copy left are planned before those with two, and no more than a cluster can make at a time."""
    await repairing.world.catalogue.members.set_settings(attrs.evolve(SETTINGS, replicas=2))
    for number in range(FEW.copies):
        await repairing.put(f"alice/two-left-{number}", "n1 n2 n3")
    for number in range(10):
        await repairing.put(f"alice/one-left-{number}", "n1 n3 n4")
    await repairing.down("n3", "n4")
    await repairing.repair.round()
    planned = await repairing.pending()
    assert len(planned) == FEW.copies
    assert sum(name.startswith("one-left") for name, _ in planned) == 20
    await repairing.repair.round()
    assert len(await repairing.pending()) == FEW.copies
    await repairing.settle()
    assert await repairing.pending() == []
    for number in range(FEW.copies):
        assert len((await repairing.copies(f"alice/two-left-{number}")).split()) == 3


def test_small_copies_are_made_by_the_hundred_and_large_ones_a_few_at_a_time() -> None:
    """So many of any size, and more while all together are small."""
    few = AtOnce(copies=2, small=5, bytes=100)
    assert few.allow(Coming(2, 10**12))
    assert not few.allow(Coming(3, 101))
    assert few.allow(Coming(5, 100))
    assert not few.allow(Coming(6, 6))


@pytest_twisted.ensureDeferred
async def test_what_is_under_way_is_counted_in_bytes_too(repairing: Repairing) -> None:
    """Of many small files as many are planned in one round as have room beside each other, those under way included."""
    size = (await repairing.world.upload("alice/like-the-others")).size
    planner = repairing.planner(repairing.world.catalogue.ledger, AtOnce(copies=2, small=500, bytes=10 * size))
    for number in range(20):
        await repairing.put(f"alice/{number}", "n1 n2")
    await repairing.down("n2")
    await planner.round()
    assert len(await repairing.pending()) == 10
    await planner.round()
    assert len(await repairing.pending()) == 10
    await repairing.make_pending()
    await planner.round()
    assert len(await repairing.pending()) == 10


@pytest_twisted.ensureDeferred
async def test_many_files_are_gone_through_page_by_page(repairing: Repairing) -> None:
    """No question is about more than a page, and in the end every file has its copies; the nodes are gone through again and again."""
    planner = repairing.planner(repairing.world.catalogue.ledger, page=7, looked_at=3)
    names = [f"alice/{number}" for number in range(21)]
    for number, name in enumerate(names):
        await repairing.put(name, f"n{1 + number % 2} n3")
    await repairing.down("n1", "n2")
    await planner.round()
    # Three of what was gone through, and three of all files in turn.
    assert 0 < len(await repairing.pending()) <= 6
    for _ in range(4 * REST_ROUNDS):
        await repairing.make_pending()
        await planner.round()
    for name in names:
        copies = (await repairing.copies(name)).split()
        assert len(copies) == 2 and not {"n1", "n2"} & set(copies)


@pytest_twisted.ensureDeferred
async def test_copies_that_cannot_be_made_hold_up_no_others(repairing: Repairing) -> None:
    """More copies than are made at a time were to go to a node that is lost now: others take them over, and repair goes on."""
    for number in range(FEW.copies + 5):
        await repairing.put(f"alice/{number}", "n1 n2")
    await repairing.down("n2")
    repairing.room = {"n3": ROOM}
    await repairing.repair.round()
    assert {node for _, node in await repairing.pending()} == {"n3"}
    await repairing.down("n3")
    repairing.room = {"n4": ROOM}
    await repairing.settle()
    assert {await repairing.copies(f"alice/{number}") for number in range(FEW.copies + 5)} == {"n1 n4"}


@pytest_twisted.ensureDeferred
async def test_what_nobody_can_read_holds_up_no_others(repairing: Repairing) -> None:
    """Pending copies whose file has no copy left to be made from do not count among those that are being made."""
    for number in range(FEW.copies):
        await repairing.put(f"alice/{number}", "n1 n2?")
    await repairing.down("n1")
    await repairing.put("alice/other", "n3 n4")
    await repairing.down("n4")
    await repairing.repair.round()
    assert (await repairing.copies("alice/other")).startswith("n3 n4 ")


@pytest_twisted.ensureDeferred
async def test_what_a_running_node_cannot_make_another_one_makes(repairing: Repairing) -> None:
    """A full disk: once the node is stuck, its pending copies are given to a node with room, those of files with one copy first."""
    await repairing.world.catalogue.members.set_settings(attrs.evolve(SETTINGS, replicas=2))
    for number in range(FEW.copies):
        await repairing.put(f"alice/two-left-{number}", "n1 n2 n3?")
    for number in range(5):
        await repairing.put(f"alice/one-left-{number}", "n1 n3? n2?")
    repairing.room = {"n3": 0, "n4": ROOM}
    await repairing.fails("n3", since_s=STUCK_DISK_S - 1)
    await repairing.repair.round()
    assert {node for _, node in await repairing.pending()} == {"n3", "n2"}
    await repairing.fails("n3")
    await repairing.repair.round()
    moved = [name for name, node in await repairing.pending() if node == "n4"]
    # Five copies that n2 makes are under way, too.
    assert len(moved) == FEW.copies - 5
    assert sum(name.startswith("one-left") for name in moved) == 5
    for _ in range(3):
        await repairing.fails("n3")
        await repairing.settle(1)
    assert "n3" not in {node for _, node in await repairing.pending()}
    assert await repairing.copies("alice/two-left-0") == "n1 n2 n4"


@pytest_twisted.ensureDeferred
async def test_what_a_node_is_stuck_with_holds_up_no_others(repairing: Repairing) -> None:
    """A node with a full disk may be to make more copies than are made at a time: those of a lost node are planned all the same."""
    for number in range(FEW.copies + 10):
        await repairing.put(f"alice/{number}", "n1 n3?")
    await repairing.put("alice/lost", "n1 n2")
    await repairing.down("n2")
    repairing.room = {"n4": 0, "n5": 0}
    await repairing.fails("n3")
    repairing.room = {"n4": ROOM}
    await repairing.repair.round()
    assert (await repairing.copies("alice/lost")).endswith("n4?")


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_not_stuck_any_more_keeps_its_copies(repairing: Repairing) -> None:
    """What it does not repeat is over, an older version counts for nothing, and content that cannot be had is waited for."""
    await repairing.put("alice/a", "n1 n3?")
    await repairing.fails("n3")
    repairing.world.now += KEPT_S
    await repairing.repair.round()
    assert await repairing.copies("alice/a") == "n1 n3?"
    await repairing.fails("n3", own_disk=False, since_s=GRACE_S - 1)
    await repairing.repair.round()
    assert await repairing.copies("alice/a") == "n1 n3?"
    await repairing.fails("n3")
    await repairing.put("alice/a", "n1 n3?")
    await repairing.repair.round()
    assert await repairing.copies("alice/a") == "n1 n3?"
    await repairing.fails("n3", own_disk=False, since_s=GRACE_S)
    await repairing.repair.round()
    assert "n3" not in await repairing.copies("alice/a")


@pytest_twisted.ensureDeferred
async def test_an_upload_that_came_between_is_not_undone(repairing: Repairing) -> None:
    """Between planning and committing, a new version is uploaded to other nodes: its copies stay as they are."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.down("n2")
    between = repairing.planner(Before(repairing.world.catalogue.ledger, lambda: repairing.put("alice/a", "n5 n6")))
    await between.round()
    assert (await repairing.world.entry("alice/a")).version.number == 2
    assert await repairing.copies("alice/a") == "n5 n6"


@pytest_twisted.ensureDeferred
async def test_a_file_that_was_deleted_meanwhile_stays_deleted(repairing: Repairing) -> None:
    """What is gone when the repair is committed does not come back."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.down("n2")
    await repairing.planner(Before(repairing.world.catalogue.ledger, lambda: repairing.world.delete("alice/a"))).round()
    assert await repairing.world.entry("alice/a") is None


@pytest_twisted.ensureDeferred
async def test_the_copies_of_a_removed_node_are_made_anew_at_once(repairing: Repairing) -> None:
    """A node that is no member any more is not waited for."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.world.catalogue.members.remove("n2", force=True)
    del repairing.room["n2"]
    await repairing.settle()
    assert "n2" not in await repairing.copies("alice/a") and len((await repairing.copies("alice/a")).split()) == 2


@pytest_twisted.ensureDeferred
async def test_a_drained_node_is_emptied(repairing: Repairing) -> None:
    """Its copies are made elsewhere, then dropped; it goes on serving, and is not asked to take others."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.world.catalogue.members.drain("n1", True)
    await repairing.repair.round()
    assert (await repairing.copies("alice/a")).startswith("n2 n1 ")
    await repairing.settle()
    assert await repairing.world.catalogue.members.copies_on("n1") == (0, 0)


@pytest_twisted.ensureDeferred
async def test_another_r_is_moved_towards(repairing: Repairing) -> None:
    """A higher r makes copies of what is there, a lower one drops the last by priority."""
    for path in ("alice/a", "alice/b"):
        await repairing.put(path, "n1 n2")
    for replicas in (3, 0):
        await repairing.world.catalogue.members.set_settings(attrs.evolve(SETTINGS, replicas=replicas))
        await repairing.settle()
        for path in ("alice/a", "alice/b"):
            copies = (await repairing.copies(path)).split()
            assert len(copies) == replicas + 1 and copies[0] == "n1"


@pytest_twisted.ensureDeferred
async def test_two_planners_do_it_once(repairing: Repairing) -> None:
    """A second admin server that planned the same finds it done, and adds nothing."""
    await repairing.put("alice/a", "n1 n2")
    await repairing.down("n2")
    await repairing.planner(Before(repairing.world.catalogue.ledger, repairing.repair.round)).round()
    assert len(await repairing.pending()) == 1


@pytest_twisted.ensureDeferred
async def test_removing_the_last_good_copy_is_refused(repairing: Repairing) -> None:
    """Only copies on other running nodes count: what a lost or removed node once had saves nothing."""
    members = repairing.world.catalogue.members
    await repairing.put("alice/a", "n1 n2")
    await repairing.world.hold({"n2": Status.DOWN})
    with pytest.raises(Refusal) as refused:
        await members.remove("n1", force=True)
    assert refused.value.code is Code.CONFLICT and refused.value.evidence == {"files": 1}
    await repairing.world.hold({"n2": Status.RUNNING})
    await members.remove("n1", only_look=True, force=True)
    assert "n1" in repairing.world.catalogue.roster.servers
    await members.remove("n1", force=True)
    with pytest.raises(Refusal):
        await members.remove("n2", only_look=True, force=True)

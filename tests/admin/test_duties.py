"""One admin server of several has the duty, whatever the others think and however long it sleeps."""

from __future__ import annotations

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.admin.duties import DEAF_S, HELD_S, LEASE_S, TURN_S, Duty
from securifile.sql.sqlite import SqliteDatabase
from tests.admin.catalogues import World


class Several:
    """Admin servers on one database, each with a clock of its own."""

    def __init__(self, *names: str) -> None:
        self.database = SqliteDatabase(None)
        self.clocks = {name: Clock() for name in names}
        self.duties = {name: self.begun(name) for name in names}

    async def open(self) -> None:
        await World(self.database).open()

    def begun(self, name: str) -> Duty:
        """As an admin server begins."""
        return Duty(clock=self.clocks[name], database=self.database, holder=name)

    async def pass_(self, seconds: float, *looking: str, deaf: tuple[str, ...] = ()) -> None:
        """Time passes everywhere; these look each second."""
        for _ in range(round(seconds / TURN_S)):
            for clock in self.clocks.values():
                clock.advance(TURN_S)
            for name in looking:
                await self.duties[name].look(name not in deaf)

    @property
    def acting(self) -> list[str]:
        """Who thinks that it may act."""
        return [name for name, duty in self.duties.items() if duty.is_ours]

    async def still(self, name: str) -> bool:
        """Whether an act of this server would count."""
        return await self.database.transact("act", self.duties[name].still_ours)


@pytest.fixture
def several() -> Several:
    made = Several("a", "b")
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    return made


@pytest_twisted.ensureDeferred
async def test_the_first_has_it_and_keeps_it(several: Several) -> None:
    """Nobody had it, so it is taken at once; nobody takes it from who is there."""
    assert several.acting == []
    await several.pass_(10, "a", "b")
    assert several.acting == ["a"]
    assert (several.duties["b"].doer, await several.still("a"), await several.still("b")) == ("a", True, False)


@pytest_twisted.ensureDeferred
async def test_it_is_taken_over_from_who_is_gone_and_never_held_by_two(several: Several) -> None:
    """The holder stops by its own clock well before another one may think that it is gone."""
    await several.pass_(3, "a", "b")
    seen = []
    for _ in range(round((LEASE_S + 2) / TURN_S)):
        await several.pass_(TURN_S, "b")
        seen.append(tuple(several.acting))
    assert set(seen) <= {("a",), (), ("b",)}
    assert seen[-1] == ("b",)
    assert HELD_S < LEASE_S


@pytest_twisted.ensureDeferred
async def test_who_was_paused_does_nothing_when_it_wakes(several: Several) -> None:
    """Its clock stood still, so it thinks that it has the duty; its act asks within the transaction, and is nothing."""
    await several.pass_(2, "a", "b")
    several.clocks["a"] = Clock()
    await several.pass_(LEASE_S + 2, "b")
    assert several.acting == ["a", "b"]
    assert not await several.still("a")
    assert await several.still("b")
    await several.duties["a"].look()
    assert several.acting == ["b"]


@pytest_twisted.ensureDeferred
async def test_who_was_started_again_has_to_wait_for_nobody(several: Several) -> None:
    """The row has its own name in it."""
    await several.pass_(2, "a", "b")
    several.duties["a"] = several.begun("a")
    assert several.acting == []
    await several.duties["a"].look()
    assert several.acting == ["a"]


@pytest_twisted.ensureDeferred
async def test_a_planned_stop_leaves_it_at_once(several: Several) -> None:
    """Of who does not have it, too, which changes nothing."""
    await several.pass_(2, "a", "b")
    await several.duties["b"].leave()
    assert await several.still("a")
    await several.duties["a"].leave()
    assert several.acting == []
    await several.pass_(TURN_S, "b")
    assert several.acting == ["b"]


@pytest_twisted.ensureDeferred
async def test_who_hears_no_node_leaves_it_to_another_for_a_while(several: Several) -> None:
    """It takes it only when nobody else has for long: whom it would judge, another one may hear well."""
    await several.pass_(LEASE_S, "a", "b", deaf=("a",))
    assert several.acting == ["b"]
    await several.pass_(LEASE_S + DEAF_S - 1, "a", deaf=("a",))
    assert several.acting == []
    await several.pass_(4, "a", deaf=("a",))
    assert several.acting == ["a"]

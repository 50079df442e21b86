"""What an administrator does about an epoch over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from securifile.model.facts import Claim, File
from securifile.model.ids import Position
from securifile.protocol import messages as m
from tests.admin.asked_by_http import AskedByHttp


@pytest.fixture
def asked() -> Iterator[AskedByHttp]:
    made = AskedByHttp()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


async def go_back(asked: AskedByHttp) -> File:
    """A node turns out to know a version that the catalogue lost; what it hands in."""
    await asked.world.put("alice/f")
    file = await asked.world.entry("alice/f")
    later = attrs.evolve(file, version=attrs.evolve(file.version, number=2))
    position = asked.world.catalogue.ledger.position
    beyond = Position(position.epoch, position.revision + 3)
    await asked.world.catalogue.ledger.begin_epoch(beyond)
    handed = m.HandIn(position=beyond, number=0, claims=(Claim(fact=later, at=beyond),), last=True)
    await asked.admin.reconciling.take("n1", handed)
    return later


@pytest.mark.parametrize("line", ["GET /api/v1/epoch", "POST /api/v1/epoch/accept", "POST /api/v1/epoch/dismiss"])
def test_only_administrators_may(asked: AskedByHttp, line: str) -> None:
    """Others are told so."""
    assert asked.ask(line, by="alice").status == 403


@pytest_twisted.ensureDeferred
async def test_accepting_first_dry_then_in_earnest(asked: AskedByHttp) -> None:
    """Missing nodes are named; a dry run says what would be written and changes nothing; the second time there is nothing to accept."""
    later = await go_back(asked)
    assert "admin epoch" in asked.told("GET /api/v1/servers")["warnings"][0]
    state = asked.told("GET /api/v1/epoch")
    assert (state["reconciled"], state["missing"], list(state["handed_in"])) == (False, ["n2", "n3"], ["n1"])
    dry = asked.told("POST /api/v1/epoch/accept?dry_run=1")
    assert (dry["dry_run"], dry["reconciled"], dry["written"]["files"]) == (True, False, 1)
    assert asked.ask("POST /api/v1/epoch/accept?without=n2").status == 400
    done = asked.told("POST /api/v1/epoch/accept")
    assert (done["under_way"], done["reconciled"], done["missing"], done["written"]["files"]) == (False, True, [], 1)
    assert await asked.world.entry("alice/f") == later
    again = asked.ask("POST /api/v1/epoch/accept")
    assert (again.status, again.code) == (409, "conflict")


@pytest_twisted.ensureDeferred
async def test_what_is_left_is_dismissed(asked: AskedByHttp) -> None:
    """It says how much that was."""
    later = await go_back(asked)
    assert asked.ask("POST /api/v1/epoch/accept?without=n1").status == 200
    await asked.admin.reconciling.take(
        "n3", m.HandIn(position=Position(1, 99), number=0, claims=(Claim(fact=later, at=Position(1, 99)),), last=True)
    )
    state = asked.told("GET /api/v1/epoch")
    assert [one["node"] for one in state["left"]] == ["n3"]
    dismissed = asked.told("POST /api/v1/epoch/dismiss")
    assert dismissed == {"dismissed": 1}
    assert asked.told("GET /api/v1/epoch")["left"] == []

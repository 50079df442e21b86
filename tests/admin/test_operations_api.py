"""What an administrator does to a node over HTTP: offline, online, repair, drain, remove."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from securifile.admin.lasting import ANSWER_S
from securifile.admin.watch import ADMIN_SILENT_S
from securifile.model.errors import PeerUnreachable
from securifile.model.servers import ServerKind, Status
from securifile.protocol import messages as m
from tests.admin.asked_by_http import AskedByHttp
from tests.admin.catalogues import node


@pytest.fixture
def asked() -> Iterator[AskedByHttp]:
    made = AskedByHttp()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


@pytest.mark.parametrize(
    "line",
    [
        "POST /api/v1/servers/n1/offline",
        "POST /api/v1/servers/n1/online",
        "POST /api/v1/servers/n1/repair",
        "POST /api/v1/servers/n1/drain",
        "POST /api/v1/servers/n1/drain?dry_run=1",
        "DELETE /api/v1/servers/n1/drain",
        "DELETE /api/v1/servers/n1",
        "GET /api/v1/servers/n1/explain",
    ],
)
def test_only_administrators(asked: AskedByHttp, line: str) -> None:
    """Nobody else may, and nothing changes; a node that there is not is not found."""
    before = asked.world.catalogue.ledger.position
    assert (asked.ask(line, by="bob").status, asked.ask(line, by="bob").code) == (403, "forbidden")
    assert asked.world.catalogue.ledger.position == before
    assert asked.ask(line.replace("/n1", "/n9")).status == 404
    assert asked.ask(line.replace("/n1", "/admin1")).status == 404


def test_offline_and_online(asked: AskedByHttp) -> None:
    """Offline: down at once, and who did it is written down. Online: down still, until it has been verified. Twice is as once."""
    for _ in range(2):
        assert asked.told("POST /api/v1/servers/n1/offline") == {"name": "n1", "offline": True, "status": "down"}
    assert not asked.world.catalogue.roster.is_running("n1")
    record = next(record for record in asked.audit.records if record.event == "offline")
    assert (record.person, record.status, record.detail) == ("@operator", 200, "n1: running -> down")
    assert asked.told("POST /api/v1/servers/n1/online") == {"name": "n1", "offline": False, "status": "down"}
    # A node that runs already is left alone.
    assert asked.told("POST /api/v1/servers/n2/online") == {"name": "n2", "offline": False, "status": "running"}


def test_repair(asked: AskedByHttp) -> None:
    """A node that serves is not asked; one that does not tells what it did; one that cannot be reached is named."""
    refused = asked.ask("POST /api/v1/servers/n1/repair")
    assert (refused.status, refused.code) == (409, "conflict")
    asked.told("POST /api/v1/servers/n1/offline")
    lost = asked.world.id()
    asked.nodes["n1"].repaired = m.Repaired(checked=7, fetched=2, lost=(lost,))
    assert asked.told("POST /api/v1/servers/n1/repair") == {
        "name": "n1",
        "under_way": False,
        "checked": 7,
        "fetched": 2,
        "lost": [str(lost)],
    }
    asked.nodes["n1"].repaired = PeerUnreachable("it hung up")
    gone = asked.ask("POST /api/v1/servers/n1/repair")
    assert (gone.status, gone.code) == (503, "not-running")


def test_a_long_repair_is_waited_for_in_turns(asked: AskedByHttp) -> None:
    """One that takes longer than a request may is told to be under way; asking again waits for the same one, and gets what came of it."""
    asked.told("POST /api/v1/servers/n1/offline")
    repaired: Deferred[m.Repaired] = Deferred()
    asked.nodes["n1"].repaired = repaired
    for _ in range(2):
        waiting = asked.begin("POST /api/v1/servers/n1/repair")
        asked.clock.advance(ANSWER_S)
        assert (waiting.answer().status, json.loads(waiting.answer().content)) == (202, {"name": "n1", "under_way": True})
    # It ends while nobody waits.
    repaired.callback(m.Repaired(checked=7, fetched=2, lost=()))
    assert asked.told("POST /api/v1/servers/n1/repair")["checked"] == 7
    assert sum(isinstance(message, m.RepairSelf) for message in asked.nodes["n1"].asked) == 1
    # What came of it is told once, and not for ever: then the same request means another repair.
    again: Deferred[m.Repaired] = Deferred()
    asked.nodes["n1"].repaired = again
    waiting = asked.begin("POST /api/v1/servers/n1/repair")
    again.callback(m.Repaired(checked=8, fetched=0, lost=()))
    assert json.loads(waiting.answer().content)["checked"] == 8


@pytest_twisted.ensureDeferred
async def test_drain(asked: AskedByHttp) -> None:
    """A dry run tells what there is to move, changes nothing, and refuses what would be refused; undrain takes it back."""
    await asked.put("alice/a", "n1 n2")
    await asked.put("alice/b", "n1")
    before = asked.world.catalogue.ledger.position
    expected = {"name": "n1", "draining": True, "dry_run": True, "copies": 2, "only_copies": 1}
    assert asked.told("POST /api/v1/servers/n1/drain?dry_run=1") == expected
    assert asked.world.catalogue.ledger.position == before
    assert asked.told("POST /api/v1/servers/n1/drain") == {**expected, "dry_run": False}
    assert asked.world.catalogue.roster.servers["n1"].draining
    for query in ("?dry_run=1", ""):
        refused = asked.ask(f"POST /api/v1/servers/n2/drain{query}")
        assert (refused.status, json.loads(refused.content)["staying"]) == (409, 1)
    assert asked.told("DELETE /api/v1/servers/n1/drain")["draining"] is False
    assert not asked.world.catalogue.roster.servers["n1"].draining


@pytest_twisted.ensureDeferred
async def test_remove(asked: AskedByHttp) -> None:
    """Refused, by a dry run too, while a file would have no copy on a running node; a dry run that is not refused changes nothing."""
    await asked.put("alice/a", "n1 n2")
    await asked.put("alice/b", "n1")
    for query in ("?dry_run=1", ""):
        refused = asked.ask(f"DELETE /api/v1/servers/n1{query}")
        assert (refused.status, json.loads(refused.content)["files"]) == (409, 1)
    await asked.world.delete("alice/b")
    expected = {"name": "n1", "dry_run": True, "copies": 1, "only_copies": 0}
    # As it runs, it is to be drained first, unless somebody insists.
    assert asked.ask("DELETE /api/v1/servers/n1?dry_run=1").status == 409
    assert asked.told("DELETE /api/v1/servers/n1?dry_run=1&force=1") == expected
    assert "n1" in asked.world.catalogue.roster.servers
    assert asked.ask("DELETE /api/v1/servers/n1").status == 409
    assert asked.ask("DELETE /api/v1/servers/n1?force=1").status == 204
    assert "n1" not in asked.world.catalogue.roster.servers


@pytest_twisted.ensureDeferred
async def test_a_copy_on_a_node_that_is_down_does_not_count(asked: AskedByHttp) -> None:
    """The other holder may never return: the one that runs stays."""
    await asked.put("alice/a", "n1 n2")
    await asked.world.hold({"n2": Status.DOWN})
    assert asked.ask("DELETE /api/v1/servers/n1").status == 409


@pytest_twisted.ensureDeferred
async def test_an_admin_server_that_stopped_is_shown_as_down(asked: AskedByHttp) -> None:
    """Nobody judges admin servers; when one has written down nothing of itself for some time, the others say so."""
    observations = asked.world.catalogue.observations
    await asked.world.catalogue.members.put_admin(
        attrs.evolve(node("admin2"), kind=ServerKind.ADMIN, url="https://admin2", status=Status.RUNNING)
    )

    def shown() -> dict[str, Any]:
        found: dict[str, Any] = asked.told("GET /api/v1/servers/admin2")
        return found

    await observations.keep_own_heartbeat("admin2", asked.world.now, asked.world.catalogue.ledger.position)
    await asked.admin.watch.keep()
    assert (shown()["status"], shown()["used_bytes"]) == ("running", None)
    asked.clock.advance(ADMIN_SILENT_S)
    assert (shown()["status"], shown()["heartbeat_age_s"]) == ("down", ADMIN_SILENT_S)
    await observations.keep_own_heartbeat("admin2", asked.world.now + 1, asked.world.catalogue.ledger.position)
    await asked.admin.watch.keep()
    assert shown()["status"] == "running"


@pytest_twisted.ensureDeferred
async def test_after_a_start_changes_wait_for_one_heartbeat_of_most_nodes() -> None:
    """Until then a change is refused with the reason, and the status says so; with the heartbeat that makes them most, it goes on."""
    asked = AskedByHttp()
    await asked.open(beating=("n1",))
    try:
        line = "PUT /api/v1/files/alice/new/"
        refused = asked.ask(line, by="alice")
        assert (refused.status, refused.code) == (503, "catalogue-unavailable")
        assert "more than half of the nodes" in refused.content.decode() and "(n1 so far)" in refused.content.decode()
        (warning,) = asked.told("GET /api/v1/servers")["warnings"]
        assert warning.startswith("Nobody can change anything yet") and "(n1 so far)" in warning
        await asked.nodes["n2"].beat()
        assert asked.ask(line, by="alice").status == 201
        assert asked.told("GET /api/v1/servers")["warnings"] == []
    finally:
        await asked.close()


@pytest_twisted.ensureDeferred
async def test_paths_are_found_by_an_admin_server_too(asked: AskedByHttp) -> None:
    """What a node remembers between questions is asked of the catalogue here, in one look at it: files, folders, and what is not there."""
    await asked.put("alice/a", "n1 n2")
    found = asked.ask("GET /api/v1/details/alice/a", by="alice")
    assert (found.status, json.loads(found.content)["role"]) == (200, "owner")
    assert asked.ask("GET /api/v1/details/alice/a", by="bob").status == 404
    assert asked.ask("GET /api/v1/details/alice/b", by="alice").status == 404
    assert asked.ask("GET /api/v1/details/alice/a/below", by="alice").status == 404
    assert asked.ask("GET /api/v1/details/alice/", by="alice").status == 200

"""Explanations over HTTP: what they are made of, and who may ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from securifile.audit.keeping import ReceivedRecord
from securifile.model.records import AuditRecord
from securifile.model.roles import Role
from securifile.model.servers import Status
from securifile.protocol import messages as m
from tests.admin.asked_by_http import AskedByHttp


@pytest.fixture
def asked() -> Iterator[AskedByHttp]:
    made = AskedByHttp()
    pytest_twisted.blockon(Deferred.fromCoroutine(made.open()))
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.close()))


def received(*records: AuditRecord) -> list[ReceivedRecord]:
    """Records as they reach the catalogue."""
    return [ReceivedRecord(server=record.server, boot="b", number=number, record=record, line=b"") for number, record in enumerate(records)]


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_as_it_should_be(asked: AskedByHttp) -> None:
    """Every copy with its worth and what each observer thinks; who would serve it; when it was verified; that nothing is to be done."""
    await asked.put("alice/a b", "n1 n2")
    file = await asked.world.entry("alice/a b")
    told = m.CopiesChecked(copies=(m.CheckedCopy(attempt=file.version.attempt, at=asked.world.now),), oldest_at=None, quarantined=0)
    await asked.world.catalogue.checks.note(told, "n2")
    found = asked.told("GET /api/v1/explain/alice/a%20b", by="alice")
    assert (found["path"], found["version"], found["wanted"], found["serving"]) == ("alice/a b", 1, 2, ["n1", "n2"])
    assert found["next"] == ["nothing: 2 of 2 copies are good"]
    assert (found["lock_known"], found["lock"]) == (True, None)
    first, second = found["copies"]
    assert (first["server"], first["priority"], first["worth"], first["why"]) == ("n1", 0, "good", "n1 is running")
    assert (first["verified_at"], second["verified_at"] is not None) == (None, True)
    assert [one["status"] for one in first["observers"] if one["observer"] == "admin1"] == ["running"]


@pytest_twisted.ensureDeferred
async def test_a_file_in_trouble(asked: AskedByHttp) -> None:
    """The origin is gone: what the others think of it, who serves instead, who is modifying it, and when it is made up for."""
    await asked.put("alice/a", "n1 n2")
    asked.nodes["n2"].lease = m.LeaseAnswer(granted=False, holder="bob", node="n2", expires_in_s=4.5)
    asked.vanish("n1")
    await asked.nodes["n2"].beat(n1=Status.DOWN)
    await asked.world.hold({"n1": Status.DOWN})
    found = asked.told("GET /api/v1/explain/alice/a", by="alice")
    assert found["serving"] == ["n2"]
    assert found["lock"] == {"person": "bob", "node": "n2", "expires_in_s": 4.5}
    first = found["copies"][0]
    assert (first["status"], first["durable"]) == ("down", True)
    assert {one["observer"]: one["status"] for one in first["observers"]} == {"admin1": "down", "n2": "down"}
    assert any("n1" in sentence for sentence in found["next"])


@pytest_twisted.ensureDeferred
async def test_a_copy_that_cannot_be_made(asked: AskedByHttp) -> None:
    """What a running node told of it is said, with what is done about it."""
    await asked.put("alice/a", "n1 n2?")
    file = await asked.world.entry("alice/a")
    failing = m.FailingCopy(file=file.id, attempt=file.version.attempt, failures=2, since_s=5.0, reason="disk-full: no room", own_disk=True)
    node: Any = asked.nodes["n2"]
    await asked.admin.nodes.handlers[m.CopiesFailing](node, m.CopiesFailing(copies=(failing,)))
    (sentence,) = asked.told("GET /api/v1/explain/alice/a", by="alice")["next"]
    assert sentence.startswith("n2 cannot make its copy: disk-full: no room (tried 2 times in 5 s)")


@pytest_twisted.ensureDeferred
async def test_nobody_left_to_ask_for_the_lock(asked: AskedByHttp) -> None:
    """That it is not known who holds a lock is told from that nobody does."""
    await asked.put("alice/a", "n1")
    await asked.world.hold({"n1": Status.DOWN})
    found = asked.told("GET /api/v1/explain/alice/a", by="alice")
    assert (found["lock_known"], found["lock"], found["serving"]) == (False, None, [])
    assert found["next"][0].startswith("no copy can be read now")


@pytest_twisted.ensureDeferred
async def test_who_may_ask_about_a_file(asked: AskedByHttp) -> None:
    """Whoever may read it, and nobody else: to the others it is not there, administrator or not. Folders are not explained."""
    await asked.put("alice/a", "n1 n2")
    assert asked.ask("GET /api/v1/explain/alice/a", by="bob").status == 404
    assert asked.ask("GET /api/v1/explain/alice/a").status == 404
    await asked.world.grant("alice/a", "bob", Role.READER)
    assert asked.ask("GET /api/v1/explain/alice/a", by="bob").status == 200
    assert asked.ask("GET /api/v1/explain/alice/none", by="alice").status == 404
    assert asked.ask("GET /api/v1/explain/alice/", by="alice").code == "is-a-folder"


@pytest_twisted.ensureDeferred
async def test_a_node(asked: AskedByHttp) -> None:
    """Its status and why, what is on it, and what was written down about it, the files in that by their present path."""
    await asked.put("alice/a", "n1 n2")
    await asked.put("alice/b", "n1")
    file = await asked.world.entry("alice/a")
    now = asked.world.now
    records = [
        AuditRecord(at=now - 3, server="admin1", event="verification", peer="n1", detail="by n2"),
        AuditRecord(at=now - 2, server="admin1", event="bad-copy", peer="n1", entry=str(file.id), detail="corrupt: by n2"),
        AuditRecord(at=now - 1, server="admin1", event="status", peer="n1", detail="down -> failed: n2 found 1 of 2 files bad"),
        AuditRecord(at=now - 1, server="admin1", event="status", peer="n2", detail="down -> running"),
        AuditRecord(at=now - 1, server="admin1", event="read", peer="n1", person="alice"),
    ]
    await asked.world.catalogue.store_audit(received(*records))
    await asked.world.hold({"n1": Status.FAILED})
    found = asked.told("GET /api/v1/servers/n1/explain")
    assert (found["status"], found["why"]) == ("failed", "its verification failed: n2 found 1 of 2 files bad")
    assert [one["event"] for one in found["trail"]] == ["verification", "bad-copy", "status"]
    assert found["trail"][1]["path"] == "alice/a"
    assert (found["copies"], found["only_copies"], found["answers"], found["verifying"]) == (2, 1, True, False)
    assert any("node repair n1" in sentence for sentence in found["next"])


@pytest_twisted.ensureDeferred
async def test_who_took_a_node_offline(asked: AskedByHttp) -> None:
    """The record of the request is found though it is one of an access, and not by the node's name alone."""
    asked.told("POST /api/v1/servers/n1/offline")
    (record,) = [record for record in asked.audit.records if record.event == "offline"]
    other = AuditRecord(at=record.at, server="admin1", event="offline", person="eve", detail="n12: running -> down", status=200)
    await asked.world.catalogue.store_audit(received(record, other))
    found = asked.told("GET /api/v1/servers/n1/explain")
    assert found["why"] == "it was taken offline by @operator"
    assert found["next"] == ["it stays down until it is put back: securifile node online n1"]

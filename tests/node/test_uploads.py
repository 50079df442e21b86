"""The write path of one node, with everything around it replaced."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from securifile.http.authentication import Caller
from securifile.http.exchange import Access
from securifile.http.targets import Target
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Copy, Version
from securifile.model.facts import Fact, File, Person
from securifile.model.ids import AttemptId, EntryId, Position
from securifile.model.roster import Roster
from securifile.node.memory_blobs import MemoryBlobs
from securifile.node.uploads import Uploads
from securifile.protocol import messages as m

ALICE = Person(
    username="alice",
    email="alice@example.org",
    administrator=False,
    valid_from=0.0,
    valid_until=None,
    disabled=False,
    quota_bytes=None,
    credentials=1,
)
FILE = File(
    id=EntryId(b"f" * 16),
    owner="alice",
    parent=EntryId(b"r" * 16),
    name="x",
    created_at=0.0,
    version=Version(
        number=1,
        attempt=AttemptId(b"a" * 16),
        size=1,
        digest=b"d" * 32,
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="alice",
        copies=(Copy(node="n1", priority=0, durable=True),),
    ),
)


@attrs.define
class Spreads:
    """An `Acting` that knows an answer given before, and remembers what was spread."""

    outcome: m.Outcome
    spread_facts: list[tuple[Position, tuple[Fact, ...]]] = attrs.Factory(list)

    async def ask_admin(self, message: Any) -> m.Outcome:
        return self.outcome

    async def spread_version(self, committed: m.Committed, *, here: bool) -> None:
        assert not here
        self.spread_facts.append((committed.position, committed.facts))


def uploads(acting: Any, **others: Any) -> Uploads:
    given: dict[str, Any] = {
        "clock": Clock(),
        "name": "n1",
        "cluster": SimpleNamespace(roster=Roster()),
        "acting": acting,
        "lookup": None,
        "blobs": MemoryBlobs(),
        "pool": None,
        "redirector": None,
        "authenticator": None,
        "transfers": None,
        "random": bytes,
        "below": lambda limit: 0,
    }
    return Uploads(**{**given, **others})


def put_request(**headers: str) -> Any:
    """The head of a `PUT` as the route sees it."""
    header: Callable[[str], str | None] = lambda name: headers.get(name.replace("-", "_"))  # noqa: E731
    return SimpleNamespace(content_length=1, has_body=True, header=header, query=lambda name: None)


def now(waited: Any) -> Any:
    """The result of what does not wait."""
    results: list[Any] = []
    Deferred.fromCoroutine(waited).addBoth(results.append)
    if not results:
        pytest.fail("it waits")
    return results[0]


def test_an_answer_from_memory_is_spread_before_it_is_given_again() -> None:
    """The first answer to an Idempotency-Key may have been lost before every node knew of the version: the second one waits for that."""
    committed = m.Committed(position=Position(1, 7), facts=(FILE,), attempt=FILE.version.attempt, created=True)
    acting = Spreads(m.Outcome(ended="committed", committed=committed))
    access = Access(event="write", caller=Caller(person=ALICE))
    answer = now(uploads(acting).put(put_request(idempotency_key="k"), access, Target("alice", ("x",), False)))
    assert answer.status == 201
    assert acting.spread_facts == [(Position(1, 7), (FILE,))]

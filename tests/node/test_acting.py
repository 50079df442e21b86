"""Which admin server a node asks."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.model import facts as f
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Version
from securifile.model.errors import Code, OutcomeUnknown, PeerUnreachable, Refusal
from securifile.model.ids import AttemptId, EntryId
from securifile.node.acting import KNOWN_MAX, Acting
from securifile.protocol.messages import Done, SignOut

FILE = f.File(
    id=EntryId(b"f" * 16),
    owner="ann",
    parent=EntryId(b"r" * 16),
    name="a",
    created_at=0.0,
    version=Version(
        number=1,
        attempt=AttemptId(b"a" * 16),
        size=0,
        digest=b"",
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="ann",
        copies=(),
    ),
)
QUESTION = SignOut(token_hash=b"")


class Admin:
    """A link to an admin server with one answer."""

    connected = True

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    def ask(self, message: Any, timeout_s: float) -> Deferred[Any]:
        self.asked += 1
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


def ask(*admins: Admin) -> Any:
    """What asking the cluster of these admin servers gives."""
    links = {f"a{number}": admin for number, admin in enumerate(admins)}
    cluster: Any = SimpleNamespace(admins=list(links), links=SimpleNamespace(to=links.get), roster=None)
    nothing: Any = None
    index: Any = SimpleNamespace(listen=lambda listener: None)
    acting = Acting(clock=Clock(), wall=lambda: 0.0, name="n1", cluster=cluster, index=index, audit=nothing, random=bytes)
    results: list[Any] = []
    Deferred.fromCoroutine(acting.ask_admin(QUESTION)).addBoth(results.append)
    return results[0]


def test_an_admin_server_without_its_database_is_passed_over() -> None:
    """It says that it did nothing, so the next one may."""
    without = Admin(Refusal(Code.CATALOGUE_UNAVAILABLE, "no database"))
    assert ask(without, Admin(Done())) == Done()
    assert ask(without).value is without.answer


@pytest.mark.parametrize("answer", [Refusal(Code.LOCKED, "locked"), PeerUnreachable("gone")], ids=repr)
def test_whoever_may_have_done_it_is_the_last_that_is_asked(answer: Exception) -> None:
    """A refusal is final, and after a lost answer nobody else is asked to do it again."""
    other = Admin(Done())
    failure = ask(Admin(answer), other)
    assert failure.check(Refusal if isinstance(answer, Refusal) else OutcomeUnknown)
    assert other.asked == 0


class Asked:
    """A question to the index, and how often it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.times = 0

    async def __call__(self, sql: object) -> object:
        self.times += 1
        return self.answer


class FakeIndex:
    """Tells of changes when the test says so."""

    sql = None
    is_writing = False

    def __init__(self) -> None:
        self.listeners: list[Callable[[object], None]] = []

    def listen(self, listener: Callable[[object], None]) -> None:
        self.listeners.append(listener)

    def change(self, fact: object = None) -> None:
        for listener in self.listeners:
            listener(fact)


def remembering() -> tuple[Any, Callable[..., Any]]:
    """An index, and how to ask what may be remembered."""
    index: Any = FakeIndex()
    cluster: Any = SimpleNamespace(roster=None)
    acting = Acting(clock=Clock(), wall=lambda: 0.0, name="n1", cluster=cluster, index=index, audit=cast(Any, None), random=bytes)

    def recall(key: object, asked: Asked, **options: bool) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(acting.recall(key, asked, **options)).addBoth(results.append)
        return results[0]

    return index, recall


def test_an_answer_is_remembered_until_something_changes() -> None:
    """Whatever changes: one change in the index makes every answer be asked for again."""
    index, recall = remembering()
    asked = Asked("found")
    assert [recall("k", asked), recall("k", asked)] == ["found", "found"]
    assert asked.times == 1
    asked.answer = "something else"
    index.change()
    assert recall("k", asked) == "something else"
    assert recall("another", Asked(1)) == 1


def test_what_is_not_of_files_is_remembered_over_uploads() -> None:
    """A file's new version makes only those answers be asked for again that may have to do with files; anything else does with all."""
    index, recall = remembering()
    of_files, apart = Asked("a file"), Asked("a folder")

    def ask() -> tuple[int, int]:
        recall("k", of_files)
        recall("k", apart, of_files=False)
        return of_files.times, apart.times

    assert [ask(), ask()] == [(1, 1), (1, 1)]
    index.change(FILE)
    assert ask() == (2, 1)
    for fact in (f.GrantGone(entry=FILE.id, username="ann"), f.EntryGone(id=FILE.id), f.SessionGone(token_hash=b"")):
        before = ask()
        index.change(fact)
        assert ask() == (before[0] + 1, before[1] + 1)


def test_nothing_found_is_not_remembered() -> None:
    """Strangers who guess tokens must not fill the memory."""
    _index, recall = remembering()
    asked = Asked(None)
    recall("k", asked)
    recall("k", asked)
    assert asked.times == 2


def test_what_may_be_taken_back_is_not_remembered() -> None:
    """In the middle of a transaction of the index its changes may be visible, and it may yet come to nothing."""
    index, recall = remembering()
    asked = Asked("perhaps")
    index.is_writing = True
    recall("k", asked)
    index.is_writing = False
    asked.answer = "certain"
    assert recall("k", asked) == "certain"


def test_the_memory_is_bounded() -> None:
    """When it is full it begins anew."""
    _index, recall = remembering()
    asked = Asked("found")
    for number in range(KNOWN_MAX + 1):
        recall(number, asked)
    recall(0, asked)
    assert asked.times == KNOWN_MAX + 2

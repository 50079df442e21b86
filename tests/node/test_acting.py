"""Which admin server a node asks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from securifile.model.errors import Code, OutcomeUnknown, PeerUnreachable, Refusal
from securifile.node.acting import Acting
from securifile.protocol.messages import Done, SignOut

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
    cluster: Any = SimpleNamespace(admins=list(links), link=links.get, roster=None)
    nothing: Any = None
    acting = Acting(clock=Clock(), wall=lambda: 0.0, name="n1", cluster=cluster, index=nothing, audit=nothing, random=bytes)
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

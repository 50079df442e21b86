"""What becomes of a request when the audit trail has no room left for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from securifile.audit.memory import MemoryAudit
from securifile.http.exchange import Access, Answer
from securifile.http.shared_api import SharedApi
from securifile.model.errors import Code, OutcomeUnknown, Refusal, StreamBroken


class World:
    """One route on a server whose audit trail a test fills up."""

    def __init__(self) -> None:
        self.audit = MemoryAudit()

    async def admit(self) -> None:
        """Everybody."""

    def ask(self, method: bytes, handler: Any, *, is_over: bool = False) -> Any:
        """What a request to a route with that handler ends with."""
        backend: Any = SimpleNamespace(audit=self.audit, admit=self.admit, wall=lambda: 0.0, name="n1")
        nothing: Any = None
        api = SharedApi(clock=Clock(), backend=backend, authenticator=nothing, lookup=nothing, contents=nothing, archives=nothing)
        routes: list[Any] = []
        app: Any = SimpleNamespace(route=lambda *args, **kwargs: routes.append)
        api.route(app, "/x", method.decode(), "event", handler, anonymous=True)
        request = SimpleNamespace(
            method=method, peer="127.0.0.1", is_over=is_over, setResponseCode=lambda status: None, setHeader=lambda *header: None
        )
        results: list[Any] = []
        Deferred.fromCoroutine(routes[0](request)).addBoth(results.append)
        return results[0]


def test_without_room_nothing_is_begun() -> None:
    """503 before anything was done: certainly not done."""
    world = World()
    world.audit.full = True
    begun: list[Access] = []

    async def handler(request: Any, access: Access) -> Answer:
        begun.append(access)
        return Answer(status=204)

    assert world.ask(b"DELETE", handler).value.code is Code.LOG_FULL
    assert begun == []


def test_what_was_done_and_cannot_be_written_down_is_not_called_refused() -> None:
    """A write that was carried out before the room was gone is answered with "unknown", never with a 503 that says "not done"."""
    world = World()

    async def handler(request: Any, access: Access) -> Answer:
        world.audit.full = True
        return Answer(status=204)

    assert world.ask(b"DELETE", handler).check(OutcomeUnknown)


@pytest.mark.parametrize("error", [OutcomeUnknown("lost"), Refusal(Code.LOCKED, "locked"), RuntimeError("bug")], ids=repr)
def test_a_failure_stays_what_it_is(error: Exception) -> None:
    """An unknown outcome that cannot be written down is still unknown, and a refusal the same refusal."""
    world = World()

    async def handler(request: Any, access: Access) -> Answer:
        world.audit.full = True
        raise error

    assert world.ask(b"PUT", handler).value is error


def test_a_client_that_leaves_is_recorded_and_is_no_bug() -> None:
    """Its request is over: the record says 499, and nothing but a cancellation comes out of the route, which nobody logs as an error."""
    world = World()

    async def handler(request: Any, access: Access) -> Answer:
        raise StreamBroken("gone")

    assert world.ask(b"PUT", handler, is_over=True).check(CancelledError)
    assert [record.status for record in world.audit.records] == [499]

"""Shortcuts past the router: what goes by them is answered as by the router, and everything else goes to it."""

from __future__ import annotations

from typing import Any

import pytest
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred

from securifile.http.request import Request
from securifile.http.routing import Run, Shortcuts, klein_problems
from securifile.model.errors import Code, Refusal
from tests.http.connections import Server


class Routes:
    """The same routes for both: below `/api/v1/files/`, and one more that only the router knows."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.waiting: Deferred[bytes] = Deferred()
        self.router = klein_problems(Klein())
        self.routed = 0
        self.router.route("/api/v1/files/", methods=["GET", "HEAD"], branch=True)(self._by_router)
        self.router.route("/api/v1/other")(lambda request: b"other")

    async def _by_router(self, request: Request) -> bytes | None:
        self.routed += 1
        return await self.get(request)

    async def get(self, request: Request) -> bytes | None:
        """Does what the last word of the path says."""
        match request.path.rpartition(b"/")[2]:
            case b"refused":
                raise Refusal(Code.FORBIDDEN, "Not yours.")
            case b"bug":
                raise ValueError("a secret")
            case b"late-bug":
                request.start(200, (), 3).write(b"abc").addErrback(lambda _: None)
                raise ValueError("a secret")
            case b"stream":
                sink = request.start(200, (), 3)
                await sink.write(b"abc")
                sink.finish()
                return None
            case b"empty":
                request.setResponseCode(204)
                return b""
            case b"wait":
                try:
                    return await self.waiting
                except CancelledError:
                    self.ended.append("cancelled")
                    raise
        request.setHeader(b"X-Odd", b"1")
        return b"content"

    def server(self, shortcuts: bool) -> Server:
        run: Run = self.get
        routes = {(method, b"/api/v1/files/"): run for method in (b"GET", b"HEAD")} if shortcuts else {}
        return Server(resource=Shortcuts(routes, self.router.resource()))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("last", ["a", "refused", "stream", "empty", "bug", "a%2Fb", "%0a"])
def test_an_answer_is_the_same_either_way(method: str, last: str) -> None:
    """Content, status, headers, refusals and bugs: nobody can tell which way a request went."""
    answers = []
    for shortcuts in (True, False):
        routes = Routes()
        connection = routes.server(shortcuts).connect().request(f"{method} /api/v1/files/x/{last}")
        assert connection.is_open
        answers.append(connection.answer(method == "HEAD"))
        assert routes.routed == (not shortcuts)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "line",
    [
        "GET /api/v1/files/",
        "GET /api/v1/files",
        "POST /api/v1/files/x",
        "GET /api/v1/other",
        "GET /nowhere",
        "GET /api/v1/fil%65s/a",
        "GET /",
    ],
)
def test_everything_else_goes_to_the_router(line: str) -> None:
    """Other paths and methods, and prefixes in another spelling, are answered by it as if there were no shortcuts."""
    one, other = (Routes().server(shortcuts).connect().request(line).answer() for shortcuts in (True, False))
    assert one == other


def test_a_late_bug_cuts_the_answer_off() -> None:
    """What has begun cannot become a problem."""
    connection = Routes().server(True).connect().request("GET /api/v1/files/late-bug")
    assert connection.transport.aborted


def test_a_client_that_goes_away_ends_the_route() -> None:
    """The route is cancelled, and nothing is answered; one that is answered before the client goes is not."""
    routes = Routes()
    connection = routes.server(True).connect().request("GET /api/v1/files/wait")
    connection.go()
    assert (routes.ended, connection.raw) == (["cancelled"], b"")
    later: Any = Routes()
    connection = later.server(True).connect().request("GET /api/v1/files/wait")
    later.waiting.callback(b"late")
    connection.go()
    assert (later.ended, connection.answer().content) == ([], b"late")

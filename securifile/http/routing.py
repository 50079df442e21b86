"""Klein's router, made to answer as the rest does: its 404 and 405 are problems, and it never redirects on its own.

Routes below a fixed prefix, by which nearly all requests go, are found without it: see `Shortcuts`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import PathConverter
from zope.interface import implementer

from securifile.http.request import Request
from securifile.model.errors import Code, Refusal


class _EveryPath(PathConverter):
    """The rest of a path, whatever is in it: Werkzeug's own stops at a line feed (`%0a`), and says 404 to what is a bad path."""

    part_isolating = False
    regex = r"[^/][\s\S]*?"


def klein_problems(app: Any) -> Any:
    """Prepare a `Klein()` app; call it before the first route is added. Returns the app.

    Refusals that routes raise need nothing of this: `Request.processingFailed` answers them.
    """
    # A redirect to the path without double slashes would name another entry than the client wrote.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.url_map.redirect_defaults = False
    app.url_map.converters["path"] = _EveryPath

    @app.handle_errors(HTTPException)
    def refuse(*arguments: Any) -> None:
        raise refusal_of_router(arguments[-1].value)

    return app


def refusal_of_router(error: HTTPException) -> Refusal:
    """What the router's exception means."""
    if isinstance(error, MethodNotAllowed):
        allow = sorted(error.valid_methods or ())
        return Refusal(Code.METHOD_NOT_ALLOWED, "This cannot be done here.", allow=allow)
    if error.code == 404:
        return Refusal(Code.NOT_FOUND, "There is nothing here; /api/v1/openapi.json lists what there is.")
    return Refusal(Code.BAD_REQUEST, "The request's path or method cannot be understood.")


Run = Callable[[Request], Awaitable[bytes | None]]
"""A route: gives the content of the answer, or None when it has answered by itself. Cancelled when the client goes away."""


@implementer(IResource)
class Shortcuts:
    """An app's resource, with shortcuts past its router, which takes as long as a small file's way from the disk.

    The router knows the same routes: what is written in any other way (percent-encoded, with a method that is not there) is left to it.
    """

    isLeaf = True
    _log = Logger()

    def __init__(self, routes: Mapping[tuple[bytes, bytes], Run], app: Any) -> None:
        """Args:
        routes: by method and prefix; `/api/v1/files/` with whatever comes after it.
        app: the resource for everything else.
        """
        self._routes = routes
        self._app = app

    def getChildWithDefault(self, name: bytes, request: Request) -> Any:
        """Never called, for a leaf has no children."""
        raise NotImplementedError

    def putChild(self, path: bytes, child: Any) -> None:
        """See `getChildWithDefault`."""
        raise NotImplementedError

    def render(self, request: Request) -> Any:
        """See `IResource`."""
        # "", "api", "v1", "files", and the rest.
        parts = request.path.split(b"/", 4)
        run = self._routes.get((request.method, request.path[: -len(parts[4])])) if len(parts) == 5 and parts[4] else None
        if run is None:
            return self._app.render(request)
        running = Deferred.fromCoroutine(_coroutine(run, request))
        request.notifyFinish().addErrback(lambda _: running.cancel())
        running.addCallbacks(partial(_answer, request), partial(self._failed, request))
        running.addErrback(lambda failure: self._log.failure("a route could not be answered", failure))
        return NOT_DONE_YET

    def _failed(self, request: Request, failure: Failure) -> None:
        if not request.is_over:
            request.processingFailed(failure)
        elif not failure.check(CancelledError):
            self._log.failure("a route failed when it had answered", failure)


async def _coroutine(run: Run, request: Request) -> bytes | None:
    return await run(request)


def _answer(request: Request, content: bytes | None) -> None:
    if content is None or request.is_over:
        return
    sink = request.start(request.code, (), len(content))
    sink.write(content).addErrback(lambda _: None)
    sink.finish()

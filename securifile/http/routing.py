"""Klein's router, made to answer as the rest does: its 404 and 405 are problems, and it never redirects on its own."""

from __future__ import annotations

from typing import Any

from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import PathConverter

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

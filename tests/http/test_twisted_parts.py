"""The parts of Twisted and Klein that the channel relies on and that are not promised: known good with Twisted 26.10."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from klein import _resource
from twisted.web import http, server


def test_the_version_that_was_tried() -> None:
    """A new major release is a reason to read `twisted.web` again, then to change this line."""
    assert version("twisted").split(".")[0] == "26"


def test_the_request_is_made_as_ours_makes_it() -> None:
    """A request takes its channel, and asks it for peer, host and transport only."""
    assert "parsePOSTFormSubmission" in inspect.signature(server.Request.__init__).parameters
    asked: list[str] = []

    class Channel:
        def __getattr__(self, name: str) -> object:
            asked.append(name)
            return lambda: None

    request = server.Request(Channel(), parsePOSTFormSubmission=False)
    assert sorted(asked) == ["getHost", "getPeer", "transport"]
    assert request.notifications == []
    assert request.cookies == []
    assert (request.finished, request.startedWriting, request.sentLength, request.code) == (0, 0, 0, 200)


def test_what_is_replaced_is_all_that_touches_the_channel() -> None:
    """Methods of Twisted's request that use its channel: each is replaced by ours, or harmless."""
    replaced_or_harmless = {
        "__init__", "_cleanup", "noLongerQueued", "requestReceived", "registerProducer", "unregisterProducer", "finish", "write",
        "connectionLost", "loseConnection", "isSecure", "gotLength", "process",
    }  # fmt: skip
    users = {
        name
        for kind in (http.Request, server.Request)
        for name, method in vars(kind).items()
        if inspect.isfunction(method) and "self.channel" in inspect.getsource(method)
    }
    assert users <= replaced_or_harmless


def test_klein_calls_what_we_answer() -> None:
    """Klein ends a route by these methods, and cancels it by `notifyFinish`."""
    source = inspect.getsource(_resource.KleinResource.render)
    for part in ("request.notifyFinish().addErrback", "d.cancel()", "request.processingFailed(", "request.write(r)", "request.finish()"):
        assert part in source

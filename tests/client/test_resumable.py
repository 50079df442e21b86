"""An upload that goes on after any failure, against a server made of a few lines."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from securifile.client.errors import Problem, Uncertain, Unreachable
from securifile.client.resumable import TRIES_MAX, ResumableUpload
from securifile.client.wire import Fields
from securifile.http.targets import Target
from securifile.model.interfaces import IWorker

DATA = bytes(range(256)) * 4000


@implementer(IWorker)
class AtOnce:
    """Does work in the caller's thread."""

    def do(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        return execute(work, *arguments)


@attrs.define
class Server:
    """Keeps one upload, and fails as it is told, once each."""

    breaks_at: list[int] = attrs.Factory(list)
    """Bytes after which a `PATCH` breaks; what came is kept."""
    refusals: list[int] = attrs.Factory(list)
    """Statuses that the next requests after the creation get."""
    loses_last_answer: bool = False
    kept: bytearray = attrs.Factory(bytearray)
    sent: int = 0
    created: dict[str, str] = attrs.Factory(dict)

    async def ask(
        self, method: str, path: str, *, kind: str, fields: Mapping[str, str], content: Any = None, repeatable: bool = False
    ) -> Any:
        if method == "POST":
            self.created = dict(fields)
            return answer({"Location": "/api/v1/uploads/" + "0" * 32})
        if self.refusals:
            raise Problem(self.refusals.pop(0), "some-code", "Not now.")
        if method == "PATCH":
            await self._take(int(fields["Upload-Offset"]), content())
        if method == "GET":
            assert len(self.kept) == len(DATA)
            return answer({}, {"file": {"size": len(self.kept)}})
        return answer({"Upload-Offset": str(len(self.kept))})

    async def _take(self, offset: int, content: Any) -> None:
        if offset != len(self.kept):
            raise Problem(409, "conflict", "Elsewhere.")
        while data := await content.source.read():
            self.sent += len(data)
            if self.breaks_at and len(self.kept) + len(data) > self.breaks_at[0]:
                self.kept += data[: max(0, self.breaks_at.pop(0) - len(self.kept))]
                raise Uncertain("PATCH", "the cable")
            self.kept += data
        assert len(self.kept) - offset == content.length
        if self.loses_last_answer:
            self.loses_last_answer = False
            raise Uncertain("PATCH", "the cable")


def answer(fields: dict[str, str], value: object = None) -> Any:
    async def content() -> bytes:
        return json.dumps(value).encode()

    return SimpleNamespace(fields=Fields(fields.items()), content=content)


def run(server: Server) -> Any:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    upload = ResumableUpload(
        ask=server.ask,
        pause=pause,
        target=Target("alice", ("ä", "big"), False),
        file=io.BytesIO(DATA),
        length=len(DATA),
        fields={"If-None-Match": "*"},
        worker=AtOnce(),
        progress=lambda done, total: None,
    )
    outcome: list[Any] = []
    Deferred.fromCoroutine(upload.run()).addBoth(outcome.append)
    [result] = outcome
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


@given(breaks=st.lists(st.integers(0, len(DATA)), max_size=TRIES_MAX), loses_last=st.booleans())
def test_whatever_breaks_the_whole_arrives(breaks: list[int], loses_last: bool) -> None:
    """However often and wherever it breaks, all bytes arrive in order; only what was in flight goes twice."""
    server = Server(breaks_at=sorted(breaks), loses_last_answer=loses_last)
    assert run(server) == {"size": len(DATA)}
    assert server.kept == DATA
    assert server.sent - len(DATA) <= (len(breaks) + 1) * 256 * 1024
    assert base64.b64decode(server.created["Upload-Metadata"].removeprefix("path ")).decode() == "alice/ä/big"
    assert server.created["If-None-Match"] == "*"


def test_a_lock_or_a_server_without_catalogue_is_waited_for() -> None:
    """Refusals that pass are tried again; any other ends it at once."""
    server = Server(breaks_at=[300_000], refusals=[423, 503])
    assert run(server) == {"size": len(DATA)}
    with pytest.raises(Problem) as caught:
        run(Server(refusals=[412]))
    assert caught.value.status == 412


def test_it_is_given_up_when_nothing_arrives_any_more() -> None:
    """After some tries without a byte the failure is told."""
    with pytest.raises((Uncertain, Unreachable, Problem)):
        run(Server(breaks_at=[300_000] * 50))

"""Reading a file over HTTP, as far as it is decided before its first byte."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from klein import Klein
from twisted.internet.defer import Deferred

from securifile.http.authentication import Caller
from securifile.http.downloads import Downloads
from securifile.http.exchange import Access
from securifile.http.request import Request
from securifile.http.routing import klein_problems
from securifile.http.targets import parse_target
from securifile.model.digests import DigestAlgorithm
from securifile.model.entries import Version
from securifile.model.facts import File, Person
from securifile.model.ids import AttemptId, EntryId
from tests.http.connections import Answer, Server

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
        number=3,
        attempt=AttemptId(b"a" * 16),
        size=6,
        digest=b"d" * 32,
        algorithm=DigestAlgorithm.SHA256,
        committed_at=0.0,
        committed_by="alice",
        copies=(),
    ),
)
ETAG = f'"{FILE.id}.3"'


async def find(*_: Any) -> Any:
    return SimpleNamespace(entry=FILE)


async def shown(file: Any) -> Any:
    return file


def ask(method: str, *headers: str) -> Answer:
    """What a server answers about the file."""
    backend: Any = SimpleNamespace(name="n1", is_available=lambda name: True, roster=SimpleNamespace(servers={}))
    lookup: Any = SimpleNamespace(find=find, shown=shown)
    nothing: Any = None
    downloads = Downloads(backend=backend, lookup=lookup, sources=nothing, delivery=nothing, redirector=nothing)
    app = klein_problems(Klein())

    @app.route("/api/v1/files/", branch=True)
    def files(request: Request) -> Deferred[Any]:
        async def get() -> bytes | None:
            answer = await downloads.get(request, Access(event="read", caller=Caller(person=ALICE)), parse_target(request.path))
            if answer.status != 304:
                return None
            request.setResponseCode(answer.status)
            for name, value in answer.headers:  # type: ignore[union-attr]
                request.setHeader(name, value)
            return b""

        return Deferred.fromCoroutine(get())

    return Server(resource=app.resource()).connect().request(f"{method} /api/v1/files/alice/x", *headers).answer(method == "HEAD")


def test_head_knows_no_ranges() -> None:
    """Of all methods only GET has ranges (RFC 9110, section 14.2): HEAD tells of the whole, whatever range is asked for."""
    for wanted in ("bytes=0-1", "bytes=99-"):
        answer = ask("HEAD", f"Range: {wanted}")
        assert (answer.status, answer.headers["content-length"], answer.headers["etag"]) == (200, "6", ETAG)


def test_a_range_beyond_the_end_is_416_and_tells_the_size() -> None:
    """So that the client can ask for another one."""
    answer = ask("GET", "Range: bytes=99-")
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */6")


def test_not_modified_tells_no_length() -> None:
    """A cache would take the length in a 304 for that of the file (RFC 9110, section 8.6)."""
    for method in ("GET", "HEAD"):
        answer = ask(method, f"If-None-Match: {ETAG}", "Range: bytes=99-")
        assert (answer.status, answer.headers["etag"]) == (304, ETAG)
        assert "content-length" not in answer.headers


def test_no_date_is_given_and_none_is_heeded() -> None:
    """A condition about dates is as if it were not there, because no answer has a `Last-Modified` to compare it with (13.1.3)."""
    for condition in ("If-Modified-Since", "If-Unmodified-Since"):
        answer = ask("HEAD", f"{condition}: Thu, 01 Jan 1970 00:00:00 GMT")
        assert (answer.status, answer.headers["etag"]) == (200, ETAG)
        assert "last-modified" not in answer.headers

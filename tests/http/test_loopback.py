"""The channel on real sockets, with curl as the client: plain and TLS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import trustme
from klein import Klein
from twisted.internet import reactor, ssl
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue

from securifile.http.channel import HttpFactory, http_factory
from securifile.http.limits import HttpLimits
from securifile.http.request import Request
from securifile.http.routing import klein_problems
from securifile.model.errors import Code, Refusal

SIZE = 32 * 1024 * 1024

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


class App:
    """What curl is let loose on."""

    app = klein_problems(Klein())
    most_unread = 0

    @app.route("/count", methods=["PUT"])
    async def count(self, request: Request) -> bytes:
        length = 0
        while piece := await request.body.read():
            length += len(piece)
            self.most_unread = max(self.most_unread, len(piece))
        return b"%d" % length

    @app.route("/slowly", methods=["PUT"])
    async def slowly(self, request: Request) -> bytes:
        for _ in range(4):
            await deferLater(reactor, 0.02)
            self.most_unread = max(self.most_unread, len(await request.body.read()))
        count: bytes = await self.count(request)
        return count

    @app.route("/refuse", methods=["PUT"])
    async def refuse(self, request: Request) -> None:
        raise Refusal(Code.QUOTA, "No room.")

    @app.route("/redirect", methods=["PUT"])
    def redirect(self, request: Request) -> None:
        request.start(307, [("Location", "/count")], 0).finish()

    @app.route("/download")
    async def download(self, request: Request) -> None:
        sink = request.start(200, [("Content-Type", "application/octet-stream")], SIZE)
        for _ in range(SIZE // 262144):
            await sink.write(bytes(262144))
        sink.finish()

    @app.route("/short")
    async def short(self, request: Request) -> None:
        await request.start(200, (), SIZE).write(bytes(1000))
        raise ValueError("broken on purpose")

    @app.route("/hello")
    def hello(self, request: Request) -> bytes:
        return b"hello"


class Site:
    """The app on a port of the loopback interface."""

    def __init__(self, secure: bool, folder: Path, limits: HttpLimits) -> None:
        self.app = App()
        self.factory: HttpFactory = http_factory(self.app.app.resource(), reactor, limits)
        self.folder = folder
        if secure:
            authority = trustme.CA()
            pem = authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.bytes()
            authority.cert_pem.write_to_path(folder / "ca.pem")
            options = ssl.PrivateCertificate.loadPEM(pem).options()
            self.port: IListeningPort = reactor.listenSSL(0, self.factory, options, interface="127.0.0.1")  # type: ignore[attr-defined]
        else:
            self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.number = self.port.getHost().port  # type: ignore[attr-defined]
        self.url = f"{'https' if secure else 'http'}://127.0.0.1:{self.number}"
        self.body = folder / "body"
        self.body.write_bytes(bytes(SIZE))

    async def curl(self, *arguments: str, ok: bool = True) -> Any:
        """Run curl; status, connections made, content of the last answer. Paths are completed."""
        out = self.folder / "out"
        out.unlink(missing_ok=True)
        full = [self.url + argument if argument.startswith("/") else argument for argument in arguments]
        seen = '{"status": "%{http_code}", "connects": %{num_connects}, "sent": %{size_upload}}'
        command = ["-sS", "-q", "--max-time", "20", "--cacert", str(self.folder / "ca.pem"), "-o", str(out), "-w", seen, *full]
        stdout, stderr, code = await getProcessOutputAndValue(shutil.which("curl"), command, env={}, path=str(self.folder), reactor=reactor)
        assert (code == 0) is ok, stderr
        last = json.loads(b"{" + stdout.rpartition(b"{")[2])
        content = out.read_bytes() if out.exists() else b""
        return {**last, "status": int(last["status"]), "content": content, "code": code}


@pytest.fixture(params=["plain", "tls"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site of each kind."""
    made = Site(request.param == "tls", tmp_path, HttpLimits(linger_s=5.0))
    yield made
    pytest_twisted.blockon(made.port.stopListening())
    pytest_twisted.blockon(made.factory.shut_down(1.0))


@pytest_twisted.ensureDeferred
async def test_an_upload_is_streamed(site: Site) -> None:
    """With a length and in chunks, memory stays bounded."""
    got = await site.curl("-T", "body", "/count")
    assert (got["status"], got["content"]) == (200, b"%d" % SIZE)
    got = await site.curl("-T", "body", "-H", "Transfer-Encoding: chunked", "/count")
    assert (got["status"], got["content"]) == (200, b"%d" % SIZE)
    got = await site.curl("-T", "body", "/slowly")
    assert got["status"] == 200
    assert site.app.most_unread < 2 * 1024 * 1024


@pytest.mark.parametrize("expect", ["100-continue", ""])
@pytest_twisted.ensureDeferred
async def test_a_refused_upload_sees_its_answer(site: Site, expect: str) -> None:
    """Whether the client waits for 100 or sends at once, it reads the refusal and not a reset."""
    for length in ("", "Transfer-Encoding: chunked"):
        extra = ["-H", length] if length else []
        got = await site.curl("-T", "body", "-H", f"Expect: {expect}", *extra, "/refuse")
        assert got["status"] == 413
        assert json.loads(got["content"])["code"] == "quota-exceeded"
        if expect:
            assert got["sent"] == 0


@pytest.mark.parametrize("expect", ["100-continue", ""])
@pytest_twisted.ensureDeferred
async def test_a_redirected_upload_arrives(site: Site, expect: str) -> None:
    """A 307 before the body sends the whole of it to the other place."""
    got = await site.curl("-L", "-T", "body", "-H", f"Expect: {expect}", "/redirect")
    assert (got["status"], got["content"]) == (200, b"%d" % SIZE)


@pytest_twisted.ensureDeferred
async def test_a_download_is_whole_or_seen_to_be_broken(site: Site) -> None:
    """A cut answer is an error for curl, with a length."""
    got = await site.curl("/download")
    assert len(got["content"]) == SIZE
    got = await site.curl("/short", ok=False)
    assert got["code"] in (18, 56)  # partial file, or failure in receiving
    got = await site.curl("-I", "/download")
    assert b"Content-Length: %d" % SIZE in got["content"]


@pytest_twisted.ensureDeferred
async def test_a_connection_is_used_again(site: Site) -> None:
    """Two requests of one curl, one connection; also after a refused short body."""
    got = await site.curl("/hello", "/hello", "-o", "second")
    assert got["connects"] == 0
    got = await site.curl("-X", "PUT", "-d", "x" * 1000, "/refuse", "/refuse", "-o", "second")
    assert (got["status"], got["connects"]) == (413, 0)


class Slow(Protocol):
    """A client that says half a line."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(b"GET /hel")  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(None)


@pytest_twisted.ensureDeferred
async def test_slow_clients_do_not_disturb_others(tmp_path: Path) -> None:
    """While 150 hold half a head, others are served; the slow ones are told and closed."""
    site = Site(False, tmp_path, HttpLimits(header_timeout_s=2.0, linger_s=0.5))
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", site.number)
    slow = await gatherResults([connectProtocol(endpoint, Slow()) for _ in range(150)])
    assert (await site.curl("/hello"))["content"] == b"hello"
    await gatherResults([client.closed for client in slow])
    assert all(client.received.startswith(b"HTTP/1.1 408 ") for client in slow)
    stopped = site.port.stopListening()
    assert stopped is not None
    await stopped
    await site.factory.shut_down(1.0)

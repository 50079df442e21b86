"""Mutual TLS over real sockets on loopback: who gets in, who does not, and what they are told."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from securifile.certificates.authority import Authority
from securifile.certificates.identity import Identity, make_csr, new_key
from securifile.certificates.names import PersonUri, ServerUri
from securifile.model.errors import PeerUnreachable
from securifile.model.ids import Position
from securifile.model.servers import HostPort, Status
from securifile.protocol.bulk import BulkPool
from securifile.protocol.connection import PeerIdentity
from securifile.protocol.messages import FetchBlob, Heartbeat, HeartbeatAnswer
from securifile.protocol.rpc import Link, Peer
from securifile.protocol.sniff import http_answer, plain_only, tls_only
from securifile.protocol.tls import Credentials, CurrentCredentials, client_context, identify, tls_connector, tls_factory, uri_of
from securifile.protocol.transport import ControlAndBulkFactory, tcp_connector
from securifile.protocol.wire import Connector, claimed
from tests.protocol.certs import authorities, credentials
from tests.protocol.cluster import A1, N1, N2, answering
from tests.protocol.test_bulk import ATTEMPT, MIB, STORE, Blobs, Source, _read_all, _write_all

BEAT = Heartbeat(position=Position(1, 2))
BEAT_ANSWER = HeartbeatAnswer(position=Position(1, 3), held_for=Status.RUNNING)


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    """Events that are logged during the test."""
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


def logged(events: list[LogEvent], words: str) -> bool:
    return any(words in (event.get("log_format") or "") for event in events)


@attrs.define
class Listening:
    """n1, listening on loopback."""

    port: int
    factory: ControlAndBulkFactory
    blobs: Blobs
    members: set[PeerIdentity]
    links: list[Link] = attrs.field(factory=list)

    @property
    def address(self) -> HostPort:
        return HostPort("127.0.0.1", self.port)

    def link(self, connector: Connector, here: PeerIdentity = N2, expected: PeerIdentity = N1, tls: bool = True) -> Link:
        link = Link(
            clock=reactor,
            jitter=lambda: 0.5,
            connector=connector,
            identify=identify if tls else claimed,
            address=self.address,
            expected=expected,
            here=here,
            handlers={},
        )
        link.start()
        self.links.append(link)
        return link

    async def refusal(self, link: Link) -> str:
        """Why the link is not connected, after its first attempt."""
        while True:
            try:
                await link.ask(BEAT, 1)
            except PeerUnreachable as error:
                if "not connected yet" not in str(error):
                    return str(error)
                await next_turn()
            else:
                raise AssertionError("it was let in")


@implementer(IOpenSSLClientConnectionCreator)
class Bare:
    """A client that has no certificate, and believes everybody."""

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        return SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)


def next_turn() -> Deferred[None]:
    deferred: Deferred[None] = Deferred()
    reactor.callLater(0.005, deferred.callback, None)
    return deferred


@asynccontextmanager
async def listening(current: CurrentCredentials | None) -> AsyncIterator[Listening]:
    """n1 with TLS, or without."""
    blobs = Blobs()
    members = {N1, N2, A1}
    factory = ControlAndBulkFactory(
        clock=reactor,
        here=N1,
        is_member=lambda identity: identity in members,
        handlers={Heartbeat: answering(BEAT_ANSWER)},
        bulk=blobs,
        identify=identify if current else claimed,
    )
    outer = tls_only(tls_factory(reactor, current, factory)) if current else plain_only(factory)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(outer)
    rig = Listening(port.getHost().port, factory, blobs, members)
    try:
        yield rig
    finally:
        for link in rig.links:
            await link.stop()
        await factory.close_all()
        await port.stopListening()


def server_credentials() -> CurrentCredentials:
    return CurrentCredentials(credentials(uri_of(N1)))


def connector(with_credentials: Credentials) -> Connector:
    return tls_connector(reactor, CurrentCredentials(with_credentials))


@pytest_twisted.ensureDeferred
async def test_members_talk() -> None:
    """Two members with good certificates talk, by TLS 1.3."""
    async with listening(server_credentials()) as n1:
        link = n1.link(connector(credentials(uri_of(N2))))
        peer = await link.when_connected()
        assert await link.ask(BEAT, 5) == BEAT_ANSWER
        assert peer.identity == N1
        transport: Any = peer._wire.transport
        assert transport.getHandle().get_protocol_version_name() == "TLSv1.3"


@pytest_twisted.ensureDeferred
async def test_bulk_over_tls() -> None:
    """Blobs pass in both directions, and the connection is used again."""
    async with listening(server_credentials()) as n1:
        pool = BulkPool(
            clock=reactor,
            connector=connector(credentials(uri_of(N2))),
            identify=identify,
            here=N2,
            locate=lambda name: (n1.address, N1),
        )
        stored = await _write_all(await pool.store("n1", STORE), [b"x" * MIB] * 5)
        assert stored.size == 5 * MIB
        n1.blobs.source = Source([b"y" * MIB] * 5)
        follows, source = await pool.fetch("n1", FetchBlob(attempt=ATTEMPT), 5)
        assert follows.size == 1000
        assert len(await _read_all(source)) == 5 * MIB
        assert pool.idle == 1
        await pool.stop()


@pytest_twisted.ensureDeferred
async def test_slow_receiver_over_tls() -> None:
    """Over real sockets, too, a sender waits for a receiver that does not consume, and all arrives in the end."""
    async with listening(server_credentials()) as n1:
        pool = BulkPool(
            clock=reactor,
            connector=connector(credentials(uri_of(N2))),
            identify=identify,
            here=N2,
            locate=lambda name: (n1.address, N1),
        )
        go_on = n1.blobs.go_on = Deferred()
        transfer = await pool.store("n1", STORE)
        written = 0
        while True:
            waiting = transfer.write(b"x" * 262144)
            written += 262144
            for _ in range(40):
                if waiting.called:
                    break
                await next_turn()
            else:
                break
            assert written < 64 * MIB
        go_on.callback(None)
        await waiting
        assert (await transfer.finish(10)).size == written
        await pool.stop()


_, SERVERS, PEOPLE, STRANGER = authorities()

BAD_CLIENTS: dict[str, Credentials] = {
    "another authority": credentials(uri_of(N2), signed_by=STRANGER),
    "people's authority": credentials(uri_of(N2), signed_by=PEOPLE),
    "expired": credentials(uri_of(N2), expired=True),
    "a person": credentials("securifile://c/person/ann"),
    "no URI": credentials(""),
    "another name": credentials("securifile://c/node/n3"),
    "another cluster": credentials("securifile://d/node/n2"),
    "another kind": credentials("securifile://c/admin/n2"),
    "more than a name": credentials("securifile://c/node/n2/x"),
    "a port": credentials("securifile://c:1/node/n2"),
    "a query": credentials("securifile://c/node/n2?x"),
    "capitals": credentials("securifile://c/node/N2"),
}


@pytest.mark.parametrize("what", sorted(BAD_CLIENTS))
@pytest_twisted.ensureDeferred
async def test_bad_client(what: str) -> None:
    """A client whose certificate is not that of the server it says it is does not get in."""
    async with listening(server_credentials()) as n1:
        link = n1.link(connector(BAD_CLIENTS[what]))
        refusal = await n1.refusal(link)
        assert re.search("certificate|unknown ca|lost", refusal), refusal
        assert not n1.factory._open_wires()


@pytest.mark.parametrize("what", sorted(BAD_CLIENTS))
@pytest_twisted.ensureDeferred
async def test_bad_server(what: str) -> None:
    """A server whose certificate is not that of the one expected hears nothing from us, not even a hello."""
    async with listening(CurrentCredentials(BAD_CLIENTS[what])) as n2:
        link = n2.link(connector(credentials(uri_of(N1))), here=N1, expected=N2)
        refusal = await n2.refusal(link)
        assert re.search("certificate verify failed|certificate's name|expected", refusal), refusal
        assert not n2.factory._open_wires()


@pytest_twisted.ensureDeferred
async def test_two_uris() -> None:
    """A certificate with two names has none."""
    key, chain = SERVERS.issue([uri_of(N2), uri_of(A1)])
    async with listening(server_credentials()) as n1:
        link = n1.link(connector(Credentials(key=key, chain=chain, trust=SERVERS.pem)))
        assert "2 URIs" in await n1.refusal(link)


@pytest_twisted.ensureDeferred
async def test_no_certificate() -> None:
    """Without a certificate no connection comes about."""
    async with listening(server_credentials()) as n1:
        closed: Deferred[None] = Deferred()
        heard: list[bytes] = []

        class Stranger(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                closed.callback(None)

        endpoint = wrapClientTLS(Bare(), TCP4ClientEndpoint(reactor, "127.0.0.1", n1.port))
        await endpoint.connect(Factory.forProtocol(Stranger))
        await closed
        assert heard == []
        assert not n1.factory._open_wires()


@pytest_twisted.ensureDeferred
async def test_removed_member() -> None:
    """A removed server's certificate, good as it is, opens nothing, and it is told why."""
    async with listening(server_credentials()) as n1:
        n1.members.discard(N2)
        link = n1.link(connector(credentials(uri_of(N2))))
        assert "not a member" in await n1.refusal(link)


@pytest_twisted.ensureDeferred
async def test_renewed_certificate() -> None:
    """New credentials serve new connections without a restart; unfit ones change nothing."""
    current = CurrentCredentials(BAD_CLIENTS["expired"])
    async with listening(server_credentials()) as n1:
        link = n1.link(tls_connector(reactor, current))
        assert await n1.refusal(link)
        good, other = credentials(uri_of(N2)), credentials(uri_of(N2))
        with pytest.raises((SSL.Error, ValueError)):
            current.replace(attrs.evolve(good, key=other.key))
        current.replace(good)
        link.hurry()
        await link.when_connected()


@pytest_twisted.ensureDeferred
async def test_plain_to_tls(log: list[LogEvent]) -> None:
    """A server without TLS is told by one with TLS, in plain words, and both log it."""
    async with listening(server_credentials()) as n1:
        link = n1.link(tcp_connector(reactor), tls=False)
        assert "without --no-tls" in await n1.refusal(link)
        assert logged(log, "speaks plain text")


@pytest_twisted.ensureDeferred
async def test_tls_to_plain(log: list[LogEvent]) -> None:
    """A server with TLS does not get through to one without, which says so in its log."""
    async with listening(None) as n1:
        link = n1.link(connector(credentials(uri_of(N2))))
        assert "does not speak TLS" in await n1.refusal(link)
        assert logged(log, "speaks TLS")


@pytest_twisted.ensureDeferred
async def test_plain_to_plain() -> None:
    """With TLS off on both, they talk."""
    async with listening(None) as n1:
        link = n1.link(tcp_connector(reactor), tls=False)
        await link.when_connected()
        assert await link.ask(BEAT, 5) == BEAT_ANSWER


@pytest_twisted.ensureDeferred
async def test_http_to_https_port(log: list[LogEvent]) -> None:
    """A browser that speaks plain HTTP to an HTTPS port gets a problem it can show."""
    current = server_credentials()
    outer = tls_only(tls_factory(reactor, current, Factory.forProtocol(Protocol)), http_answer("use https"))
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(outer)
    heard: list[bytes] = []
    closed: Deferred[None] = Deferred()

    class Browser(Protocol):
        def connectionMade(self) -> None:
            assert self.transport is not None
            self.transport.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

        def dataReceived(self, data: bytes) -> None:
            heard.append(data)

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            closed.callback(None)

    await TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port).connect(Factory.forProtocol(Browser))
    await closed
    answer = b"".join(heard)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"use https" in body
    assert logged(log, "speaks plain text")
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_the_real_authority(tmp_path: Path) -> None:
    """What the cluster's own authority signs for servers opens connections; what it signs for people does not."""
    now = time.time()
    authority = Authority.create(str(tmp_path / "authority"), "c", now)

    def signed(identity: PeerIdentity) -> Credentials:
        key = new_key()
        chain = authority.sign_server(make_csr(key), ServerUri("c", identity.kind, identity.name), ["127.0.0.1"], 3600, now)
        return Credentials.of(Identity.of(key, chain), authority.anchors)

    key = new_key()
    person = Identity.of(key, authority.sign_person(make_csr(key), PersonUri("c", "ann"), 3600, now))
    async with listening(CurrentCredentials(signed(N1))) as n1:
        assert (await n1.link(connector(signed(N2))).when_connected()).identity == N1
        refusal = await n1.refusal(n1.link(connector(Credentials.of(person, authority.anchors))))
        assert re.search("certificate|unknown ca|lost", refusal), refusal


def test_partial_write_is_off() -> None:
    """The private parts of pyOpenSSL that turn off partial writes are there, and do it."""
    context = client_context(credentials(uri_of(N2)))
    library: Any = vars(SSL)["_lib"]
    mode = library.SSL_CTX_set_mode(context._context, 0)
    assert not mode & library.SSL_MODE_ENABLE_PARTIAL_WRITE


def test_peer_shows_itself() -> None:
    """Credentials do not show their key."""
    assert "PRIVATE" not in repr(credentials(uri_of(N2)))
    assert Peer.__repr__ is not object.__repr__

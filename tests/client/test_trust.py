"""Whom the client believes, over real TLS on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
import trustme
from OpenSSL.crypto import FILETYPE_PEM
from twisted.internet import reactor
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair

from securifile.client.api import Client
from securifile.client.asking import KnownServer
from securifile.client.errors import Unreachable, UntrustedServer
from securifile.client.exchange import Http, Patience
from securifile.client.trust import certificates_of, endpoints
from tests.client.conftest import AtOnce, Impatient
from tests.client.fake_cluster import PASSWORD, FakeCluster, FakeServer


def options(authority: trustme.CA, name: str) -> CertificateOptions:
    issued = authority.issue_cert(name)
    chain = [Certificate.loadPEM(blob.bytes()) for blob in issued.cert_chain_pems]
    key = KeyPair.load(issued.private_key_pem.bytes(), FILETYPE_PEM)
    return CertificateOptions(privateKey=key.original, certificate=chain[0].original)


def client_for(server: FakeServer, root: str | None, url: str | None = None) -> Client:
    return Client(
        Http(endpoints(reactor, root), reactor, Patience(connect_s=0.5)),
        [KnownServer(name="", url=url or server.url, kind="admin")],
        clock=Impatient(),  # type: ignore[arg-type]
        random=bytes,
        worker=AtOnce(),
    )


@pytest_twisted.ensureDeferred
async def test_the_pinned_root_is_believed_and_no_other() -> None:
    """A server at an IP address is believed when the pinned root signed that address, and refused with advice otherwise."""
    ours, theirs = trustme.CA(), trustme.CA()
    ours_pem = ours.cert_pem.bytes().decode()
    [server] = FakeCluster().listen(reactor, "admin1", options(ours, "127.0.0.1"))
    [other] = FakeCluster().listen(reactor, "admin1", options(theirs, "127.0.0.1"))
    [misnamed] = FakeCluster().listen(reactor, "admin1", options(ours, "127.0.0.2"))
    [plain] = FakeCluster().listen(reactor, "admin1")
    try:
        good = client_for(server, ours_pem)
        assert (await good.sign_in("alice", PASSWORD))["user"]["username"] == "alice"
        await good.close()
        for refused, root, why in ((other, ours_pem, "--ca"), (misnamed, ours_pem, "another server"), (server, None, "--ca")):
            with pytest.raises(UntrustedServer, match=why):
                await client_for(refused, root).sign_in("alice", PASSWORD)
        with pytest.raises(Unreachable, match="TLS"):
            await client_for(plain, ours_pem, plain.url.replace("http:", "https:")).sign_in("alice", PASSWORD)
        assert not other.cluster.seen and not misnamed.cluster.seen
    finally:
        for one in (server, other, misnamed, plain):
            await one.stop()


def test_a_file_of_certificates_is_read_whatever_is_around_them(tmp_path: Path) -> None:
    """Several certificates with text between them are read; a file without one is refused in words."""
    pem = trustme.CA().cert_pem.bytes().decode()
    assert len(certificates_of(f"a comment\n{pem}more\n{pem}")) == 2
    for bad in ("", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"):
        with pytest.raises(ValueError, match="certificate"):
            certificates_of(bad)

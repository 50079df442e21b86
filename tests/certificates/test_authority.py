"""Authority, identities and what others say of our certificates."""

from __future__ import annotations

import ipaddress
import os
import shutil
import ssl
import stat
import subprocess
import time
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.utils import getProcessOutputAndValue
from zope.interface import implementer

from securifile.certificates.authority import Authority, BadSigningRequest
from securifile.certificates.identity import BACKDATED_S, Identity, TrustAnchors, make_csr, new_key, uri_of, verify_signature
from securifile.certificates.names import PersonUri, ServerUri
from securifile.model.servers import ServerKind

CLUSTER = "c1"
NOW = float(int(time.time()))
NODE = ServerUri(CLUSTER, ServerKind.NODE, "node-1")
ADA = PersonUri(CLUSTER, "ada")
DAY_S = 86400.0
PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests: it is a value."""
    return Authority.create(str(tmp_path_factory.mktemp("authority") / "ca"), CLUSTER, NOW)


def a_node(authority: Authority, lifetime_s: float = DAY_S) -> Identity:
    key = new_key()
    return Identity.of(key, authority.sign_server(make_csr(key), NODE, ["localhost", "127.0.0.1", "::1"], lifetime_s, NOW))


def a_person(authority: Authority) -> Identity:
    key = new_key()
    return Identity.of(key, authority.sign_person(make_csr(key), ADA, DAY_S, NOW))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- what is in a certificate ---


def test_a_servers_certificate(authority: Authority) -> None:
    """It names the server by URI and by hosts, is no authority, and is for both ends of TLS and nothing else."""
    certificate = a_node(authority).certificate
    extensions = {type(extension.value): extension for extension in certificate.extensions}
    assert uri_of(certificate) == NODE
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    assert extensions[x509.BasicConstraints].critical
    assert extensions[x509.BasicConstraints].value == x509.BasicConstraints(ca=False, path_length=None)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert x509.SubjectKeyIdentifier in extensions
    assert x509.AuthorityKeyIdentifier in extensions
    assert certificate.not_valid_before_utc.timestamp() == NOW - BACKDATED_S
    assert certificate.not_valid_after_utc.timestamp() == NOW + DAY_S


def test_a_persons_certificate(authority: Authority) -> None:
    """It names the person only, and cannot be a server's."""
    certificate = a_person(authority).certificate
    assert uri_of(certificate) == ADA
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert len(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == 1


def test_authorities_are_bounded(authority: Authority) -> None:
    """The root may have one authority beneath it, an intermediate none; they sign certificates and revocation lists only."""
    for pem, path_length in ((authority.anchors.root, 1), (authority.anchors.servers, 0), (authority.anchors.people, 0)):
        certificate = x509.load_pem_x509_certificate(pem)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=path_length))
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)


def test_who_signs_people_cannot_make_a_server(authority: Authority, tmp_path: Path) -> None:
    """Even a certificate that the people's intermediate signed for a server is none, to whoever believes the root."""
    key = new_key()
    false = attrs.evolve(authority, servers=authority._people)
    forged = Identity.of(key, false.sign_server(make_csr(key), NODE, ["localhost"], DAY_S, NOW))
    server = context(ssl.PROTOCOL_TLS_SERVER, authority.anchors, forged, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, authority.anchors, a_person(authority), tmp_path), "localhost")


def test_serial_numbers_are_random(authority: Authority) -> None:
    """Serial numbers are long and never the same, and fit the 20 bytes of RFC 5280."""
    serials = {a_node(authority).certificate.serial_number for _ in range(20)}
    assert len(serials) == 20
    assert all(0 < serial < 2**159 for serial in serials)
    assert max(serials).bit_length() > 128


def test_only_the_key_of_a_request_counts(authority: Authority) -> None:
    """A request that asks to be an authority, for another name and for everything, gets what everybody gets."""
    key = new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=5), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bank.example")]), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate = Identity.of(key, authority.sign_person(greedy.public_bytes(PEM), ADA, DAY_S, NOW)).certificate
    assert certificate.subject.rfc4514_string() == "CN=ada"
    assert uri_of(certificate) == ADA
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == []


def test_requests_that_are_not_signed(authority: Authority) -> None:
    """Nonsense, a request not signed with its own key, and weak keys are refused."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    good = x509.load_pem_x509_csr(make_csr(new_key())).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(good[:-4] + bytes(4)).public_bytes(PEM)
    weak = x509.CertificateSigningRequestBuilder().subject_name(name).sign(rsa.generate_private_key(65537, 1024), hashes.SHA256())
    odd = x509.CertificateSigningRequestBuilder().subject_name(name).sign(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256())
    for request in (b"", b"nonsense", authority.anchors.root, forged, weak.public_bytes(PEM), odd.public_bytes(PEM)):
        with pytest.raises(BadSigningRequest):
            authority.sign_person(request, ADA, DAY_S, NOW)


def test_other_good_keys_are_signed(authority: Authority) -> None:
    """People bring Ed25519 and RSA keys too."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for request in (
        builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
        builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
    ):
        chain = x509.load_pem_x509_certificates(authority.sign_person(request.public_bytes(PEM), ADA, DAY_S, NOW))
        assert chain[0].public_key() == request.public_key()
        chain[0].verify_directly_issued_by(chain[1])


def test_names_that_are_not_given(authority: Authority) -> None:
    """Another cluster's names, and hosts that are none, are refused."""
    csr = make_csr(new_key())
    with pytest.raises(ValueError, match="not of the cluster"):
        authority.sign_server(csr, attrs.evolve(NODE, cluster="c2"), [], DAY_S, NOW)
    for host in ("*.example.com", "a b", "", "-a", "a..b", "ä.example", "1.2.3.4/8"):
        with pytest.raises(ValueError, match="neither a DNS name nor an IP address"):
            authority.sign_server(csr, NODE, [host], DAY_S, NOW)


def test_no_certificate_outlives_its_authority(authority: Authority) -> None:
    """Whatever lifetime is asked for, it ends with the intermediate."""
    identity = a_node(authority, lifetime_s=100 * 365 * DAY_S)
    assert identity.certificate.not_valid_after_utc == identity.chain[1].not_valid_after_utc


# --- what is on the disk ---


def test_the_authority_is_kept(authority: Authority, tmp_path: Path) -> None:
    """An authority is made once, its keys are for its owner's eyes, and it is loaded without the root's key too."""
    home = tmp_path / "ca"
    made = Authority.create(str(home), CLUSTER, NOW)
    assert mode(home) == 0o700
    assert {path.name: mode(path) for path in home.iterdir() if path.suffix == ".key"} == {
        "root.key": 0o600,
        "servers.key": 0o600,
        "people.key": 0o600,
    }
    with pytest.raises(FileExistsError):
        Authority.create(str(home), CLUSTER, NOW)
    (home / "root.key").unlink()
    loaded = Authority.load(str(home))
    assert loaded == made
    assert a_node(loaded).chain[1] == x509.load_pem_x509_certificate(made.anchors.servers)
    shutil.copy(home / "people.key", home / "servers.key")
    with pytest.raises(ValueError, match=r"not the key of servers\.pem"):
        Authority.load(str(home))


def test_a_broken_beginning_is_begun_again(tmp_path: Path) -> None:
    """What a crash left of an authority half made does not stand in the way."""
    (tmp_path / "ca.new").mkdir()
    (tmp_path / "ca.new" / "root.key").write_bytes(b"half")
    Authority.create(str(tmp_path / "ca"), CLUSTER, NOW)
    assert os.listdir(tmp_path) == ["ca"]


def test_an_identity_is_kept(authority: Authority, tmp_path: Path) -> None:
    """Key and certificate come back as they were, from one private file; the authorities too."""
    identity = a_node(authority)
    a_node(authority).save(str(tmp_path))
    identity.save(str(tmp_path))
    authority.anchors.save(str(tmp_path))
    loaded = Identity.load(str(tmp_path))
    assert (loaded.chain, loaded.key_pem, loaded.uri) == (identity.chain, identity.key_pem, NODE)
    assert mode(tmp_path / "identity.pem") == 0o600
    assert TrustAnchors.load(str(tmp_path)) == authority.anchors
    assert sorted(os.listdir(tmp_path)) == ["identity.pem", "people.pem", "servers.pem", "trust.pem"]
    assert "PRIVATE" not in repr(loaded)


def test_a_key_needs_its_own_certificate(authority: Authority) -> None:
    """Key and certificate of two identities are no identity."""
    with pytest.raises(ValueError, match="not for this key"):
        Identity(new_key(), a_node(authority).chain)


def test_anchors_must_hang_together(authority: Authority, tmp_path: Path) -> None:
    """An intermediate that the root does not vouch for is not believed."""
    other = Authority.create(str(tmp_path / "ca"), CLUSTER, NOW).anchors
    with pytest.raises(ValueError, match="does not vouch"):
        attrs.evolve(authority.anchors, servers=other.servers)
    assert other.fingerprint != authority.anchors.fingerprint
    assert len(other.fingerprint) == 64


def test_renewal_is_due_after_two_thirds(authority: Authority) -> None:
    """Two thirds of the life, counted from its making and not from the date before it."""
    identity = a_node(authority, lifetime_s=90)
    assert not identity.renewal_due(NOW + 59)
    assert identity.renewal_due(NOW + 60)


def test_signatures(authority: Authority) -> None:
    """What an identity signs, its public key verifies; other data, another key and nonsense do not."""
    identity = a_node(authority)
    signature = identity.sign(b"ticket")
    assert verify_signature(identity.public_key_der, signature, b"ticket")
    assert not verify_signature(identity.public_key_der, signature, b"ticket!")
    assert not verify_signature(a_node(authority).public_key_der, signature, b"ticket")
    assert not verify_signature(b"nonsense", signature, b"ticket")


# --- what others say ---


def openssl_verify(
    tmp_path: Path, identity: Identity, purpose: str, anchor: bytes | None = None, *options: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "root.pem").write_bytes(anchor or b"")
    (tmp_path / "leaf.pem").write_bytes(identity.certificate.public_bytes(PEM))
    (tmp_path / "chain.pem").write_bytes(identity.chain[1].public_bytes(PEM))
    command = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        "root.pem",
        "-untrusted",
        "chain.pem",
        *options,
        "leaf.pem",
    ]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")
def test_openssl_finds_nothing_to_say(authority: Authority, tmp_path: Path) -> None:
    """The strict checks of OpenSSL pass, with the security level above the usual one; a person is no server to it."""
    root = authority.anchors.root
    node, person = a_node(authority), a_person(authority)
    for identity, purpose in ((node, "sslserver"), (node, "sslclient"), (person, "sslclient")):
        result = openssl_verify(tmp_path, identity, purpose, root, "-auth_level", "3")
        assert result.returncode == 0, result.stdout + result.stderr
    assert openssl_verify(tmp_path, node, "sslserver", root, "-verify_hostname", "localhost").returncode == 0
    assert openssl_verify(tmp_path, node, "sslserver", root, "-verify_ip", "127.0.0.1").returncode == 0
    assert openssl_verify(tmp_path, node, "sslserver", root, "-verify_hostname", "elsewhere").returncode != 0
    assert openssl_verify(tmp_path, person, "sslserver", root).returncode != 0
    assert openssl_verify(tmp_path, node, "sslserver", authority.anchors.servers, "-partial_chain").returncode == 0
    assert openssl_verify(tmp_path, person, "sslclient", authority.anchors.servers, "-partial_chain").returncode != 0


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    """TLS between two contexts, in memory. Raises `ssl.SSLError`."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def context(side: int, anchors: TrustAnchors, identity: Identity, tmp_path: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_verify_locations(cadata=anchors.root.decode())
    identity.save(str(tmp_path))
    made.load_cert_chain(tmp_path / "identity.pem")
    return made


def test_python_strictly_verifies_both_ends(authority: Authority, tmp_path: Path) -> None:
    """Python's TLS, strict as it is by default from 3.13 on, takes our certificates at both ends; a person cannot play the server."""
    node, person = a_node(authority), a_person(authority)
    server = context(ssl.PROTOCOL_TLS_SERVER, authority.anchors, node, tmp_path)
    for identity in (node, person):
        for host in ("localhost", "127.0.0.1"):
            handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, authority.anchors, identity, tmp_path), host)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(server, context(ssl.PROTOCOL_TLS_CLIENT, authority.anchors, node, tmp_path), "elsewhere.example")
    false_server = context(ssl.PROTOCOL_TLS_SERVER, authority.anchors, person, tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(false_server, context(ssl.PROTOCOL_TLS_CLIENT, authority.anchors, node, tmp_path), "localhost")


class Greeting(Protocol):
    """As little of HTTP as curl needs."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        self.transport.loseConnection()


@implementer(IOpenSSLContextFactory)
class FromFile:
    """A context of the files that an identity is kept in."""

    def __init__(self, path: str) -> None:
        self.path = path

    def getContext(self) -> SSL.Context:
        made = SSL.Context(SSL.TLS_METHOD)
        made.use_certificate_chain_file(self.path)
        made.use_privatekey_file(self.path)
        return made


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest_twisted.ensureDeferred
async def test_curl_takes_it(authority: Authority, tmp_path: Path) -> None:
    """`curl --cacert trust.pem` reaches a server with our certificate, by name and by address; without the root it does not."""
    a_node(authority).save(str(tmp_path))
    authority.anchors.save(str(tmp_path))
    endpoint = SSL4ServerEndpoint(reactor, 0, FromFile(str(tmp_path / "identity.pem")), interface="127.0.0.1")
    port = await endpoint.listen(Factory.forProtocol(Greeting))
    try:
        for host in ("127.0.0.1", "localhost"):
            curl = ["--silent", "--show-error", "--noproxy", "*", "--max-time", "10", f"https://{host}:{port.getHost().port}/"]
            trusting = ["--cacert", str(tmp_path / "trust.pem"), *curl]
            out, err, status = await getProcessOutputAndValue("curl", trusting, env=os.environ)
            assert (out, status) == (b"hello", 0), err
            out, err, status = await getProcessOutputAndValue("curl", curl, env=os.environ)
            assert (out, status) == (b"", 60), err
    finally:
        await port.stopListening()

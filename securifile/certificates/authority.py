"""The cluster's certificate authority: a root, one intermediate for servers, one for people.

    root (20 years, its key may be taken off the machine)
      +-- servers (10 years) -- leaf: securifile://CLUSTER/node/NAME, with its DNS names and addresses
      +-- people  (10 years) -- leaf: securifile://CLUSTER/person/NAME

A port that expects servers believes only the first intermediate, so that no person's certificate, whatever is in it, can
be taken for a server's; and the other way round.

Nothing of a signing request is used but its public key: names and purposes are the authority's to give. Certificates
follow RFC 5280 and pass strict checkers (`openssl verify -x509_strict`).
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from securifile.certificates.identity import BACKDATED_S, TrustAnchors, moment, new_key
from securifile.certificates.keeping import read_whole, sync_directory, write_private
from securifile.certificates.names import PersonUri, ServerUri, check_cluster

ROOT_DAYS = 20 * 365
INTERMEDIATE_DAYS = 10 * 365
"""Longer than anybody plans, since the root's key may be in a safe when it ends."""

RSA_BITS_MIN = 2048
"""What OpenSSL's security level 2, the usual one, still takes."""

COMMON_NAME_MAX = 64
"""RFC 5280, upper bound of a common name."""

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

_BOTH_ENDS = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_CLIENT_END = (ExtendedKeyUsageOID.CLIENT_AUTH,)

_AuthorityKey = ec.EllipticCurvePrivateKey
_LeafKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class BadSigningRequest(ValueError):
    """What was sent as a certificate signing request cannot be signed."""


@attrs.frozen
class _Issuer:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: _AuthorityKey = attrs.field(repr=False, eq=False)

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8, not encrypted."""
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@attrs.frozen
class Authority:
    """What can sign in a cluster's name. Holds the keys of the intermediates; the root's is needed only for `create`."""

    cluster: str
    anchors: TrustAnchors
    _servers: _Issuer
    _people: _Issuer

    @classmethod
    def create(cls, directory: str, cluster: str, now: float) -> Authority:
        """Make an authority and keep it in `directory`, which must be new or empty; there whole or not at all. Blocks.

        Args:
            directory: Where certificates and keys go; mode 0700, keys 0600.
            cluster: The cluster's id, a DNS label.
            now: Wall clock, seconds since 1970.

        Raises:
            FileExistsError: there is something in the directory.
        """
        check_cluster(cluster)
        directory = os.path.abspath(directory)
        if os.path.isdir(directory) and os.listdir(directory):
            raise FileExistsError(f"{directory} is not empty: an authority is made only once")
        root = _make_root(cluster, now)
        issuers = {
            "root": root,
            "servers": _make_intermediate(root, cluster, "servers", _BOTH_ENDS, now),
            "people": _make_intermediate(root, cluster, "people", _CLIENT_END, now),
        }
        beside = f"{directory}.new"
        shutil.rmtree(beside, ignore_errors=True)  # of an earlier try that did not come to its end
        os.makedirs(beside, 0o700)
        for name, issuer in issuers.items():
            write_private(os.path.join(beside, f"{name}.key"), issuer.key_pem)
            write_private(os.path.join(beside, f"{name}.pem"), issuer.pem, 0o644)
        os.rename(beside, directory)
        sync_directory(os.path.dirname(directory))
        return cls.load(directory)

    @classmethod
    def load(cls, directory: str) -> Authority:
        """What `create` left there; `root.key` may be missing. Blocks. Raises `FileNotFoundError`, `ValueError`."""
        root = read_whole(os.path.join(directory, "root.pem"))
        servers, people = _load_issuer(directory, "servers"), _load_issuer(directory, "people")
        anchors = TrustAnchors(root=root, servers=servers.pem, people=people.pem)
        names = servers.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        if len(names) != 1:
            raise ValueError(f"{directory} holds no authority of a cluster")
        return cls(check_cluster(str(names[0].value)), anchors, servers, people)

    def sign_server(self, csr_pem: bytes, uri: ServerUri, hosts: Sequence[str], lifetime_s: float, now: float) -> bytes:
        """A certificate for a server, then the intermediate: PEM, as a TLS server sends them.

        Args:
            csr_pem: The request; only its key is used.
            uri: Whom it is for; the caller has made sure of that.
            hosts: DNS names and IP addresses under which clients reach it.
            lifetime_s: From `now`; never beyond the intermediate's end.
            now: Wall clock, seconds since 1970.

        Raises:
            BadSigningRequest: not a request, not signed with its own key, or a key too weak.
            ValueError: the name is another cluster's, or one of `hosts` is neither DNS name nor address.
        """
        names = [_host_name(host) for host in dict.fromkeys(hosts)]
        return self._sign(self._servers, csr_pem, uri, names, _BOTH_ENDS, lifetime_s, now)

    def sign_person(self, csr_pem: bytes, uri: PersonUri, lifetime_s: float, now: float) -> bytes:
        """A certificate for a person, then the intermediate; see `sign_server`."""
        return self._sign(self._people, csr_pem, uri, [], _CLIENT_END, lifetime_s, now)

    def _sign(
        self,
        issuer: _Issuer,
        csr_pem: bytes,
        uri: ServerUri | PersonUri,
        names: Sequence[x509.GeneralName],
        purposes: Sequence[x509.ObjectIdentifier],
        lifetime_s: float,
        now: float,
    ) -> bytes:
        if uri.cluster != self.cluster:
            raise ValueError(f"{uri} is not of the cluster {self.cluster}")
        key = _key_of_request(csr_pem)
        end = min(moment(now + lifetime_s), issuer.certificate.not_valid_after_utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, uri.name[:COMMON_NAME_MAX])])
        leaf = (
            _builder(subject, issuer.certificate.subject, key, moment(now - BACKDATED_S), end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(uri)), *names]), critical=False)
            .add_extension(_pointer_to(issuer.certificate), critical=False)
            .sign(issuer.key, hashes.SHA256())
        )
        return leaf.public_bytes(serialization.Encoding.PEM) + issuer.pem


def _make_root(cluster: str, now: float) -> _Issuer:
    key = new_key()
    name = _authority_name(cluster, "root")
    begin, end = moment(now - BACKDATED_S), moment(now) + timedelta(days=ROOT_DAYS)
    builder = _authority_builder(name, name, key, begin, end, path_length=1).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
    )
    return _Issuer(builder.sign(key, hashes.SHA256()), key)


def _make_intermediate(root: _Issuer, cluster: str, whom: str, purposes: Sequence[x509.ObjectIdentifier], now: float) -> _Issuer:
    key = new_key()
    begin, end = moment(now - BACKDATED_S), moment(now) + timedelta(days=INTERMEDIATE_DAYS)
    builder = (
        _authority_builder(_authority_name(cluster, whom), root.certificate.subject, key, begin, end, path_length=0)
        # Not asked for by RFC 5280, but checkers refuse what goes beyond it: this one can never make a server of a person.
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(_pointer_to(root.certificate), critical=False)
    )
    return _Issuer(builder.sign(root.key, hashes.SHA256()), key)


def _authority_name(cluster: str, whom: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SecuriFile"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, f"SecuriFile {whom}"),
        ]
    )


def _authority_builder(
    subject: x509.Name, issuer: x509.Name, key: _AuthorityKey, begin: datetime, end: datetime, *, path_length: int
) -> x509.CertificateBuilder:
    return (
        _builder(subject, issuer, key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: _LeafKey, begin: datetime, end: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())  # 159 random bits
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pointer_to(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )


def _key_of_request(csr_pem: bytes) -> _LeafKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        proven = request.is_signature_valid
        key = request.public_key()
    except (InvalidSignature, TypeError, UnsupportedAlgorithm, ValueError) as error:
        raise BadSigningRequest("this is not a certificate signing request in PEM") from error
    if not proven:
        raise BadSigningRequest("the request is not signed with the key it asks a certificate for")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1):
        return key
    if isinstance(key, ed25519.Ed25519PublicKey) or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS_MIN):
        return key
    raise BadSigningRequest(f"the key must be ECDSA on P-256, P-384 or P-521, Ed25519, or RSA of at least {RSA_BITS_MIN} bits")


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if len(host) > 253 or not _DNS_NAME.fullmatch(host):
            raise ValueError(f"{host!r} is neither a DNS name nor an IP address") from None
        return x509.DNSName(host)


def _load_issuer(directory: str, name: str) -> _Issuer:
    key = serialization.load_pem_private_key(read_whole(os.path.join(directory, f"{name}.key")), password=None)
    certificate = x509.load_pem_x509_certificate(read_whole(os.path.join(directory, f"{name}.pem")))
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"{name}.key is not the key of {name}.pem")
    return _Issuer(certificate, key)

"""Who this server is, and whom it believes: its key with its certificate, and the cluster's authorities.

    identity.pem   the private key, the certificate, the intermediate that signed it (mode 0600)
    trust.pem      the root: what `curl --cacert` takes
    servers.pem    the intermediate that signs servers
    people.pem     the intermediate that signs people

Key and certificate are in one file because they change together: a crash cannot leave the one without the other.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime

import attrs
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from securifile.certificates.keeping import read_whole, write_private
from securifile.certificates.names import PersonUri, ServerUri, parse_uri

BACKDATED_S = 86_400
"""How long before its making a certificate is valid: a peer's clock may be behind."""

IDENTITY_FILE = "identity.pem"
SERVERS_FILE = "servers.pem"
_TRUST_FILES = {"root": "trust.pem", "servers": SERVERS_FILE, "people": "people.pem"}


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh private key: ECDSA on P-256, the fastest that every TLS client takes."""
    return ec.generate_private_key(ec.SECP256R1())


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate signing request (RFC 2986), PEM: the public key, and the proof that we have the private one.

    Its subject says nothing: the authority takes only the key from it.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "securifile")])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def uri_of(certificate: x509.Certificate) -> ServerUri | PersonUri:
    """Who a certificate speaks for. Says nothing about whether to believe it.

    Raises:
        ValueError: it has no such URI, or more than one URI.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no alternative names") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"the certificate has {len(uris)} URIs for a name, not one")
    return parse_uri(uris[0])


def verify_signature(public_key_der: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` was made by `Identity.sign` with the key of that SubjectPublicKeyInfo."""
    try:
        key = serialization.load_der_public_key(public_key_der)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


@attrs.frozen
class Identity:
    """A private key and the certificate for it, with the intermediate that signed it."""

    key: ec.EllipticCurvePrivateKey = attrs.field(repr=False, eq=False)
    chain: tuple[x509.Certificate, ...]
    """The certificate, then what vouches for it, without the root."""

    def __attrs_post_init__(self) -> None:
        if not self.chain or self.certificate.public_key() != self.key.public_key():
            raise ValueError("the certificate is not for this key")

    @classmethod
    def of(cls, key: ec.EllipticCurvePrivateKey, chain_pem: bytes) -> Identity:
        """From the key that a CSR was made with and what the authority answered. Raises `ValueError`."""
        return cls(key, tuple(x509.load_pem_x509_certificates(chain_pem)))

    @classmethod
    def load(cls, directory: str) -> Identity:
        """What `save` left there. Blocks. Raises `FileNotFoundError`, `ValueError`."""
        data = read_whole(os.path.join(directory, IDENTITY_FILE))
        key = serialization.load_pem_private_key(data, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the private key is not one for ECDSA")
        return cls.of(key, data)

    def save(self, directory: str) -> None:
        """Write `identity.pem`, in the place of an earlier one. Blocks."""
        write_private(os.path.join(directory, IDENTITY_FILE), self.key_pem + self.chain_pem)

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate itself."""
        return self.chain[0]

    @property
    def uri(self) -> ServerUri | PersonUri:
        """Who it speaks for. Raises `ValueError`."""
        return uri_of(self.certificate)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8, not encrypted."""
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    @property
    def chain_pem(self) -> bytes:
        """The certificate and its chain, as a TLS server sends them."""
        return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in self.chain)

    @property
    def public_key_der(self) -> bytes:
        """SubjectPublicKeyInfo (RFC 5280, 4.1.2.7): what the index keeps of a server."""
        return self.key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    @property
    def expires_at(self) -> float:
        """Wall clock, seconds since 1970."""
        return self.certificate.not_valid_after_utc.timestamp()

    def renewal_due(self, now: float) -> bool:
        """Whether two thirds of the certificate's life are over; `now` by the wall clock.

        The last third is for finding an admin server. The time it was dated back does not count as life.
        """
        begun = self.certificate.not_valid_before_utc.timestamp() + BACKDATED_S
        return now >= begun + (self.expires_at - begun) * 2 / 3

    def sign(self, data: bytes) -> bytes:
        """A signature over `data` (ECDSA with SHA-256, DER); `verify_signature` checks it."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def _pem(instance: object, attribute: attrs.Attribute[bytes], value: bytes) -> None:
    if len(x509.load_pem_x509_certificates(value)) != 1:
        raise ValueError(f"{attribute.name} should be one certificate")


@attrs.frozen(kw_only=True)
class TrustAnchors:
    """The cluster's authorities, each one certificate in PEM. The root vouches for the other two (checked)."""

    root: bytes = attrs.field(validator=_pem)
    servers: bytes = attrs.field(validator=_pem)
    people: bytes = attrs.field(validator=_pem)

    def __attrs_post_init__(self) -> None:
        root = x509.load_pem_x509_certificate(self.root)
        for pem in (self.root, self.servers, self.people):
            try:
                x509.load_pem_x509_certificate(pem).verify_directly_issued_by(root)
            except (InvalidSignature, TypeError, ValueError) as error:
                raise ValueError("an authority that the root does not vouch for") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root's DER, as 64 hexadecimal digits: what a join token carries."""
        return fingerprint(self.root)

    @classmethod
    def load(cls, directory: str) -> TrustAnchors:
        """What `save` left there. Blocks. Raises `FileNotFoundError`, `ValueError`."""
        return cls(**{name: read_whole(os.path.join(directory, file)) for name, file in _TRUST_FILES.items()})

    def save(self, directory: str) -> None:
        """Write `trust.pem`, `servers.pem` and `people.pem`. Blocks."""
        for name, file in _TRUST_FILES.items():
            write_private(os.path.join(directory, file), getattr(self, name), 0o644)


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of a certificate's DER, as 64 hexadecimal digits."""
    return hashlib.sha256(x509.load_pem_x509_certificate(certificate_pem).public_bytes(serialization.Encoding.DER)).hexdigest()


def leaf_key(chain_pem: bytes) -> bytes:
    """DER SubjectPublicKeyInfo of the first certificate of a chain."""
    key = x509.load_pem_x509_certificates(chain_pem)[0].public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def moment(now: float) -> datetime:
    """Whole seconds, as certificates have them."""
    return datetime.fromtimestamp(int(now), UTC)

"""A little authority for tests: a root, an intermediate for servers, another for people."""

from __future__ import annotations

import datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from securifile.protocol.tls import Credentials

_START = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
_END = _START + datetime.timedelta(days=30)
_ALGORITHM = hashes.SHA256()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """Something that signs."""

    def __init__(self, name: str, parent: Authority | None = None) -> None:
        self.name = _name(name)
        self.key = ec.generate_private_key(ec.SECP256R1())
        issuer = parent or self
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_START)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
            .sign(issuer.key, _ALGORITHM)
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, uris: list[str], dns: str = "localhost", expired: bool = False) -> tuple[bytes, bytes]:
        """A key and a chain, both PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name("leaf"))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_START)
            .not_valid_after(_START + datetime.timedelta(hours=1) if expired else _END)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([*names, x509.DNSName(dns)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, _ALGORITHM)
        )
        key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return key_pem, certificate.public_bytes(serialization.Encoding.PEM) + self.pem


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )


@cache
def authorities() -> tuple[Authority, Authority, Authority, Authority]:
    """Root, servers' intermediate, people's intermediate, and a stranger."""
    root = Authority("root")
    return root, Authority("servers", root), Authority("people", root), Authority("stranger")


def credentials(uri: str, signed_by: Authority | None = None, trust: bytes | None = None, expired: bool = False) -> Credentials:
    """What a server with this name shows; trusts the servers' intermediate."""
    _, servers, _, _ = authorities()
    key, chain = (signed_by or servers).issue([uri] if uri else [], expired=expired)
    return Credentials(key=key, chain=chain, trust=trust or servers.pem)

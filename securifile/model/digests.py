"""Message digests of versions: which algorithms there are, and what each is called elsewhere."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Protocol


class Hasher(Protocol):
    """What hashlib gives: an object that takes bytes and yields a digest."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes."""

    def digest(self) -> bytes:
        """The digest of all bytes taken so far."""


class DigestAlgorithm(StrEnum):
    """The algorithms an administrator may choose (the requirement: SHA-1, SHA-2 or SHA-3)."""

    SHA1 = "sha1"
    SHA224 = "sha224"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"
    SHA3_224 = "sha3-224"
    SHA3_256 = "sha3-256"
    SHA3_384 = "sha3-384"
    SHA3_512 = "sha3-512"

    def hasher(self) -> Hasher:
        """A fresh hasher."""
        return hashlib.new(self.value.replace("sha3-", "sha3_"))

    @property
    def bytes_long(self) -> int:
        """Length of a digest in bytes."""
        return hashlib.new(self.value.replace("sha3-", "sha3_")).digest_size


FIELD_NAMES: dict[str, DigestAlgorithm] = {
    "sha-256": DigestAlgorithm.SHA256,
    "sha-512": DigestAlgorithm.SHA512,
    "sha": DigestAlgorithm.SHA1,
}
"""Keys of `Repr-Digest` (RFC 9530, the registry 'Hash Algorithms for HTTP Digest Fields') for algorithms we have."""

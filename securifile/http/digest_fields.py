"""Digests in HTTP headers: RFC 9530, for the algorithms that have a name there.

`Repr-Digest: sha-256=:<base64>:` is a structured field (RFC 8941): a dictionary of byte sequences, each perhaps with parameters.
Only that much of structured fields is read here. Keys we do not know are passed over, as the RFC asks; the
SHA-3 family have no name there (SHA-1 is `sha`, deprecated), so versions made with the latter go without the header.
"""

from __future__ import annotations

import base64
import binascii
import re

from securifile.model.digests import FIELD_NAMES, DigestAlgorithm
from securifile.model.errors import Code, Refusal

_NAMES = {algorithm: name for name, algorithm in FIELD_NAMES.items()}
_KEY = r"([a-z*][a-z0-9_.*-]*)"
_BARE_ITEM = "|".join(
    (
        r":[A-Za-z0-9+/=]*:",
        r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"',
        r"\?[01]",
        r"-?[0-9]{1,15}(?:\.[0-9]{1,3})?",
        r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*",
    )
)
_PARAMETERS = rf"(?:;[ ]*[a-z*][a-z0-9_.*-]*(?:=(?:{_BARE_ITEM}))?)*"
_DIGEST = re.compile(rf"{_KEY}=:([A-Za-z0-9+/=]*):{_PARAMETERS}")
_WISH = re.compile(rf"{_KEY}=(10|[0-9]){_PARAMETERS}")
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def parse_digests(header: str) -> dict[DigestAlgorithm, bytes]:
    """The digests that a `Repr-Digest` or `Content-Digest` states, of the algorithms we have.

    Raises:
        Refusal: BAD_REQUEST when it is no dictionary of byte sequences, or a digest is not as long as its algorithm makes them.
    """
    digests: dict[DigestAlgorithm, bytes] = {}
    for match in _members(header, _DIGEST, "a list like sha-256=:<base64>:"):
        algorithm = FIELD_NAMES.get(match[1])
        if algorithm is None:
            continue
        try:
            digest = base64.b64decode(match[2], validate=True)
        except binascii.Error:
            raise Refusal(Code.BAD_REQUEST, f"The {match[1]} digest is not base64 between its colons.") from None
        if len(digest) != algorithm.bytes_long:
            raise Refusal(Code.BAD_REQUEST, f"A {match[1]} digest is {algorithm.bytes_long} bytes long; this one has {len(digest)}.")
        digests[algorithm] = digest
    return digests


def format_digest(algorithm: DigestAlgorithm, digest: bytes) -> str | None:
    """The value of `Repr-Digest` for a digest; None when RFC 9530 has no name for the algorithm."""
    name = _NAMES.get(algorithm)
    return None if name is None else f"{name}=:{base64.b64encode(digest).decode()}:"


def parse_wants(header: str) -> list[DigestAlgorithm]:
    """What a `Want-Repr-Digest` prefers among the algorithms we have, the most wanted first; weight 0 means never.

    Raises:
        Refusal: BAD_REQUEST when it is no dictionary of weights from 0 to 10.
    """
    weights: dict[DigestAlgorithm, int] = {}
    for match in _members(header, _WISH, "a list like sha-256=10"):
        algorithm = FIELD_NAMES.get(match[1])
        if algorithm is not None:
            weights[algorithm] = int(match[2])
    return sorted((algorithm for algorithm, weight in weights.items() if weight), key=lambda algorithm: -weights[algorithm])


def _members(header: str, member: re.Pattern[str], looks: str) -> list[re.Match[str]]:
    text = header.strip(" ")
    matches: list[re.Match[str]] = []
    at = 0
    while at < len(text) or matches:
        match = member.match(text, at)
        if match is None:
            raise Refusal(Code.BAD_REQUEST, f"The digest header must be {looks} (RFC 9530).")
        matches.append(match)
        at = match.end()
        if at == len(text):
            break
        comma = _COMMA.match(text, at)
        if comma is None:
            raise Refusal(Code.BAD_REQUEST, f"The digest header must be {looks} (RFC 9530).")
        at = comma.end()
    return matches

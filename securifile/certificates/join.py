"""The join token: all that a new node has to be told, in one line that can be copied.

    securifile-join-v1.<base64url of JSON>.<checksum>

It names the admin servers, the node it is for, and a secret that is good for one node, once. With the fingerprint of
the root certificate the new node knows whom it talks to before it says the secret to anybody. The checksum
is there for people: a token cut short by the mouse is told from one that is wrong.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable

import attrs

from securifile.certificates.names import check_cluster
from securifile.model.servers import check_server_name

PREFIX = "securifile-join-v1"
_FAMILY = "securifile-join-"
_CHECKSUM_DIGITS = 8
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def _as_tuple(value: Iterable[str]) -> tuple[str, ...]:
    return tuple(value)


def _urls(instance: object, attribute: object, value: tuple[str, ...]) -> None:
    if not value or not all(isinstance(url, str) and url.startswith(("https://", "http://")) for url in value):
        raise ValueError(f"a join token names admin servers by https:// URLs (http:// when TLS is off), not {value!r}")


def _fingerprint(instance: object, attribute: object, value: str) -> None:
    if not _FINGERPRINT.fullmatch(value):
        raise ValueError(f"a fingerprint is 64 hexadecimal digits in lower case, not {value!r}")


def _secret(instance: object, attribute: object, value: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError("a join token has a secret")


@attrs.frozen(kw_only=True)
class JoinToken:
    """An invitation for one node."""

    admins: tuple[str, ...] = attrs.field(converter=_as_tuple, validator=_urls)
    """Where admin servers answer: `https://host:port`, at least one; `http://` from an admin server that runs with `--no-tls`."""
    fingerprint: str = attrs.field(validator=_fingerprint)
    """SHA-256 of the root certificate's DER, as 64 hexadecimal digits: `TrustAnchors.fingerprint`."""
    cluster: str = attrs.field(converter=check_cluster)
    name: str = attrs.field(converter=check_server_name)
    """The node's name; nobody else can use the token for another."""
    secret: str = attrs.field(repr=False, validator=_secret)

    def encode(self) -> str:
        """The line to copy. Treat it as a password."""
        body = json.dumps(attrs.asdict(self), separators=(",", ":"), sort_keys=True).encode()
        encoded = base64.urlsafe_b64encode(body).rstrip(b"=").decode()
        return f"{PREFIX}.{encoded}.{_checksum(encoded)}"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read what `encode` wrote; white space, as line breaks leave it, is passed over. Fields it does not know are too.

        Raises:
            ValueError: with a sentence for the person who pasted it; the secret is never in it.
        """
        prefix, *rest = "".join(text.split()).split(".")
        if not prefix.startswith(_FAMILY):
            raise ValueError(f"this is no join token: one begins with {PREFIX!r}")
        if prefix != PREFIX:
            raise ValueError(f"this join token is of another version ({prefix[:40]}); this release reads {PREFIX}")
        if len(rest) != 2 or _checksum(rest[0]) != rest[1]:
            raise ValueError("this join token is damaged, or not all of it was copied; copy it again")
        try:
            body = json.loads(base64.b64decode(rest[0] + "=" * (-len(rest[0]) % 4), altchars=b"-_", validate=True))
            return cls(**{field.name: body[field.name] for field in attrs.fields(cls)})
        except (KeyError, TypeError, UnicodeDecodeError, binascii.Error, json.JSONDecodeError) as error:
            raise ValueError(f"this join token is whole, and yet not understood ({type(error).__name__}); ask for a new one") from None


def _checksum(encoded: str) -> str:
    return hashlib.sha256(f"{PREFIX}.{encoded}".encode()).hexdigest()[:_CHECKSUM_DIGITS]

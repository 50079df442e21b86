"""Tickets: how a redirect to another node carries who is asking.

Clients drop `Authorization` when a redirect changes the host, so the new URL has a ticket in its query, signed by the node that
redirected. It grants nothing: the receiver judges rights from its own index, once that has reached the ticket's position.
It is worth a minute, for one method, one file and one node, and must not be in any log: `redact_uri`.

    1.<payload>.<signature>      base64url without padding; payload: JSON, keys sorted; signature: ECDSA, SHA-256, over `1.<payload>`
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import unquote_plus

import attrs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from securifile.model.errors import Code, Refusal
from securifile.model.ids import AttemptId, EntryId, Position

HOPS_MAX = 3
"""Redirects that one request may go through: origin, first and second priority."""
LIFETIME_MAX_S = 600.0
"""No ticket is believed for longer, whatever it says: an issuer's clock may be wrong."""
CLOCK_SKEW_S = 5.0
"""Servers' clocks are kept by NTP; a ticket is believed this much longer."""
TICKET_BYTES_MAX = 2048
"""Far above what a ticket takes; far below what a URL may have."""

_VERSION = "1"
_PARAMETER = "ticket"
_UNPADDED = re.compile(r"[A-Za-z0-9_-]+")

Text = TypeVar("Text", str, bytes)


@attrs.frozen(kw_only=True)
class Ticket:
    """Who wants what, and from which node."""

    issuer: str
    """The node that redirected."""
    person: str
    method: str
    file: EntryId
    """For a path that is not there yet: the id that its first version will have, or its parent's."""
    node: str
    """The only one that may accept it."""
    expires_at: float
    """Wall clock, seconds since 1970."""
    position: Position
    """Of the issuer's index: the receiver must have reached it before it judges."""
    hops: int = attrs.field(validator=[attrs.validators.ge(1), attrs.validators.le(HOPS_MAX)])
    """Redirects so far, this one included."""
    name: str | None = None
    """Of a new path: the name in the folder that `file` is; the ticket is for no other."""
    version: int | None = None
    """Of a writing ticket: the version it may make."""
    attempt: AttemptId | None = None
    """Of an upload that has one already."""
    session: str | None = None
    """Hash (hexadecimal) of the token of the person's session, when it was one: the ticket ends with the session."""
    credentials: int | None = None
    """The person's `credentials` at that time: a changed password voids the ticket."""


def issue(ticket: Ticket, sign: Callable[[bytes], bytes]) -> str:
    """The ticket as text for a URL's query.

    Args:
        ticket: what it says.
        sign: with the issuer's key, as `signer_of` makes one.
    """
    signed = f"{_VERSION}.{_encode(_pack(ticket))}"
    return f"{signed}.{_encode(sign(signed.encode('ascii')))}"


def verify(
    text: str,
    *,
    now: float,
    this_node: str,
    method: str,
    public_key_of: Callable[[str], bytes | None],
    is_running: Callable[[str], bool],
) -> Ticket:
    """Read a ticket and decide whether to believe it.

    Args:
        text: as it came in the URL.
        now: wall clock, seconds since 1970.
        this_node: our name.
        method: of the request; a ticket for `GET` is also one for `HEAD`.
        public_key_of: the DER SubjectPublicKeyInfo of a server, None when it is no member.
        is_running: whether a server is held for running: one that is not redirects nobody.

    Raises:
        Refusal: TICKET_INVALID, saying why.
    """
    version, _, rest = text.partition(".")
    payload, _, signature = rest.partition(".")
    if version != _VERSION or len(text) > TICKET_BYTES_MAX:
        raise _invalid("it cannot be read")
    ticket = _unpack(_decode(payload))
    key = public_key_of(ticket.issuer)
    if key is None:
        raise _invalid("its issuer is not a member of the cluster")
    if not _is_signed(key, _decode(signature), f"{version}.{payload}".encode("ascii")):
        raise _invalid("its signature is wrong")
    if not is_running(ticket.issuer):
        raise _invalid("its issuer is not running")
    if not now - CLOCK_SKEW_S < ticket.expires_at < now + LIFETIME_MAX_S:
        raise _invalid("it has expired")
    if ticket.node != this_node:
        raise _invalid("it is for another server")
    if method != ticket.method and (method, ticket.method) != ("HEAD", "GET"):
        raise _invalid("it is for another method")
    return ticket


def signer_of(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """What signs tickets with this key."""
    return lambda data: key.sign(data, ec.ECDSA(SHA256()))


def next_hop(hops: int) -> int:
    """The `hops` of a ticket for the next redirect, after a request that came with `hops` (0: without ticket).

    Raises:
        Refusal: TOO_MANY_REDIRECTS.
    """
    if hops >= HOPS_MAX:
        raise Refusal(
            Code.TOO_MANY_REDIRECTS, "The servers do not agree on who has this file; try again in a moment.", retry_after_s=2.0, hops=hops
        )
    return hops + 1


def with_ticket(url: str, text: str) -> str:
    """`url` with this ticket in its query, in place of any other."""
    path, mark, query = url.partition("?")
    kept = [part for part in query.split("&") if mark and part and not _is_ticket(part)]
    return f"{path}?{'&'.join([*kept, f'{_PARAMETER}={text}'])}"


def redact_uri(uri: Text) -> Text:
    """`uri` as it may be logged: with `-` in place of any ticket."""
    if isinstance(uri, bytes):
        return redact_uri(uri.decode("latin-1")).encode("latin-1")
    path, mark, query = uri.partition("?")
    if not mark:
        return uri
    return f"{path}?{'&'.join(f'{_PARAMETER}=-' if _is_ticket(part) else part for part in query.split('&'))}"


def _is_ticket(part: str) -> bool:
    return unquote_plus(part.partition("=")[0]).strip().lower() == _PARAMETER


def _invalid(why: str) -> Refusal:
    return Refusal(Code.TICKET_INVALID, f"The ticket in the URL is not valid: {why}. Send the request again to where you sent it first.")


def _pack(ticket: Ticket) -> bytes:
    members: dict[str, Any] = {name: value for name, value in attrs.asdict(ticket, recurse=False).items() if value is not None}
    members["file"] = str(ticket.file)
    members["position"] = [ticket.position.epoch, ticket.position.revision]
    if ticket.attempt is not None:
        members["attempt"] = str(ticket.attempt)
    return json.dumps(members, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _unpack(payload: bytes) -> Ticket:
    try:
        members = json.loads(payload)
        epoch, revision = members["position"]
        attempt = members.get("attempt")
        ticket = Ticket(
            issuer=members["issuer"],
            person=members["person"],
            method=members["method"],
            file=EntryId.parse(members["file"]),
            node=members["node"],
            expires_at=members["expires_at"],
            position=Position(epoch, revision),
            hops=members["hops"],
            name=members.get("name"),
            version=members.get("version"),
            attempt=None if attempt is None else AttemptId.parse(attempt),
            session=members.get("session"),
            credentials=members.get("credentials"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _invalid("it cannot be read") from None
    texts = (ticket.issuer, ticket.person, ticket.method, ticket.node, ticket.name or "", ticket.session or "")
    numbers = (epoch, revision, ticket.hops, ticket.version or 0, ticket.credentials or 0)
    if (
        not all(isinstance(text, str) for text in texts)
        or not all(type(number) is int for number in numbers)
        or type(ticket.expires_at) not in (int, float)
    ):
        raise _invalid("it cannot be read")
    return ticket


def _is_signed(key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        public = load_der_public_key(key)
        if not isinstance(public, ec.EllipticCurvePublicKey):
            return False
        public.verify(signature, data, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    if not _UNPADDED.fullmatch(text):
        raise _invalid("it cannot be read")
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise _invalid("it cannot be read") from None

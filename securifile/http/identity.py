"""Who is asking: the `Authorization` header, bearer tokens, and a short memory for verified passwords.

A password is verified by an admin server with a deliberately slow hash. `curl -u` sends it with each request, so a node remembers for a
few minutes that it was right: as a keyed hash whose key lives and dies with the process, never the password. The memory of a
person is void as soon as their `credentials` number differs: the feed brings it when the password changes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IReactorTime

from securifile.model.errors import Code, Refusal

TOKEN_BYTES = 32
"""Of randomness in a bearer token: nobody guesses 256 bits."""
REMEMBERED_S = 600.0
"""How long a verified password is remembered."""
REMEMBERED_MAX = 10_000
"""Entries in the memory; the oldest goes."""
_SECRET_BYTES_MAX = 1024
"""Of a token or password: longer ones are nobody's, and cost hashing."""


@attrs.frozen
class BearerToken:
    """A sign-in's token, as `POST /sessions` gave it."""

    token: str = attrs.field(repr=False)


@attrs.frozen
class BasicPassword:
    """A username (or e-mail address) with a password."""

    username: str
    password: str = attrs.field(repr=False)


Credentials = BearerToken | BasicPassword


def parse_authorization(header: str | None) -> Credentials | None:
    """What an `Authorization` header says (RFC 6750, RFC 7617 in UTF-8); None when there is none.

    Raises:
        Refusal: BAD_CREDENTIALS when it cannot be read, or is of another kind.
    """
    if header is None:
        return None
    scheme, _, rest = header.strip(" ").partition(" ")
    rest = rest.strip(" ")
    if len(rest) > 2 * _SECRET_BYTES_MAX:
        raise Refusal(Code.BAD_CREDENTIALS, "The Authorization header is too long.")
    match scheme.lower():
        case "bearer":
            if not rest or not rest.isascii() or not rest.isprintable() or " " in rest or "," in rest:
                raise Refusal(Code.BAD_CREDENTIALS, "The Authorization header must be the word Bearer, a space and one token.")
            return BearerToken(rest)
        case "basic":
            try:
                username, colon, password = base64.b64decode(rest, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                username = colon = password = ""
            if not colon or not username or "\0" in username + password:
                raise Refusal(Code.BAD_CREDENTIALS, "The Authorization header must be the word Basic and base64 of username:password.")
            return BasicPassword(username, password)
        case _:
            raise Refusal(Code.BAD_CREDENTIALS, "Credentials must be of the kind Bearer or Basic.")


def new_token(random: Callable[[int], bytes]) -> str:
    """A fresh bearer token.

    Args:
        random: gives so many bytes nobody can foresee (`os.urandom`).
    """
    return base64.urlsafe_b64encode(random(TOKEN_BYTES)).rstrip(b"=").decode("ascii")


def token_hash(token: str) -> bytes:
    """What servers keep of a token: its SHA-256. A token is random, so that a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


@attrs.frozen
class _Remembered:
    username: str
    credentials: int
    until: float


class BasicCache:
    """Remembers which passwords were right, for a while."""

    def __init__(self, clock: IReactorTime, random: Callable[[int], bytes]) -> None:
        self._clock = clock
        self._key = random(32)
        self._right: OrderedDict[bytes, _Remembered] = OrderedDict()

    def __len__(self) -> int:
        return len(self._right)

    def look(self, basic: BasicPassword, credentials_of: Callable[[str], int | None]) -> str | None:
        """The username that this password is known to be right for; None: ask an admin server.

        Args:
            basic: as it came; its username may be an e-mail address.
            credentials_of: the present `credentials` number of a person by username, None when there is no such person.
        """
        mark = self._mark(basic)
        known = self._right.get(mark)
        if known is None:
            return None
        if known.until <= self._clock.seconds() or credentials_of(known.username) != known.credentials:
            del self._right[mark]
            return None
        return known.username

    def remember(self, basic: BasicPassword, username: str, credentials: int) -> None:
        """An admin server has just said that this password is right for `username`, whose number is `credentials`."""
        mark = self._mark(basic)
        self._right[mark] = _Remembered(username, credentials, self._clock.seconds() + REMEMBERED_S)
        self._right.move_to_end(mark)
        while len(self._right) > REMEMBERED_MAX:
            self._right.popitem(last=False)

    def forget(self, username: str) -> None:
        """Drop what is remembered of a person."""
        for mark in [mark for mark, known in self._right.items() if known.username == username]:
            del self._right[mark]

    def _mark(self, basic: BasicPassword) -> bytes:
        # The length before the name keeps "ab" + "c" apart from "a" + "bc".
        name, password = (text.encode("utf-8", "surrogatepass") for text in (basic.username, basic.password))
        return hmac.digest(self._key, len(name).to_bytes(4, "big") + name + password, "sha256")

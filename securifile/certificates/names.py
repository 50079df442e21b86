"""Who a certificate speaks for: one URI, and nothing else in the certificate counts.

    securifile://CLUSTER/node/NAME      a storage node
    securifile://CLUSTER/admin/NAME     an admin server
    securifile://CLUSTER/person/NAME    a person (the name percent-encoded, RFC 3986)

None of the three may hold a character that a URI would escape, so each name has exactly one spelling: two spellings of one
name are how checks get past each other.
"""

from __future__ import annotations

import re

import attrs

from securifile.model.errors import Refusal
from securifile.model.paths import check_username
from securifile.model.servers import ServerKind, check_server_name

SCHEME = "securifile"

CLUSTER_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A cluster's id: a DNS label, because it stands where a URI has its host."""


def check_cluster(cluster: str) -> str:
    """`cluster`, if it can be a cluster's id. Raises `ValueError`."""
    if not CLUSTER_ID.fullmatch(cluster):
        raise ValueError(f"{cluster!r} is no cluster id: 1 to 63 of a-z, 0-9 and inner hyphens")
    return cluster


def _cluster(instance: object, attribute: object, value: str) -> None:
    check_cluster(value)


def _server_name(instance: object, attribute: object, value: str) -> None:
    check_server_name(value)


def _person_name(instance: object, attribute: object, value: str) -> None:
    try:
        check_username(value)
    except Refusal as refusal:
        raise ValueError(f"{value!r} is no person's name: {refusal.detail}") from refusal


@attrs.frozen
class ServerUri:
    """The name of a server in its certificate; `str` gives the URI."""

    cluster: str = attrs.field(validator=_cluster)
    kind: ServerKind
    name: str = attrs.field(validator=_server_name)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.cluster}/{self.kind.value}/{self.name}"


@attrs.frozen
class PersonUri:
    """The name of a person in their certificate; `str` gives the URI."""

    cluster: str = attrs.field(validator=_cluster)
    name: str = attrs.field(validator=_person_name)

    def __str__(self) -> str:
        return f"{SCHEME}://{self.cluster}/person/{self.name}"


def parse_uri(text: str) -> ServerUri | PersonUri:
    """Read what `str` of either wrote. Raises `ValueError` for everything else, other spellings included."""
    scheme, separator, rest = text.partition("://")
    parts = rest.split("/")
    if scheme != SCHEME or not separator or len(parts) != 3:
        raise ValueError(f"{text!r} is not {SCHEME}://CLUSTER/KIND/NAME")
    cluster, kind, name = parts
    return PersonUri(cluster, name) if kind == "person" else ServerUri(cluster, ServerKind(kind), name)

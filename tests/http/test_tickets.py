"""Tickets: issued, believed, refused, and kept out of logs."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from securifile.http.authentication import Caller
from securifile.http.redirects import check_ticket
from securifile.http.tickets import HOPS_MAX, Ticket, issue, next_hop, redact_uri, signer_of, verify, with_ticket
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Person
from securifile.model.ids import AttemptId, EntryId, Position

KEY, OTHER_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
SIGN = signer_of(KEY)
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
TICKET = Ticket(
    issuer="node1",
    person="ada",
    method="PUT",
    file=EntryId(bytes(16)),
    node="node2",
    expires_at=1060.0,
    position=Position(1, 7),
    hops=1,
    version=4,
    attempt=AttemptId(bytes(range(16))),
)
BELIEVED: dict[str, Any] = {
    "now": 1000.0,
    "this_node": "node2",
    "method": "PUT",
    "public_key_of": {"node1": PUBLIC}.get,
    "is_running": lambda name: name == "node1",
}


def refused(text: str, **changes: Any) -> str:
    with pytest.raises(Refusal) as caught:
        verify(text, **{**BELIEVED, **changes})
    assert caught.value.code is Code.TICKET_INVALID
    return caught.value.detail


@pytest.mark.parametrize("ticket", [TICKET, attrs.evolve(TICKET, version=None, attempt=None, session="ab", credentials=3)])
def test_a_ticket_is_believed(ticket: Ticket) -> None:
    """What was issued is read back, and fits into a URL as it is."""
    text = issue(ticket, SIGN)
    assert verify(text, **BELIEVED) == ticket
    assert all(letter.isalnum() or letter in "-_." for letter in text)


def test_a_ticket_to_get_is_one_to_head() -> None:
    """But not the other way, and not to change anything."""
    text = issue(attrs.evolve(TICKET, method="GET"), SIGN)
    assert verify(text, **{**BELIEVED, "method": "HEAD"}).method == "GET"
    assert "method" in refused(text)
    assert "method" in refused(issue(attrs.evolve(TICKET, method="HEAD"), SIGN), method="GET")


def test_what_is_not_believed() -> None:
    """Another server, another time, another key, an issuer that is down or unknown."""
    text = issue(TICKET, SIGN)
    assert "another server" in refused(text, this_node="node3")
    assert "expired" in refused(text, now=1066.0)
    assert "expired" in refused(issue(attrs.evolve(TICKET, expires_at=9999.0), SIGN))
    assert "expired" in refused(issue(attrs.evolve(TICKET, expires_at=float(10**300)), SIGN))
    assert "not running" in refused(text, is_running=lambda name: False)
    assert "member" in refused(text, public_key_of=lambda name: None)
    assert "signature" in refused(text, public_key_of=lambda name: b"not a key")
    assert "signature" in refused(issue(TICKET, signer_of(OTHER_KEY)))


@given(st.integers(0, 10_000), st.sampled_from("A_-.z=%"))
def test_a_changed_letter_voids_it(index: int, letter: str) -> None:
    """No letter can be changed, except those that mean the same bits."""
    text = issue(TICKET, SIGN)
    index %= len(text)
    changed = text[:index] + letter + text[index + 1 :]
    try:
        assert verify(changed, **BELIEVED) == TICKET
        assert index == len(text) - 1 or changed == text
    except Refusal as refusal:
        assert refusal.code is Code.TICKET_INVALID


@given(st.one_of(st.text(max_size=60), st.binary(max_size=60).map(lambda data: "1." + data.hex() + "." + data.hex())))
def test_any_text_is_refused(text: str) -> None:
    """Nothing else is a ticket, and no text makes the reader fail."""
    refused(text)


def test_redirects_end() -> None:
    """Three hops, not more."""
    assert [next_hop(hops) for hops in range(HOPS_MAX)] == [1, 2, 3]
    with pytest.raises(Refusal):
        next_hop(HOPS_MAX)


def test_urls_with_tickets() -> None:
    """The ticket comes last, once; logs do not get it, however its name is written."""
    assert with_ticket("https://b/x", "T") == "https://b/x?ticket=T"
    assert with_ticket("https://b/x?a=b&ticket=old&c", "T") == "https://b/x?a=b&c&ticket=T"
    assert redact_uri("/x?a=b&ticket=secret&c=d") == "/x?a=b&ticket=-&c=d"
    assert redact_uri(b"/x?%74icket=secret") == b"/x?ticket=-"
    assert redact_uri("/x?TICKET=secret&ticket=secret") == "/x?ticket=-&ticket=-"
    assert redact_uri("/ticket=x") == "/ticket=x"
    assert redact_uri("/x?atticket=1") == "/x?atticket=1"


def test_a_ticket_for_a_new_path_is_for_that_name() -> None:
    """In the folder that it names, the ticket makes the file that was asked for, and no other."""
    person = Person(
        username="ada",
        email="ada@example.org",
        administrator=False,
        valid_from=0.0,
        valid_until=None,
        disabled=False,
        quota_bytes=None,
        credentials=1,
    )
    parent = EntryId(b"p" * 16)
    ticket = verify(issue(attrs.evolve(TICKET, file=parent, name="x", version=1), SIGN), **BELIEVED)
    caller = Caller(person=person, ticket=ticket)
    check_ticket(caller, parent, 1, name="x")
    for file, version, name in ((parent, 1, "y"), (parent, 1, None), (parent, 2, "x"), (EntryId(b"q" * 16), 1, "x")):
        with pytest.raises(Refusal) as caught:
            check_ticket(caller, file, version, name=name)
        assert caught.value.code is Code.CONFLICT

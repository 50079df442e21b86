"""Rules about accounts."""

from __future__ import annotations

from securifile.model.errors import Code, Refusal
from securifile.model.facts import Person


def check_account(person: Person, now: float) -> None:
    """Raise `Refusal` unless the account may be used at wall-clock time `now`."""
    if person.disabled:
        raise Refusal(Code.ACCOUNT_CLOSED, "This account is disabled. Ask the administrator.")
    if now < person.valid_from:
        raise Refusal(Code.ACCOUNT_CLOSED, "This account is not valid yet. Ask the administrator.")
    if person.valid_until is not None and now >= person.valid_until:
        raise Refusal(Code.ACCOUNT_CLOSED, "This account has expired. Ask the administrator.")

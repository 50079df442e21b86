"""What the admin server's own routes ask of a request: whom it is about, and whether the caller may."""

from __future__ import annotations

from securifile.http.exchange import Access
from securifile.http.request import Request
from securifile.http.targets import percent_decode
from securifile.model.errors import Code, Refusal


def name_in(request: Request) -> str:
    """The name in a path like `/api/v1/users/NAME/…`. Raises `Refusal` BAD_PATH."""
    return percent_decode(request.path.split(b"/")[4])


def administrator(access: Access) -> None:
    """Raise `Refusal` FORBIDDEN unless the caller is an administrator."""
    if not access.signed_in.person.administrator:
        raise Refusal(Code.FORBIDDEN, "Only an administrator may do this.")


def self_or_administrator(access: Access, username: str) -> str:
    """`username`, if the caller may know of it: what is not theirs is not there. Raises `Refusal` NOT_FOUND."""
    if access.signed_in.username != username and not access.signed_in.person.administrator:
        raise Refusal(Code.NOT_FOUND, f"There is no person {username}, or you may not see them.")
    return username

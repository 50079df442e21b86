"""The local operator: who can read `operator.json` in the data folder of an admin server administers it.

The key is drawn at each start and lives in that file and in this process's memory. The operator is no person: no files, no rights on
any, no account that another server would know.
"""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest

from securifile.http.authentication import Authenticator, Caller
from securifile.http.backend import Backend
from securifile.http.identity import BasicCache, BearerToken, parse_authorization, token_hash
from securifile.http.request import Request
from securifile.model.facts import Person

OPERATOR = Person(
    # No account can have this name, so it can never meet the rights of one.
    username="@operator",
    email="",
    administrator=True,
    valid_from=0.0,
    valid_until=None,
    disabled=False,
    quota_bytes=0,
    credentials=0,
)


class OperatorAuthenticator(Authenticator):
    """Knows the operator's key too."""

    def __init__(self, backend: Backend, cache: BasicCache, operator_token: str, must_know_rights: Callable[[], None]) -> None:
        """Args:
        must_know_rights: raises `Refusal` while the catalogue's rights cannot be trusted; the operator's own can.
        """
        super().__init__(backend, cache)
        self._must_know_rights = must_know_rights
        self._operator_hash = token_hash(operator_token)

    async def caller(self, request: Request) -> Caller:
        """See `Authenticator.caller`."""
        if request.query("ticket") is None:
            credentials = parse_authorization(request.header("authorization"))
            if isinstance(credentials, BearerToken) and compare_digest(token_hash(credentials.token), self._operator_hash):
                return Caller(person=OPERATOR)
        self._must_know_rights()
        return await super().caller(request)

    async def again(self, caller: Caller) -> Caller:
        """See `Authenticator.again`."""
        if caller.person is OPERATOR:
            return caller
        self._must_know_rights()
        return await super().again(caller)

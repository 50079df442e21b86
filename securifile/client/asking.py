"""Requests to a cluster: which server is asked, what is tried again, and who is sent the token.

One server is drawn at random at first (so the load of all clients spreads) and kept to until it fails; then the next is tried.
Redirects are followed with their tickets.

What happens when a request fails depends on what is then known:

| failure | known | so |
|---|---|---|
| no connection; 503; a ticket that came too late | certainly not done | try another server |
| broken on the way; 500, 502, 504 | unknown | try another if repeating does no harm, else say `Uncertain` |
| any other refusal | certainly not done, and would not be elsewhere | `Problem` |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from json import dumps, loads
from typing import Any
from urllib.parse import urlencode, urljoin

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from securifile.client.errors import Problem, Uncertain, Unreachable, UntrustedServer
from securifile.client.exchange import Answer, Broken, Content, Http, NotSent, Untrusted
from securifile.client.wire import split_url
from securifile.http.whole import Whole
from securifile.model.errors import Code

HOPS_MAX = 3
"""Redirects that are followed for one request (section 4 of the design)."""
ROUNDS = 4
"""Times each server is asked before a request is given up. With the pauses between: longer than a fail-over takes (1.5 s)."""
PAUSE_S = 0.25
"""Before the servers are asked a second time; doubled from then on."""
PAUSE_MAX_S = 4.0
"""No pause is longer, whatever `Retry-After` says: a person waits."""
PAGE = 1000

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class KnownServer:
    """A server of the cluster, as the sign-in told of it."""

    name: str
    url: str
    kind: str = "node"
    status: str = "running"


class Asking:
    """Asks the servers of one cluster for one person.

    Args:
        http: makes single requests; decides about trust.
        servers: at least one.
        clock: for pauses between tries.
        random: for the choice of server.
        token: of an earlier sign-in.

    Attributes:
        token: the bearer token; a secret.
    """

    def __init__(
        self, http: Http, servers: Sequence[KnownServer], *, clock: IReactorTime, random: Callable[[int], bytes], token: str | None = None
    ) -> None:
        self._http = http
        self._clock = clock
        self._random = random
        self._servers: list[KnownServer] = []
        self.token = token
        self.know(servers)

    @property
    def servers(self) -> tuple[KnownServer, ...]:
        """The servers that are known, the one that is asked first at the front."""
        return tuple(self._servers)

    async def close(self) -> None:
        """Break off every connection."""
        await self._http.close()

    def know(self, servers: Sequence[KnownServer]) -> None:
        """Take over a list of servers, in an order drawn at random: the first is the one that this client talks to."""
        self._servers = sorted(servers, key=lambda _: self._random(8))

    def _in_order(self, kind: str) -> list[KnownServer]:
        """The servers to ask, one after the other: those of the right kind and running first."""
        return sorted(self._servers, key=lambda server: (server.kind != kind, server.status != "running"))

    def avoid(self, url: str) -> None:
        """Ask the server at this URL last from now on, because it failed."""
        self._servers.sort(key=lambda server: _same_origin(server.url, url))

    async def delete(self, path: str, *, kind: str) -> None:
        """Have something deleted. That it is not there when that is tried again says that it was."""
        await self.json("DELETE", path, kind=kind, repeatable=True, done_code=Code.NOT_FOUND)

    async def json(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        kind: str,
        repeatable: bool = False,
        anonymous: bool = False,
        done_code: str | None = None,
    ) -> Json:
        """The object that some server answers with; arguments and errors as of `request`."""
        fields = {"Accept": "application/json"}
        content: Callable[[], Content] | None = None
        if body is not None:
            fields["Content-Type"] = "application/json"
            text = dumps(body).encode()

            def content() -> Content:
                return Content(source=Whole(text), length=len(text))

        answer = await self.request(
            method,
            path,
            kind=kind,
            fields=fields,
            content=content,
            repeatable=repeatable or method == "GET",
            anonymous=anonymous,
            done_code=done_code,
        )
        try:
            return parsed(await answer.content(), answer)
        except Broken as error:
            raise Uncertain(f"{method} {path}", str(error)) from error

    async def pages(self, path: str, member: str, *, kind: str) -> AsyncIterator[Json]:
        """All members of a list that comes in pages."""
        after: str | None = None
        while True:
            query = {"limit": PAGE, **({"after": after} if after is not None else {})}
            page = await self.json("GET", f"{path}?{urlencode(query)}", kind=kind)
            for one in page.get(member, ()):
                yield one
            following = page.get("next")
            if following is None or following == after:
                return
            after = str(following)

    async def request(
        self,
        method: str,
        path: str,
        *,
        kind: str,
        fields: Mapping[str, str],
        content: Callable[[], Content] | None = None,
        repeatable: bool = False,
        anonymous: bool = False,
        done_code: str | None = None,
    ) -> Answer:
        """An answer below 400 from some server.

        Args:
            method: of HTTP.
            path: with its query, percent-encoded.
            kind: of the servers that are asked first.
            fields: beside those that every request has.
            content: makes the content anew for each try.
            repeatable: whether it does no harm to carry it out twice.
            anonymous: without credentials.
            done_code: the refusal that, after a try whose outcome is unknown, says that this try had done it.

        Raises:
            Problem, Unreachable, UntrustedServer, Uncertain: see the table above.
        """
        what = f"{method} {path.partition('?')[0]}"
        reasons: list[tuple[str, str]] = []
        last: Problem | Uncertain | None = None
        for turn in range(ROUNDS):
            if turn:
                wished_s = last.retry_after_s if isinstance(last, Problem) else None
                await self.pause(max(PAUSE_S * 2 ** (turn - 1), wished_s or 0.0))
            for server in self._in_order(kind):
                try:
                    answer = await self._follow(server, method, path, fields, content, anonymous)
                except Untrusted as error:
                    if len(self._servers) == 1:
                        raise UntrustedServer(server.url, str(error)) from error
                    reasons.append((server.url, str(error)))
                except NotSent as error:
                    reasons.append((server.url, str(error)))
                except Broken as error:
                    reasons.append((server.url, str(error)))
                    last = Uncertain(what, str(error))
                    if not repeatable:
                        raise last from error
                else:
                    if answer.status < 400:
                        return answer
                    problem = await self._problem(answer)
                    if isinstance(last, Uncertain) and problem.code == done_code:
                        return answer
                    if not _worth_another(problem, repeatable):
                        raise problem
                    reasons.append((server.url, problem.detail))
                    last = Uncertain(what, problem.detail) if problem.status in _UNKNOWN and method not in ("GET", "HEAD") else problem
                self.avoid(server.url)
        if last is None or (isinstance(last, Uncertain) and method in ("GET", "HEAD")):
            raise Unreachable(reasons)
        raise last

    async def pause(self, seconds: float) -> None:
        """Wait before another try."""
        await deferLater(self._clock, min(seconds, PAUSE_MAX_S))

    async def _follow(
        self,
        server: KnownServer,
        method: str,
        path: str,
        fields: Mapping[str, str],
        content: Callable[[], Content] | None,
        anonymous: bool,
    ) -> Answer:
        """Ask one server, and where it sends us. Raises `NotSent`, `Broken`."""
        url = server.url.rstrip("/") + path
        for _ in range(HOPS_MAX + 1):
            answer = await self._http.request(
                method, url, {**fields, **({} if anonymous else self._credentials(url))}, content() if content else None
            )
            if answer.status not in (307, 308):
                return answer
            location = answer.fields.get("Location")
            # Read to its end, so that the connection can be used again; a long one is not worth it.
            await _drain(answer)
            if location is None:
                raise Problem(answer.status, "bad-answer", f"{server.url} redirects without saying where to.")
            following = urljoin(url, location)
            self._check_redirect(url, following)
            url = following
        raise Problem(503, Code.TOO_MANY_REDIRECTS, f"The servers redirected this request more than {HOPS_MAX} times. Try again soon.")

    def _credentials(self, url: str) -> dict[str, str]:
        """The token, for the servers of this cluster and nobody else.

        A redirect to a node carries a ticket, and needs nothing more. One to an admin server (for what nodes do not answer)
        carries none; there the token goes along if the sign-in named that server, since it would have been given it anyway.
        """
        if self.token is None or "ticket=" in url.partition("?")[2]:
            return {}
        return {"Authorization": f"Bearer {self.token}"} if any(_same_origin(known.url, url) for known in self._servers) else {}

    def _check_redirect(self, source: str, destination: str) -> None:
        try:
            old, new = split_url(source)[0], split_url(destination)[0]
        except ValueError:
            raise Problem(502, "bad-answer", "A server redirects to something that is no URL.") from None
        if old.scheme == "https" and new.scheme != "https":
            raise Problem(502, "bad-answer", f"A server redirects from TLS to plain HTTP at {new}; that is not followed.")

    async def _problem(self, answer: Answer) -> Problem:
        """The refusal that an answer is."""
        try:
            text = await answer.content(1 << 20)
            members = loads(text) if "json" in (answer.fields.get("Content-Type") or "") else {}
        except (Broken, ValueError):
            members = {}
        if not isinstance(members, dict):
            members = {}
        known = {"type", "title", "status", "code", "detail", "instance"}
        detail = members.get("detail") or members.get("title") or f"{origin_of(answer.url)} answered with status {answer.status}."
        after = answer.fields.get("Retry-After") or ""
        return Problem(
            answer.status,
            str(members.get("code", f"http-{answer.status}")),
            str(detail),
            {name: value for name, value in members.items() if name not in known},
            float(after) if after.isdecimal() else None,
        )


_UNKNOWN = (500, 502, 504)
"""Statuses after which nobody knows whether the request was carried out (guarantee 1)."""


def _worth_another(problem: Problem, repeatable: bool) -> bool:
    """Whether another server, or the same one later, may answer better."""
    if problem.status == 503 or problem.code == Code.TICKET_INVALID:
        return True
    return repeatable and problem.status in _UNKNOWN


def server_of(member: Mapping[str, Any]) -> KnownServer:
    """A server as the API tells of it."""
    return KnownServer(
        name=str(member.get("name", "")),
        url=str(member["url"]),
        kind=str(member.get("kind", "node")),
        status=str(member.get("status", "running")),
    )


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL, without its ticket."""
    return str(split_url(url)[0])


def _same_origin(one: str, other: str) -> bool:
    try:
        return split_url(one)[0] == split_url(other)[0]
    except ValueError:
        return False


async def _drain(answer: Answer) -> None:
    try:
        await answer.content(65536)
    except Broken:
        answer.close()


def parsed(text: bytes, answer: Answer) -> Json:
    """The object that an answer holds; an empty one where there is no content."""
    if not text or answer.status >= 400:
        return {}
    try:
        value = loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Problem(502, "bad-answer", f"{origin_of(answer.url)} answered with something other than JSON. Is it a server of SecuriFile?")
    return value

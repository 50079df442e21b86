"""The routes that every server has: sessions, folders, deletes, moves, rights.

What differs between a node and an admin server is behind `Backend`, and how a file's content is given and taken behind `Contents`.
Every access by a person goes to the audit trail here: reads noted, writes kept on disk before they are answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import quote

from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from securifile.http.answers import details_json, entry_json, path_text, person_json, time_text, verified_json
from securifile.http.archives import Archives
from securifile.http.authentication import Authenticator, Caller
from securifile.http.backend import Backend
from securifile.http.exchange import CLIENT_GONE, Access, Answer, Streamed, record_of
from securifile.http.json_body import Fields, answer_json, read_json
from securifile.http.lookup import Lookup, authorise
from securifile.http.problems import refusal_of, status_of
from securifile.http.ranges import Verdict, etag_of, evaluate, parse_preconditions
from securifile.http.request import HeaderList, Request
from securifile.http.routing import Run
from securifile.http.targets import Target, parse_place, parse_target
from securifile.model.errors import Code, OutcomeUnknown, Refusal, SpoolFull, StreamBroken
from securifile.model.facts import File, Folder
from securifile.model.ids import EntryId
from securifile.model.records import AuditRecord
from securifile.model.roles import GRANTABLE, Action, Role, permits
from securifile.protocol import messages as m
from securifile.sql import directory

PAGE = 500
"""Entries a page, unless asked for fewer."""
PAGE_MAX = 1000
"""More than this in one answer would hold up everybody else's."""

Handler = Callable[[Request, Access], Awaitable[Answer | Streamed]]


class Contents(Protocol):
    """How this server gives and takes the content of files."""

    async def get(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """Answer `GET` or `HEAD` of a file."""

    async def put(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """Answer `PUT` of a file."""


class SharedApi:
    """The common routes on one server."""

    _log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        backend: Backend,
        authenticator: Authenticator,
        lookup: Lookup,
        contents: Contents,
        archives: Archives,
    ) -> None:
        self._clock = clock
        self._lookup = lookup
        self._backend = backend
        self._authenticator = authenticator
        self._contents = contents
        self._archives = archives
        self.branches: dict[tuple[bytes, bytes], Run] = {}
        """The routes below a prefix, by method and prefix."""

    def register(self, app: Klein) -> None:
        """Put the routes on `app`."""
        self.route(app, "/api/v1/sessions", "POST", "sign-in", self._sign_in, anonymous=True)
        self.route(app, "/api/v1/sessions/current", "DELETE", "sign-out", self._sign_out)
        self.route(app, "/api/v1/move", "POST", "move", self._move)
        self.route(app, "/api/v1/shared", "GET", "list-shared", self._shared)
        for method, event, handler in (
            ("GET", "read", self._get),
            ("HEAD", "look", self._get),
            ("PUT", "write", self._put),
            ("DELETE", "delete", self._delete),
        ):
            self.route(app, "/api/v1/files/", method, event, handler, branch=True)
        for method, event in (("GET", "archive"), ("HEAD", "look")):
            self.route(app, "/api/v1/archive/", method, event, self._archive, branch=True)
        self.route(app, "/api/v1/details/", "GET", "details", self._details, branch=True)
        for method, event, handler in (
            ("GET", "list-access", self._grants),
            ("PUT", "grant", self._grant),
            ("DELETE", "revoke", self._revoke),
        ):
            self.route(app, "/api/v1/access/", method, event, handler, branch=True)

    def route(
        self,
        app: Klein,
        path: str,
        method: str,
        event: str,
        handler: Handler,
        *,
        anonymous: bool = False,
        branch: bool = False,
        always: HeaderList = (),
    ) -> None:
        """Put one route on `app`: admitted, authenticated (unless `anonymous`) and recorded as `event`.

        Args:
            always: headers of every answer, refusals too.
        """

        async def run(request: Request, *_: object, **__: object) -> bytes | None:
            if always:
                request.add_always(always)
            return await self._run(request, event, handler, anonymous)

        if branch:
            self.branches[method.encode("ascii"), path.encode("ascii")] = run
        app.route(path, methods=[method], branch=branch, endpoint=f"{method} {path}")(run)

    async def _run(self, request: Request, event: str, handler: Handler, anonymous: bool) -> bytes | None:
        access = Access(event=event)
        began = self._clock.seconds()
        audit = self._backend.audit
        try:
            if not audit.has_room():
                raise Refusal(Code.LOG_FULL, "This server cannot write down any more accesses now. Try again later.", retry_after_s=5.0)
            await self._backend.admit()
            if not anonymous:
                access.caller = await self._authenticator.caller(request)
                request.user = access.caller.username
            answer = await handler(request, access)
        except (StreamBroken, CancelledError) as error:
            self._note(self._record(request, access, began, CLIENT_GONE, "the client went away"))
            if request.is_over:
                # Nobody is left to be answered. Of a request that is over Klein takes everything but a cancellation for a bug.
                raise CancelledError from error
            raise
        except Exception as error:
            refusal = refusal_of(error)
            if refusal is not None and refusal.code is not Code.NO_CREDENTIALS:
                self._note(self._record(request, access, began, status_of(refusal.code), refusal.code.value))
            elif refusal is None:
                self._note(self._record(request, access, began, 500, type(error).__name__))
            raise
        record = self._record(request, access, began, answer.status, access.detail)
        if request.method in (b"GET", b"HEAD") and not access.changed:
            audit.note(record)
        else:
            await self._keep(record)
        if isinstance(answer, Streamed):
            return None
        if answer.value is None:
            request.setResponseCode(answer.status)
            for name, value in answer.headers:
                request.setHeader(name, value)
            return b""
        return answer_json(request, answer.status, answer.value, answer.headers)

    def _note(self, record: AuditRecord) -> None:
        """Record what was not done, or not as far as is known. What becomes of the record must not hide what became of the request."""
        try:
            self._backend.audit.note(record)
        except SpoolFull:
            self._log.error(
                "no room to record {event} of {person}: {status}", event=record.event, person=record.person, status=record.status
            )

    async def _keep(self, record: AuditRecord) -> None:
        """Record what was done. That there is no room for it is no refusal any more: then who asked is told that they cannot be sure."""
        try:
            await self._backend.audit.keep(record)
        except SpoolFull as full:
            raise OutcomeUnknown(f"it was done, but could not be written down: {full}") from full

    def _record(self, request: Request, access: Access, began: float, status: int, detail: str | None) -> AuditRecord:
        return record_of(self._backend, request, access, status, duration_s=self._clock.seconds() - began, detail=detail)

    # --- sessions ---

    async def _sign_in(self, request: Request, access: Access) -> Answer:
        fields = Fields(await read_json(request))
        username, password = fields.text("username", max=254), fields.text("password", max=1024)
        fields.finish()
        access.detail = username
        signed = await self._backend.sign_in(m.SignIn(username=username, password=password, peer=request.peer))
        person = await self._backend.read(lambda sql: directory.person(sql, signed.username))
        if person is None:
            raise Refusal(Code.ACCOUNT_CLOSED, "This account does not exist any more.")
        access.caller = Caller(person=person)
        servers = [
            {"name": server.name, "url": server.url, "kind": server.kind.value, "status": server.status.value}
            for server in self._backend.roster.servers.values()
        ]
        return Answer(
            status=201,
            value={"token": signed.token, "expires_at": time_text(signed.expires_at), "user": person_json(person), "servers": servers},
        )

    async def _sign_out(self, request: Request, access: Access) -> Answer:
        session = access.signed_in.session
        if session is None:
            raise Refusal(Code.BAD_REQUEST, "Only a sign-in with a token can be ended.")
        await self._backend.sign_out(m.SignOut(token_hash=session))
        return Answer(status=204)

    # --- files and folders ---

    async def _get(self, request: Request, access: Access) -> Answer | Streamed:
        target = parse_target(request.path)
        if not target.folder:
            return await self._contents.get(request, access, target)
        access.event = "list"
        found = await self._lookup.find(access, target, Action.READ)
        limit = page_limit(request)
        after = request.query("after") or ""
        entries = await self._backend.read(lambda sql: directory.children(sql, found.entry.id, after, limit + 1))
        value: dict[str, Any] = {
            "path": str(target),
            "id": str(found.entry.id),
            "owner": found.entry.owner,
            "role": found.role.value,
            "entries": [entry_json(entry) for entry in entries[:limit]],
        }
        return paged(request, value, entries[limit - 1].name if len(entries) > limit else None)

    async def _archive(self, request: Request, access: Access) -> Answer | Streamed:
        return await self._archives.get(request, access, parse_target(request.path, kind="archive"))

    async def _put(self, request: Request, access: Access) -> Answer | Streamed:
        target = parse_target(request.path)
        if not target.folder:
            return await self._contents.put(request, access, target)
        access.event = "make-folder"
        if request.has_body and await request.body.read():
            raise Refusal(Code.BAD_REQUEST, "A folder has no content. Leave the slash at the end away to upload a file.")
        place, role = await self._lookup.look(access, target)
        if place.entry is not None:
            authorise(role, Action.READ)
            raise Refusal(Code.EXISTS, "There is something at this path already.")
        parent = self._lookup.parent_of(place, role)
        folder = EntryId(self._backend.new_id())
        await self._backend.act(
            m.MakeFolder(person=access.signed_in.username, owner=target.owner, parent=parent.id, name=target.name, id=folder)
        )
        access.entry = folder
        return Answer(status=201, value={"path": str(target), "id": str(folder), "kind": "folder"})

    async def _delete(self, request: Request, access: Access) -> Answer:
        target = parse_target(request.path)
        found = await self._lookup.find(access, target, Action.DELETE)
        if not target.folder and isinstance(found.entry, Folder):
            raise Refusal(Code.IS_A_FOLDER, "This is a folder. Put a slash at the end to delete it.")
        version: int | None = None
        if isinstance(found.entry, File):
            preconditions = parse_preconditions(request.header)
            if evaluate(preconditions, "DELETE", etag_of(found.entry.id, found.entry.version.number)) is not Verdict.PROCEED:
                raise Refusal(Code.PRECONDITION_FAILED, "The precondition does not hold.")
            version = found.entry.version.number if request.header("if-match") is not None else None
        await self._backend.act(
            m.Delete(person=access.signed_in.username, entry=found.entry.id, recursive=request.query("recursive") == "1", version=version)
        )
        return Answer(status=204)

    async def _move(self, request: Request, access: Access) -> Answer:
        fields = Fields(await read_json(request))
        source, target = parse_place(fields.text("from", max=8192)), parse_place(fields.text("to", max=8192))
        fields.finish()
        found = await self._lookup.find(access, source, Action.MOVE)
        place, role = await self._lookup.look(access, target)
        if place.entry is not None and place.entry.id != found.entry.id:
            authorise(role, Action.READ)
            raise Refusal(Code.EXISTS, "There is something at the new path already.")
        authorise(role, Action.MOVE)
        parent = self._lookup.parent_of(place, role)
        await self._backend.act(m.Move(person=access.signed_in.username, entry=found.entry.id, parent=parent.id, name=target.name))
        access.path, access.entry, access.detail = str(source), found.entry.id, f"to {target}"
        return Answer(status=200, value={"path": str(target), "id": str(found.entry.id)})

    async def _details(self, request: Request, access: Access) -> Answer:
        target = parse_target(request.path, kind="details")
        found = await self._lookup.find(access, target, Action.READ)
        servers = self._backend.roster.servers
        value = details_json(
            found.entry, str(target), found.role, lambda name: servers[name].status.value if name in servers else "removed"
        )
        if isinstance(found.entry, File):
            holder = self._backend.lock_holder(found.entry.id.value)
            value["lock"] = None if holder is None else {"person": holder[0], "node": holder[1], "expires_in_s": round(holder[2], 3)}
            checked = await self._backend.checked(found.entry.id)
            if checked is not None:
                value |= verified_json(found.entry.version, checked)
        return Answer(status=200, value=value)

    # --- rights ---

    async def _grants(self, request: Request, access: Access) -> Answer:
        target = parse_target(request.path, kind="access")
        found = await self._lookup.find(access, target, Action.READ)
        own_only = not permits(found.role, Action.SHARE)

        async def ask(sql: Any) -> list[dict[str, Any]]:
            grants = []
            for depth, above in enumerate(found.place.chain):
                for grant in await directory.grants_on(sql, above.id):
                    path = path_text(target.owner, target.segments[:depth])
                    grants.append({"user": grant.username, "role": grant.role.value, "granted_by": grant.granted_by, "path": path})
            return grants

        grants = await self._backend.read(ask)
        username = access.signed_in.username
        shown = [grant for grant in grants if not own_only or grant["user"] == username]
        return Answer(status=200, value={"path": str(target), "owner": found.entry.owner, "role": found.role.value, "grants": shown})

    async def _grant(self, request: Request, access: Access) -> Answer:
        target = parse_target(request.path, kind="access")
        fields = Fields(await read_json(request))
        username, role = fields.text("user", max=64), fields.choice("role", Role)
        fields.finish()
        if role not in GRANTABLE:
            raise Refusal(Code.BAD_REQUEST, "Ownership cannot be given. Choose master, editor or reader.")
        found = await self._lookup.find(access, target, Action.SHARE)
        access.detail = f"{username} {role}"
        await self._backend.act(m.SetGrant(person=access.signed_in.username, entry=found.entry.id, username=username, role=role))
        return Answer(status=200, value={"path": str(target), "user": username, "role": role.value})

    async def _revoke(self, request: Request, access: Access) -> Answer:
        target = parse_target(request.path, kind="access")
        username = request.query("user")
        if not username:
            raise Refusal(Code.BAD_REQUEST, "Say whose right is to be taken: ?user=NAME.")
        leaving = username == access.signed_in.username
        found = await self._lookup.find(access, target, Action.READ if leaving else Action.SHARE)
        access.detail = username
        await self._backend.act(m.SetGrant(person=access.signed_in.username, entry=found.entry.id, username=username, role=None))
        return Answer(status=204)

    async def _shared(self, request: Request, access: Access) -> Answer:
        limit = page_limit(request)
        after = cursor_of(request)
        username = access.signed_in.username
        located = await self._backend.read(lambda sql: directory.shared_with(sql, username, after, limit + 1))
        value = {
            "shared": [
                {
                    **entry_json(one.entry),
                    "path": path_text(one.entry.owner, one.segments),
                    "owner": one.entry.owner,
                    "role": one.role.value if one.role is not None else None,
                }
                for one in located[:limit]
            ]
        }
        return paged(request, value, str(located[limit - 1].entry.id) if len(located) > limit else None)


def page_limit(request: Request) -> int:
    """How many to list. Raises `Refusal`."""
    text = request.query("limit")
    if text is None:
        return PAGE
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= PAGE_MAX):
        raise Refusal(Code.BAD_REQUEST, f"limit is a number from 1 to {PAGE_MAX}.")
    return int(text)


def cursor_of(request: Request) -> bytes:
    """The `after` of a list that goes by id. Raises `Refusal`."""
    text = request.query("after")
    try:
        return b"" if text is None else EntryId.parse(text).value
    except ValueError as error:
        raise Refusal(Code.BAD_REQUEST, "after is what the page before gave as next.") from error


def paged(request: Request, value: dict[str, Any], following: str | None) -> Answer:
    """A page of a list, with `next` and a `Link` (RFC 8288) when there is more."""
    if following is None:
        return Answer(status=200, value=value)
    base = request.path.decode("ascii", "replace")
    limit = request.query("limit")
    query = f"after={quote(following, safe='')}" + (f"&limit={limit}" if limit else "")
    link = f'<{base}?{query}>; rel="next"'.encode("ascii")
    return Answer(status=200, value={**value, "next": following}, headers=((b"Link", link),))

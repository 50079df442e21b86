"""The routes about people: administrators make, change and remove accounts; everybody sees and changes a little of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klein import Klein

from securifile.admin.backend import AdminBackend
from securifile.admin.catalogue import Catalogue
from securifile.admin.people import NewPerson
from securifile.admin.requests import administrator, name_in, self_or_administrator
from securifile.http.answers import entry_json, parse_time, path_text, person_json
from securifile.http.exchange import Access, Answer
from securifile.http.identity import new_token
from securifile.http.json_body import Fields, read_json
from securifile.http.request import Request
from securifile.http.shared_api import SharedApi, cursor_of, page_limit, paged
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Person
from securifile.protocol import messages as m
from securifile.sql import directory

TIME_LOOKS = "a time like 2026-12-31T23:59:59Z"

_PASSWORD_LETTERS = 16
"""Of a generated password: 96 bits, typed once."""


class PeopleApi:
    """`/api/v1/users`."""

    def __init__(self, *, backend: AdminBackend, catalogue: Catalogue, random: Callable[[int], bytes]) -> None:
        self._backend = backend
        self._people = catalogue.people
        self._random = random

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`, authenticated and recorded as `api` does."""
        one = "/api/v1/users/<name>"
        api.route(app, "/api/v1/users", "GET", "list-users", self._list)
        api.route(app, "/api/v1/users", "POST", "add-user", self._add)
        api.route(app, one, "GET", "show-user", self._show)
        api.route(app, one, "PATCH", "change-user", self._change)
        api.route(app, one, "DELETE", "remove-user", self._remove)
        api.route(app, f"{one}/usage", "GET", "show-usage", self._usage)
        api.route(app, f"{one}/files", "GET", "list-files", self._files)

    async def _list(self, request: Request, access: Access) -> Answer:
        administrator(access)
        limit, after = page_limit(request), request.query("after") or ""
        found = await self._backend.read(lambda sql: directory.people(sql, after, limit + 1))
        value = {"users": [person_json(person) for person in found[:limit]]}
        return paged(request, value, found[limit - 1].username if len(found) > limit else None)

    async def _add(self, request: Request, access: Access) -> Answer:
        administrator(access)
        fields = Fields(await read_json(request))
        username, email = fields.text("username", max=64), fields.text("email", max=254)
        given = fields.optional_text("password")
        password = new_token(self._random)[:_PASSWORD_LETTERS] if given is None else given
        new = NewPerson(
            username=username,
            email=email,
            password=password,
            administrator=fields.boolean("administrator", False),
            valid_from=_optional_time(fields, "valid_from"),
            valid_until=_optional_time(fields, "valid_until"),
            quota_bytes=fields.optional_integer("quota_bytes"),
        )
        fields.finish()
        access.detail = username
        person = await self._backend.enter(self._people.add(new))
        value = person_json(person) if given is not None else {**person_json(person), "password": password}
        return Answer(status=201, value=value, headers=((b"Location", f"/api/v1/users/{username}".encode("ascii")),))

    async def _person(self, username: str) -> Person:
        person = await self._backend.read(lambda sql: directory.person(sql, username))
        if person is None:
            raise Refusal(Code.NOT_FOUND, f"There is no person {username}.")
        return person

    async def _show(self, request: Request, access: Access) -> Answer:
        username = self_or_administrator(access, name_in(request))
        return Answer(status=200, value=person_json(await self._person(username)))

    async def _change(self, request: Request, access: Access) -> Answer:
        username = self_or_administrator(access, name_in(request))
        fields = Fields(await read_json(request))
        access.detail = username
        changes: dict[str, Any] = {}
        if fields.has("email"):
            changes["email"] = fields.text("email", max=254)
        if fields.has("password"):
            changes["password"] = fields.text("password")
        current = fields.optional_text("current_password")
        if access.signed_in.person.administrator:
            for name in ("administrator", "disabled"):
                if fields.has(name):
                    changes[name] = fields.boolean(name)
            if fields.has("valid_from"):
                changes["valid_from"] = fields.convert("valid_from", parse_time, TIME_LOOKS)
            if fields.has("valid_until"):
                changes["valid_until"] = _optional_time(fields, "valid_until")
            if fields.has("quota_bytes"):
                changes["quota_bytes"] = fields.optional_integer("quota_bytes")
        elif any(fields.has(name) for name in ("administrator", "disabled", "valid_from", "valid_until", "quota_bytes")):
            raise Refusal(Code.FORBIDDEN, "Only an administrator may change this. You may change your e-mail address and your password.")
        fields.finish()
        if "password" in changes and username == access.signed_in.username:
            # A stolen session must not be enough to take the account over.
            if current is None:
                raise Refusal(Code.BAD_REQUEST, "Give your present password too, as current_password.")
            await self._backend.check_password(m.CheckPassword(username=username, password=current, peer=request.peer))
        access.detail = f"{username}: {', '.join(sorted(changes))}"
        return Answer(status=200, value=person_json(await self._backend.enter(self._people.change(username, **changes))))

    async def _remove(self, request: Request, access: Access) -> Answer:
        administrator(access)
        username = access.detail = name_in(request)
        await self._backend.enter(self._people.remove(username, with_files=request.query("files") == "1"))
        return Answer(status=204)

    async def _usage(self, request: Request, access: Access) -> Answer:
        username = self_or_administrator(access, name_in(request))
        person = await self._person(username)
        used = await self._backend.read(lambda sql: directory.usage(sql, username))
        return Answer(status=200, value={"username": username, "files": used.files, "bytes": used.bytes, "quota_bytes": person.quota_bytes})

    async def _files(self, request: Request, access: Access) -> Answer:
        username = self_or_administrator(access, name_in(request))
        await self._person(username)
        limit, after = page_limit(request), cursor_of(request)
        found = await self._backend.read(lambda sql: directory.files_of(sql, username, after, limit + 1))
        value = {"files": [{**entry_json(one.entry), "path": path_text(username, one.segments)} for one in found[:limit]]}
        return paged(request, value, str(found[limit - 1].entry.id) if len(found) > limit else None)


def _optional_time(fields: Fields, name: str) -> float | None:
    text = fields.optional_text(name, max=64)
    return None if text is None else float(Fields({name: text}).convert(name, parse_time, TIME_LOOKS))

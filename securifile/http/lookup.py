"""Finding what a path names, and what the caller is to it."""

from __future__ import annotations

from typing import Any

import attrs

from securifile.http.answers import path_text
from securifile.http.backend import Backend
from securifile.http.exchange import Access
from securifile.http.targets import Target
from securifile.model.errors import Code, Refusal
from securifile.model.facts import Entry, File, Folder
from securifile.model.roles import Action, Role, permits
from securifile.sql import directory
from securifile.sql.directory import Place

NOT_HERE = "There is nothing here, or nothing that you may see."


@attrs.frozen(kw_only=True)
class Found:
    """An entry at a path, and what the caller is to it."""

    place: Place
    entry: Entry
    role: Role


def authorise(role: Role | None, action: Action) -> Role:
    """`role`, if it allows `action`; what may not even be read is not there. Raises `Refusal`."""
    if role is None or not permits(role, Action.READ):
        raise Refusal(Code.NOT_FOUND, NOT_HERE)
    if not permits(role, action):
        raise Refusal(Code.FORBIDDEN, f"You may not do this: it needs the right to {action}, and you are {role} here.", role=role.value)
    return role


class Lookup:
    """Finds entries for the routes of one server."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def find(self, access: Access, target: Target, action: Action) -> Found:
        """The entry at a path, if the caller may do `action` with it. Raises `Refusal`."""
        place, role = await self.look(access, target)
        entry = place.entry
        if entry is None:
            raise Refusal(Code.NOT_FOUND, NOT_HERE)
        authorise(role, Action.READ)
        if target.folder and not isinstance(entry, Folder):
            raise Refusal(Code.NOT_A_FOLDER, "This is a file. Leave the slash at the end away.")
        return Found(place=place, entry=entry, role=authorise(role, action))

    async def shown(self, file: File) -> File:
        """The file with the version that people may be shown now; see `Backend`. Raises `Refusal`: NOT_FOUND if it is not there yet."""
        shown = await self._backend.shown(file)
        if shown is None:
            raise Refusal(Code.NOT_FOUND, NOT_HERE)
        return shown

    async def look(self, access: Access, target: Target) -> tuple[Place, Role | None]:
        """Where a path leads, and what the caller is to the last thing on it that exists."""
        access.path = str(target)
        username = access.signed_in.username

        async def ask(sql: Any) -> tuple[Place, Role | None]:
            above = await self._folder(sql, target.owner, target.segments[:-1], username) if target.segments else None
            if above is None:
                place = await directory.place(sql, target.owner, target.segments)
                return place, await directory.role_along(sql, username, place.chain)
            folders, role = above
            entry = await directory.child(sql, folders[-1].id, target.segments[-1])
            place = Place(owner=target.owner, segments=target.segments, chain=folders if entry is None else (*folders, entry))
            if entry is None or role is Role.OWNER:
                return place, role
            return place, await directory.role_along(sql, username, place.chain)

        place, role = await self._backend.recall(("place", target.owner, target.segments, username), ask)
        if place.entry is not None:
            access.entry = place.entry.id
        return place, role

    async def _folder(self, sql: Any, owner: str, segments: tuple[str, ...], username: str) -> tuple[tuple[Entry, ...], Role | None] | None:
        """The folders down to the one that a path names, and what the caller is to it; None if there is no such folder.

        Files come and go in it all the time, and change nothing about it.
        """

        async def ask(sql: Any) -> tuple[tuple[Entry, ...], Role | None] | None:
            place = await directory.place(sql, owner, segments)
            if not isinstance(place.entry, Folder):
                return None
            return place.chain, await directory.role_along(sql, username, place.chain)

        return await self._backend.recall(("folder", owner, segments, username), ask, of_files=False, sql=sql)

    def parent_of(self, place: Place, role: Role | None) -> Folder:
        """The folder in which the path's last name can be created. Raises `Refusal`."""
        authorise(role, Action.READ)
        if place.parent is None:
            deepest = place.chain[-1] if place.chain else None
            if isinstance(deepest, File):
                raise Refusal(Code.NOT_A_FOLDER, f"{deepest.name} is a file, nothing can be in it.")
            raise Refusal(
                Code.NOT_FOUND,
                f"The folder of {path_text(place.owner, place.segments)} does not exist. Create it first (PUT with a slash at the end).",
            )
        authorise(role, Action.CREATE)
        return place.parent

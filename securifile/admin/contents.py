"""Files' content as asked of an admin server: it has none, so it sends people to a node, with a ticket.

Reading is as on a node that is not a holder (`Downloads`: redirect, or relay with `?relay=1`); writing goes to the node that will be
the origin.
"""

from __future__ import annotations

from collections.abc import Callable

from securifile.http.backend import Backend
from securifile.http.downloads import Downloads
from securifile.http.exchange import Access, Answer, Streamed
from securifile.http.lookup import Lookup, authorise
from securifile.http.redirects import Redirector
from securifile.http.request import Request
from securifile.http.targets import Target
from securifile.model.errors import Code, Refusal
from securifile.model.facts import File, Folder
from securifile.model.roles import Action
from securifile.model.serving import serving_order

AGAIN_S = 2.0
"""A node is held for running, or another takes its place, within a few heartbeats."""


class RedirectedContents:
    """The `Contents` of an admin server."""

    def __init__(
        self, *, backend: Backend, lookup: Lookup, downloads: Downloads, redirector: Redirector, below: Callable[[int], int]
    ) -> None:
        """Args:
        below: draws a random integer from 0 to its argument - 1.
        """
        self._backend = backend
        self._downloads = downloads
        self._redirector = redirector
        self._lookup = lookup
        self._below = below

    async def get(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """See `Contents`."""
        return await self._downloads.get(request, access, target)

    async def put(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """See `Contents`."""
        place, role = await self._lookup.look(access, target)
        entry = place.entry
        if isinstance(entry, Folder):
            authorise(role, Action.READ)
            raise Refusal(Code.IS_A_FOLDER, "There is a folder at this path.")
        if isinstance(entry, File):
            authorise(role, Action.MODIFY)
            return self._redirector.to(
                request, access.signed_in, target, node=self._holder(entry), file=entry.id, version=entry.version.number + 1
            )
        parent = self._lookup.parent_of(place, role)
        return self._redirector.to(request, access.signed_in, target, node=self.any_node(), file=parent.id, name=target.name, version=1)

    def _holder(self, file: File) -> str:
        """The origin, or the first replica by priority that is available."""
        order = serving_order(file.version, self._backend.is_available)
        if not order:
            raise Refusal(
                Code.NO_HOLDER,
                "No server that has this file is running. Try again later.",
                retry_after_s=AGAIN_S,
                holders=list(file.version.holders),
            )
        return order[0]

    def any_node(self) -> str:
        """A node that is running, by chance. Raises `Refusal` NO_ROOM."""
        running = [name for name in self._backend.roster.running if self._backend.is_available(name)]
        if not running:
            raise Refusal(Code.NO_ROOM, "No storage node is running. Try again later.", retry_after_s=AGAIN_S)
        return running[self._below(len(running))]

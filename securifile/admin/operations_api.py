"""The routes by which an administrator acts on a node: offline, online, repair, drain, remove."""

from __future__ import annotations

from typing import Any

from klein import Klein
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from securifile.admin.backend import AdminBackend
from securifile.admin.catalogue import Catalogue
from securifile.admin.lasting import Lasting
from securifile.admin.members import StatusChange
from securifile.admin.peers import Peers
from securifile.admin.requests import administrator, name_in
from securifile.http.exchange import Access, Answer
from securifile.http.request import Request
from securifile.http.shared_api import SharedApi
from securifile.model.errors import Code, DeadlineExceeded, PeerUnreachable, Refusal
from securifile.model.facts import Server
from securifile.model.servers import ServerKind, Status
from securifile.protocol import messages as m

REPAIR_S = 6 * 3600.0
"""How long a node may take to read all it has; it tells when it is done."""


class OperationsApi:
    """`POST /api/v1/servers/{name}/offline`, `/online`, `/repair` and `/drain`; `DELETE` of `/drain` and of the server itself.

    `?dry_run=1` for drain and remove: what would be refused is refused, and nothing is changed.
    """

    def __init__(self, *, clock: IReactorTime, backend: AdminBackend, catalogue: Catalogue, peers: Peers) -> None:
        self._clock = clock
        self._backend = backend
        self._catalogue = catalogue
        self._peers = peers
        self._repairing: dict[str, Lasting[m.Repaired]] = {}

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`."""
        one = "/api/v1/servers/<name>"
        api.route(app, f"{one}/offline", "POST", "offline", self._offline)
        api.route(app, f"{one}/online", "POST", "online", self._online)
        api.route(app, f"{one}/repair", "POST", "repair", self._repair)
        api.route(app, f"{one}/drain", "POST", "drain", self._drain)
        api.route(app, f"{one}/drain", "DELETE", "undrain", self._undrain)
        api.route(app, one, "DELETE", "remove-server", self._remove)

    async def _offline(self, request: Request, access: Access) -> Answer:
        administrator(access)
        return await self._set(access, name_in(request), offline=True)

    async def _online(self, request: Request, access: Access) -> Answer:
        administrator(access)
        return await self._set(access, name_in(request), offline=False)

    async def _set(self, access: Access, name: str, *, offline: bool) -> Answer:
        changes: tuple[StatusChange, ...] = await self._backend.enter(self._catalogue.members.set_offline(name, offline))
        access.detail = name + "".join(f": {change.before} -> {change.after}" for change in changes)
        status = self._catalogue.roster.servers[name].status
        return Answer(status=200, value={"name": name, "offline": offline, "status": status.value})

    async def _drain(self, request: Request, access: Access) -> Answer:
        administrator(access)
        return await self._set_drain(access, name_in(request), draining=True, only_look=_only_look(request))

    async def _undrain(self, request: Request, access: Access) -> Answer:
        administrator(access)
        return await self._set_drain(access, name_in(request), draining=False, only_look=_only_look(request))

    async def _set_drain(self, access: Access, name: str, *, draining: bool, only_look: bool) -> Answer:
        access.detail = name + (" (dry run)" if only_look else "")
        await self._backend.enter(self._catalogue.members.drain(name, draining, only_look=only_look))
        copies, only = await self._backend.asking(self._catalogue.members.copies_on(name))
        return Answer(status=200, value={"name": name, "draining": draining, "dry_run": only_look, "copies": copies, "only_copies": only})

    async def _remove(self, request: Request, access: Access) -> Answer:
        administrator(access)
        name, only_look = name_in(request), _only_look(request)
        force = request.query("force") == "1"
        access.detail = name + (" (forced)" if force else "") + (" (dry run)" if only_look else "")
        if not only_look:
            await self._backend.enter(self._catalogue.members.remove(name, force=force))
            return Answer(status=204)
        await self._backend.enter(self._catalogue.members.remove(name, only_look=True, force=force))
        copies, only = await self._backend.asking(self._catalogue.members.copies_on(name))
        return Answer(status=200, value={"name": name, "dry_run": True, "copies": copies, "only_copies": only})

    async def _repair(self, request: Request, access: Access) -> Answer:
        """Have a node read all it should have, and fetch what is missing or rotten; it serves nobody meanwhile.

        That may take hours: 202 says that it goes on, and who asks again waits again for the same repair.
        """
        administrator(access)
        name = name_in(request)
        if self._node(name).status is Status.RUNNING:
            raise Refusal(
                Code.CONFLICT, f"{name} is running, and mends itself what it finds. Take it offline first to have all of it read."
            )
        repairing = self._repairing.get(name)
        if repairing is None or repairing.is_old:
            repairing = self._repairing[name] = Lasting(self._clock, self._peers.ask(name, m.RepairSelf(), REPAIR_S))
        await repairing.wait()
        repaired: Any = repairing.outcome
        if repaired is None:
            access.detail = f"{name}: under way"
            return Answer(status=202, value={"name": name, "under_way": True})
        self._repairing.pop(name, None)
        if isinstance(repaired, Failure):
            if not repaired.check(PeerUnreachable, DeadlineExceeded):
                repaired.raiseException()
            why = repaired.getErrorMessage()
            raise Refusal(Code.NOT_RUNNING, f"{name} cannot be reached: {why}. Start it, and try again.", retry_after_s=5.0)
        access.detail = f"{name}: {repaired.checked} checked, {repaired.fetched} fetched, {len(repaired.lost)} lost"
        return Answer(
            status=200,
            value={
                "name": name,
                "under_way": False,
                "checked": repaired.checked,
                "fetched": repaired.fetched,
                "lost": [str(file) for file in repaired.lost],
            },
        )

    def _node(self, name: str) -> Server:
        server = self._catalogue.roster.servers.get(name)
        if server is None or server.kind is not ServerKind.NODE:
            raise Refusal(Code.NOT_FOUND, f"There is no node {name}.")
        return server


def _only_look(request: Request) -> bool:
    return request.query("dry_run") == "1"

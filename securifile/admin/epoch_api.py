"""The routes by which an administrator looks at the epoch of the catalogue, and goes on without nodes that are missing."""

from __future__ import annotations

from klein import Klein

from securifile.admin.backend import AdminBackend
from securifile.admin.reconciliation import Epoch, Reconciling
from securifile.admin.requests import administrator
from securifile.http.channel import Request
from securifile.http.exchange import Access, Answer
from securifile.http.shared_api import SharedApi


class EpochApi:
    """`GET /api/v1/epoch` and `POST /api/v1/epoch/accept`."""

    def __init__(self, *, backend: AdminBackend, reconciling: Reconciling) -> None:
        self._backend = backend
        self._reconciling = reconciling

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`."""
        api.route(app, "/api/v1/epoch", "GET", "epoch", self._look)
        api.route(app, "/api/v1/epoch/accept", "POST", "accept-epoch", self._accept)

    async def _look(self, request: Request, access: Access) -> Answer:
        administrator(access)
        return _shown(await self._backend.asking(self._reconciling.state()))

    async def _accept(self, request: Request, access: Access) -> Answer:
        """Go on without the nodes that have not handed in what the catalogue lost."""
        administrator(access)
        state = await self._backend.asking(self._reconciling.accept())
        access.detail = f"epoch {state.epoch}"
        return _shown(state)


def _shown(state: Epoch) -> Answer:
    return Answer(
        status=200,
        value={
            "epoch": state.epoch,
            "reconciled": state.reconciled,
            "rebuilding": state.rebuilding,
            "handed_in": {name: str(position) for name, position in sorted(state.handed_in.items())},
            "missing": list(state.missing),
            "left": [{"node": node or None, "what": what, "why": why} for node, what, why in state.left],
        },
    )

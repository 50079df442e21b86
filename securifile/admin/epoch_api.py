"""The routes by which an administrator looks at the epoch of the catalogue, and goes on without nodes that are missing."""

from __future__ import annotations

from typing import Any

from klein import Klein
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from securifile.admin.backend import AdminBackend
from securifile.admin.lasting import Lasting
from securifile.admin.reconciliation import Plan, Reconciling, said, said_of_blob
from securifile.admin.requests import administrator
from securifile.http.exchange import Access, Answer
from securifile.http.request import Request
from securifile.http.shared_api import SharedApi


class EpochApi:
    """`GET /api/v1/epoch`, `POST /api/v1/epoch/accept` and `POST /api/v1/epoch/dismiss`.

    For accept: `?dry_run=1` changes nothing; `?without=` and `?trust=` name nodes, with commas between. A large catalogue takes
    minutes: 202 says that it goes on, and who asks again waits for the same.
    """

    def __init__(self, *, clock: IReactorTime, backend: AdminBackend, reconciling: Reconciling) -> None:
        self._clock = clock
        self._accepting: Lasting[Plan] | None = None
        self._backend = backend
        self._reconciling = reconciling

    def register(self, app: Klein, api: SharedApi) -> None:
        """Put the routes on `app`."""
        api.route(app, "/api/v1/epoch", "GET", "epoch", self._look)
        api.route(app, "/api/v1/epoch/accept", "POST", "accept-epoch", self._accept)
        api.route(app, "/api/v1/epoch/dismiss", "POST", "dismiss-epoch", self._dismiss)

    async def _look(self, request: Request, access: Access) -> Answer:
        administrator(access)
        return Answer(status=200, value=await self._shown())

    async def _accept(self, request: Request, access: Access) -> Answer:
        """Go on without the nodes that have not handed in what the catalogue lost."""
        administrator(access)
        dry_run = request.query("dry_run") == "1"
        without, trusted = _names(request, "without"), _names(request, "trust")
        access.detail = f"without {without}, trusting {trusted}" + (" (dry run)" if dry_run else "")
        if dry_run:
            plan = await self._backend.asking(Deferred.fromCoroutine(self._reconciling.plan(without, trusted)))
            return Answer(status=200, value={**await self._shown(), **_planned(plan), "dry_run": True})
        accepting = self._accepting
        if accepting is None or accepting.is_old:
            accepting = self._accepting = Lasting(self._clock, Deferred.fromCoroutine(self._reconciling.accept(without, trusted)))
        await accepting.wait()
        outcome: Any = accepting.outcome
        if outcome is None:
            access.detail = f"{access.detail}: under way"
            return Answer(status=202, value={"under_way": True})
        self._accepting = None
        if isinstance(outcome, Failure):
            await self._backend.asking(fail(outcome))
        value = await self._shown()
        access.detail = f"epoch {value['epoch']}: {access.detail}"
        return Answer(status=200, value={**value, **_planned(outcome), "dry_run": False, "under_way": False})

    async def _dismiss(self, request: Request, access: Access) -> Answer:
        """Forget what is left: the administrator has seen it."""
        administrator(access)
        left = len((await self._shown())["left"])
        await self._backend.asking(Deferred.fromCoroutine(self._reconciling.dismiss()))
        access.detail = f"{left} things"
        return Answer(status=200, value={"dismissed": left})

    async def _shown(self) -> dict[str, Any]:
        state = await self._backend.asking(self._reconciling.state())
        return {
            "epoch": state.epoch,
            "reconciled": state.reconciled,
            "rebuilding": state.rebuilding,
            "handed_in": {name: str(position) for name, position in sorted(state.handed_in.items())},
            "missing": list(state.missing),
            "left": [{"node": node or None, "what": what, "why": why} for node, what, why in state.left],
        }


def _planned(plan: Plan) -> dict[str, Any]:
    """What is to be done; for a dry run what would be left, too, which otherwise is in the state."""
    left = [{"node": None, "what": said(one.fact), "why": one.why} for one in plan.left]
    left += [{"node": one.node, "what": said_of_blob(one.sidecar), "why": one.why} for one in plan.lost_blobs]
    return {
        "written": plan.counts,
        "knows_most": plan.knows_most,
        "strangers": {node: list(others) for node, others in plan.strangers.items()},
        "would_be_left": left,
    }


def _names(request: Request, name: str) -> list[str]:
    return [one for one in (request.query(name) or "").split(",") if one]

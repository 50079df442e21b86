"""The HTTPS interface of a node: the common routes, its files, and how it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from klein import Klein
from twisted.internet.interfaces import IReactorTime

from securifile.http.downloads import Downloads
from securifile.http.exchange import Access, Answer, Streamed
from securifile.http.request import Request
from securifile.http.routing import Shortcuts, klein_problems
from securifile.http.shared_api import SharedApi
from securifile.http.targets import Target
from securifile.model.errors import Code, Refusal
from securifile.model.servers import ServerKind
from securifile.node.composition import Node
from securifile.node.draft_api import DraftApi
from securifile.node.index import Index
from securifile.node.tus_api import TusApi
from securifile.node.uploads import Uploads

AT_AN_ADMIN = ("users", "servers", "settings", "enrolment", "trust", "explain")
"""What only admin servers answer: a node redirects there."""


class NodeContents:
    """How a node gives and takes files: the `Contents` of its routes."""

    def __init__(self, downloads: Downloads, uploads: Uploads, draft: DraftApi) -> None:
        self._downloads = downloads
        self._uploads = uploads
        self._draft = draft

    async def get(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """See `Contents`."""
        return await self._downloads.get(request, access, target)

    async def put(self, request: Request, access: Access, target: Target) -> Answer | Streamed:
        """See `Contents`."""
        if self._draft.is_creation(request):
            return await self._draft.create(request, access, target)
        return await self._uploads.put(request, access, target)


def node_app(
    node: Node,
    *,
    clock: IReactorTime,
    index: Index,
    tls: bool,
    more_metrics: Callable[[], dict[str, float]] = dict,
    https_processes: Callable[[], int] = lambda: 0,
) -> Any:
    """The resource to serve.

    Args:
        more_metrics: of what is not in the node.
        https_processes: how many fronts take connections now.
    """
    cluster = node.cluster
    draft = DraftApi(node.resumable, cluster.roster, node.acting.wall)
    api = SharedApi(
        clock=clock,
        backend=node.acting,
        authenticator=node.authenticator,
        lookup=node.lookup,
        contents=NodeContents(node.downloads, node.uploads, draft),
        archives=node.archives,
    )
    app = Klein()
    klein_problems(app)
    api.register(app)
    TusApi(node.resumable, cluster.roster, draft).register(app, api)

    @app.route("/healthz", methods=["GET", "HEAD"])
    def healthz(request: Request) -> bytes:
        return _json(request, 200, {"name": node.acting.name, "alive": True})

    @app.route("/readyz", methods=["GET", "HEAD"])
    def readyz(request: Request) -> bytes:
        standing = cluster.admission.standing()
        told = {"ready": standing.serves, "reason": standing.reason, "tls": tls, "https_processes": https_processes()}
        return _json(request, 200 if standing.serves else 503, told)

    async def metrics_route(request: Request, access: Access) -> Answer | Streamed:
        if not access.signed_in.person.administrator:
            raise Refusal(Code.FORBIDDEN, "Only administrators may see this.")
        metrics = {**node_metrics(node, index), **more_metrics()}
        lines = "".join(f"securifile_{key} {value:.15g}\n" for key, value in metrics.items()).encode("ascii")
        sink = request.start(200, [(b"Content-Type", b"text/plain; version=0.0.4")], len(lines))
        await sink.write(lines)
        sink.finish()
        return Streamed(status=200)

    api.route(app, "/metrics", "GET", "metrics", metrics_route)

    def elsewhere(request: Request) -> bytes:
        admins = [cluster.roster.servers[admin] for admin in cluster.admins]
        if not admins:
            raise Refusal(Code.CATALOGUE_UNAVAILABLE, "This is answered by admin servers, and none is known.", retry_after_s=5.0)
        request.setResponseCode(307)
        request.setHeader(b"Location", admins[0].url.encode("ascii") + request.uri)
        return b""

    for kind in AT_AN_ADMIN:
        app.route(f"/api/v1/{kind}", branch=True, endpoint=f"at an admin server: {kind}")(elsewhere)
    return Shortcuts(api.branches, app.resource())


def node_metrics(node: Node, index: Index) -> dict[str, float]:
    """What `/metrics` tells of a node, by name."""
    cluster = node.cluster
    heartbeat = cluster.compose()
    return {
        "serves": float(cluster.admission.standing().serves),
        "catalogue_epoch": float(index.position.epoch),
        "catalogue_revision": float(index.position.revision),
        "catalogue_revision_heard": float(cluster.heartbeats.heard.revision),
        "storage_used_bytes": float(heartbeat.used_bytes),
        "storage_available_bytes": float(heartbeat.available_bytes),
        "nodes": float(len(cluster.roster.nodes)),
        "nodes_running": float(len(cluster.roster.running)),
        "admins_known": float(len(cluster.roster.of_kind(ServerKind.ADMIN))),
        **cluster.trips.metrics("heartbeat_trip_seconds"),
        **node.upkeep.scrub.metrics,
    }


def _json(request: Request, status: int, value: dict[str, Any]) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")
    return json.dumps(value).encode() + b"\n"

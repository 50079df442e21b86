"""An admin server's HTTP resource: the routes that every server has, those of its own, and what machines ask: health and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from klein import Klein

from securifile.admin.checks import Soundness
from securifile.admin.composition import Admin
from securifile.admin.epoch_api import EpochApi
from securifile.admin.explain_api import ExplainApi
from securifile.admin.operations_api import OperationsApi
from securifile.admin.people_api import PeopleApi
from securifile.admin.requests import administrator
from securifile.admin.servers_api import ServersApi
from securifile.http.exchange import Access, Streamed
from securifile.http.request import Request
from securifile.http.routing import Shortcuts, klein_problems
from securifile.http.shared_api import SharedApi
from securifile.http.tus import COLLECTION
from securifile.model.servers import Status


class AdminApi:
    """Everything that an admin server answers over HTTP."""

    def __init__(self, admin: Admin) -> None:
        self._contents = admin.contents
        self._backend, self._catalogue, self._watch, self._followers = admin.backend, admin.catalogue, admin.watch, admin.followers
        self._shared = SharedApi(
            clock=admin.world.clock,
            backend=admin.backend,
            authenticator=admin.authenticator,
            lookup=admin.lookup,
            contents=admin.contents,
            archives=admin.archives,
        )
        self._people = PeopleApi(backend=admin.backend, catalogue=admin.catalogue, random=admin.world.random)
        self._epoch = EpochApi(clock=admin.world.clock, backend=admin.backend, reconciling=admin.reconciling)
        self._operations = OperationsApi(clock=admin.world.clock, backend=admin.backend, catalogue=admin.catalogue, peers=admin.peers)
        self._explain = ExplainApi(admin)
        self._servers = ServersApi(
            backend=admin.backend,
            catalogue=admin.catalogue,
            watch=admin.watch,
            nodes=admin.nodes,
            authority=admin.authority,
            tls=admin.me.tls,
        )

    def resource(self) -> Any:
        """The `IResource`."""
        app = klein_problems(Klein())
        app.route("/healthz", methods=["GET", "HEAD"], endpoint="healthz")(self._health)
        app.route("/readyz", methods=["GET", "HEAD"], endpoint="readyz")(self._ready)
        self._shared.register(app)
        self._people.register(app, self._shared)
        self._servers.register(app, self._shared)
        self._operations.register(app, self._shared)
        self._epoch.register(app, self._shared)
        self._explain.register(app, self._shared)
        self._shared.route(app, "/metrics", "GET", "metrics", self._metrics)
        app.route(COLLECTION, branch=True, endpoint="resumable uploads")(self._at_a_node)
        return Shortcuts(self._shared.branches, app.resource())

    def _at_a_node(self, request: Request) -> bytes:
        """Resumable uploads go to any node, which judges by itself who asks."""
        url = self._backend.roster.servers[self._contents.any_node()].url
        request.setResponseCode(307)
        request.setHeader(b"Location", url.encode("ascii") + request.uri)
        return b""

    def _health(self, request: Request) -> bytes:
        return _json(request, 200, {"status": "alive", "server": self._backend.name})

    def _ready(self, request: Request) -> bytes:
        if self._backend.has_database:
            return _json(request, 200, {"status": "ready", "server": self._backend.name})
        return _json(request, 503, {"status": "waiting", "server": self._backend.name, "reason": "the database does not answer"})

    async def _metrics(self, request: Request, access: Access) -> Streamed:
        administrator(access)
        content = self._metrics_text(await self._backend.asking(self._catalogue.checks.of_nodes())).encode()
        sink = request.start(200, [(b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")], len(content))
        await sink.write(content)
        sink.finish()
        return Streamed(status=200)

    def _metrics_text(self, sound: Mapping[str, Soundness]) -> str:
        """Prometheus' text format, version 0.0.4."""
        roster = self._catalogue.roster
        followers = self._followers.positions
        revision = self._catalogue.ledger.position.revision
        now = self._backend.wall()
        unchecked = {name: max(0.0, now - one.oldest_at) for name, one in sound.items() if one.oldest_at is not None}
        lines = [
            "# HELP securifile_database_up Whether the database answered when it was last asked.",
            "# TYPE securifile_database_up gauge",
            f"securifile_database_up {int(self._backend.has_database)}",
            "# HELP securifile_revision The last change of the catalogue.",
            "# TYPE securifile_revision counter",
            f"securifile_revision {revision}",
            "# HELP securifile_oldest_check_seconds Since the copy was verified that has waited longest of all.",
            "# TYPE securifile_oldest_check_seconds gauge",
            f"securifile_oldest_check_seconds {max(unchecked.values(), default=0.0)}",
            "# HELP securifile_server_status What the cluster holds a server for: 1 for the status that it has.",
            "# TYPE securifile_server_status gauge",
        ]
        for name, server in sorted(roster.servers.items()):
            for status in Status:
                labels = f'server="{name}",kind="{server.kind}",status="{status}"'
                lines.append(f"securifile_server_status{{{labels}}} {int(server.status is status)}")
        series: list[tuple[str, str, Mapping[str, Any]]] = [
            ("used_bytes", "Bytes that a node's blobs take.", {name: seen.used_bytes for name, seen in self._watch.seen.items()}),
            ("available_bytes", "Bytes that would fit on a node.", {name: seen.available_bytes for name, seen in self._watch.seen.items()}),
            ("heartbeat_age_seconds", "Since a node's last heartbeat.", {name: self._watch.age_of(name) for name in self._watch.seen}),
            ("oldest_check_seconds", "Since that copy on a node was verified that has waited longest.", unchecked),
            ("quarantined_blobs", "Bad blobs that a node has put aside.", {name: one.quarantined for name, one in sound.items()}),
            ("changes_behind", "Changes that a node's index lacks.", {name: revision - at.revision for name, at in followers.items()}),
        ]
        for metric, text, values in series:
            lines += [f"# HELP securifile_node_{metric} {text}", f"# TYPE securifile_node_{metric} gauge"]
            lines += [f'securifile_node_{metric}{{server="{name}"}} {value}' for name, value in sorted(values.items())]
        return "\n".join(lines) + "\n"


def _json(request: Request, status: int, value: dict[str, Any]) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Cache-Control", b"no-store")
    return json.dumps(value).encode() + b"\n"
